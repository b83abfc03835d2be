"""`python -m tests.device.report --seconds 120`: the device tests and a small bench, and ONE JSON report on stdout.

Needs no network and no installed sdcli: run it in a checkout, with diffusers, tomlkit and torchsde on PYTHONPATH. The
bench is a process of its own, which imports and builds its models while the tests run, and measures when they are done;
whatever breaks one of the two, or takes too long, the report holds what was found until then. Progress goes to stderr.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).parent.parent.parent
OUTCOMES = ("passed", "failed", "xfailed", "skipped")
SHARE_OF_TESTS, PATIENCE = 0.55, 5.0
FIRST = (
    "test_the_device_makes_the_cpu_s_picture",
    "test_out_of_memory",
    "test_no_context_waits",
    "test_no_scheduler_waits",
    "test_a_replay",
    "test_memory",
    "test_every_command",
    "test_the_same_recipe",
    "test_kit",
)
"""The tests to begin with, where there may be no time for all."""
PACKAGES = ("torch", "diffusers", "transformers", "huggingface_hub", "numpy", "typer", "pydantic", "pytest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=220, help="the bound of all of it, imports included")
    parser.add_argument("--out", type=Path, help="write the report there too, as it grows")
    parser.add_argument("--only", choices=("tests", "bench"))
    parser.add_argument("tests", nargs="*", help="arguments for pytest in place of tests/device")
    asked = parser.parse_args()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "4")  # of tiny models more threads make slower ones
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ[name] = "1"
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ[name] = "error"
    report: dict[str, Any] = {"schema": 1, "python": platform.python_version(), "machine": platform.platform()}
    report["packages"] = {name: _version(name) for name in PACKAGES}
    bench = None if asked.only == "tests" else _Bench()
    if asked.only != "bench":
        share = SHARE_OF_TESTS if bench else 1.0
        report["tests"] = _run_tests(STARTED + share * asked.seconds, asked.tests)
        report["findings"] = [
            {"test": case["name"], "outcome": case["outcome"], "what": case.get("finding") or case.get("message")}
            for case in report["tests"]["cases"]
            if case["outcome"] in ("failed", "xfailed") or "finding" in case
        ]
    _write(asked.out, report)
    if bench:
        report["bench"] = bench.finish(STARTED + asked.seconds, lambda: _write(asked.out, report))
    report["seconds"] = round(time.monotonic() - STARTED, 1)
    _write(asked.out, report)
    json.dump(report, sys.stdout, indent=1)
    print(flush=True)
    print("\n".join(_summary(report)), file=sys.stderr)
    sys.exit(1 if report.get("tests", {}).get("status") else 0)


def _summary(report: dict[str, Any]) -> list[str]:
    tests = report.get("tests", {})
    told = [", ".join(f"{tests[each]} {each}" for each in OUTCOMES if each in tests)]
    for each in report.get("findings", []):
        told.append(f"finding: {each['test']}: {str(each['what']).splitlines()[-1][:200]}")
    for what, said in report.get("bench", {}).items():
        if isinstance(said, dict):
            kept = {key: value for key, value in said.items() if key not in ("all", "traceback")}
            told.append(f"{what}: " + ", ".join(f"{key} {value}" for key, value in kept.items()))
    return told


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class _TimeIsUp(Exception):
    pass


class _Cases:
    """A pytest plugin that keeps what became of each test, and skips those for which there is no time left."""

    def __init__(self, until: float) -> None:
        self.until, self.cases, self.notes = until, [], []

    def pytest_runtest_setup(self, item: Any) -> None:
        import pytest

        if time.monotonic() > self.until:
            pytest.skip("no time is left for it")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        def place(item: Any) -> int:
            return next((place for place, name in enumerate(FIRST) if item.name.startswith(name)), len(FIRST))

        items.sort(key=place)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.notes.append(report.longreprtext[-4000:])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        expected = hasattr(report, "wasxfail")
        case = {"name": report.nodeid.partition("tests/device/")[2], "outcome": report.outcome}
        if expected:
            case["outcome"] = "xfailed"
        case |= {"seconds": round(report.duration, 3), **dict(report.user_properties)}
        if report.outcome == "failed":
            case["message"] = report.longreprtext[-2500:]
        elif report.outcome == "skipped" and not expected:
            case["message"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)[:200]
        self.cases.append(case)


def _run_tests(until: float, chosen: list[str]) -> dict[str, Any]:
    import pytest

    import sdcli
    from tests.device.where import DEVICE

    imported = time.monotonic() - STARTED
    cases = _Cases(until)

    def stop(*_: Any) -> None:
        raise _TimeIsUp("the test took too long")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(until - time.monotonic(), 1) + PATIENCE, PATIENCE)
    arguments = [
        *(chosen or [str(Path(__file__).parent)]),
        "-q",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--disable-warnings",
    ]
    arguments += ["-o", "filterwarnings=default", "-o", "addopts=", "--rootdir", str(ROOT)]
    arguments += ["-c", str(ROOT / "pyproject.toml")]
    try:
        with redirect_stdout(sys.stderr):
            status: Any = int(pytest.main(arguments, plugins=[cases]))
    except BaseException as error:  # noqa: BLE001  whatever it was, the bench may go on
        status = repr(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    told: dict[str, Any] = {"device": DEVICE, "sdcli": sdcli.__file__, "status": status}
    told["seconds_to_import"] = round(imported, 1)
    for outcome in OUTCOMES:
        told[outcome] = sum(case["outcome"] == outcome for case in cases.cases)
    told["seconds"] = round(time.monotonic() - STARTED, 1)
    return {**told, "notes": cases.notes, "cases": cases.cases}


class _Bench:
    """The bench's process: one line of JSON for each thing it has measured."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.device.bench"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.found: dict[str, Any] = {}
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                said = json.loads(line)
                self.found[said.pop("what")] = said

    def finish(self, until: float, tell: Any) -> dict[str, Any]:
        """Let it measure until then, and give what it found."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(f"{max(until - time.monotonic() - 1.5, 1)}\n")
            self.process.stdin.close()
        try:
            self.process.wait(max(until - time.monotonic(), 2))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.found["cut_short"] = True
        self.reader.join(2)
        self.found["status"] = self.process.poll()
        return self.found


if __name__ == "__main__":
    main()
