"""The command in a fork per run, bounded in time and memory, and what each run must hold to.

`SDCLI_FUZZ=3` runs the seeds 0, 1, 2 of each script, and `SDCLI_FUZZ=40:41` only 40; a failure names its seed.
"""

import gc
import os
import pickle
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from tests.shell import call

SECONDS, BYTES = 20, 3 * 10**9
"""Of the processor, and of memory."""
BLOCK = 100
"""Seeds of one test."""
VALID, CORRUPT, UNREADABLE = (0, 2), (0, 2, 3), (0, 2, 3, 4)

_RAW = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_TIMEOUTS = (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


@dataclass(frozen=True)
class Run:
    """One run: what a shell sees of it, and what it took. A run that was ended by signal N has the status -N."""

    status: int
    stdout: str = ""
    stderr: str = ""
    touched: tuple[str, ...] = ()
    """The paths that it wrote to or removed, except below its home."""
    seconds: float = 0.0
    peak: int = 0


def run(*arguments: str | Path, home: Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Run:
    """Run `sdcli ARGUMENTS…` in a fork of this process, which has imported the libraries already."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(arguments, home, stdin, env or {}, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status, used = os.wait4(child, 0)
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    done = pickle.loads(data) if data else Run(os.waitstatus_to_exitcode(status))
    return replace(done, seconds=seconds, peak=peak)


def warm(home: Path, *commands: Iterable[str | Path]) -> None:
    """Run sound commands in this process, so that the forks have what they import."""
    for each in commands:
        assert call(*each, home=home).status == 0
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all of its memory


def _in_child(arguments: Collection[Any], home: Path, stdin: bytes, env: dict[str, str], writing: int) -> None:
    try:
        sys.dont_write_bytecode = True  # which would be files outside of what a command may write
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10 * SECONDS)  # it may wait for other processes
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        held = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + BYTES, held + BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        touched: set[str] = set()
        sys.addaudithook(lambda event, given: touched.update(_written(event, given, home)))
        done = call(*arguments, home=home, stdin=stdin, env=env)
        told = Run(done.status, done.stdout.decode(errors="surrogateescape"), done.stderr, tuple(sorted(touched)))
    except BaseException:  # noqa: BLE001  told to the parent
        told = Run(-1, stderr=traceback.format_exc())
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(pickle.dumps(told))
    os._exit(0)


def _written(event: str, given: tuple[Any, ...], home: Path) -> Iterable[str]:
    if event == "open":
        path, _, flags = given
        written = [path] if isinstance(flags, int) and flags & _WRITING else []
    else:
        written = list(given[:2]) if event in _CHANGES else []
    for each in written:
        name = os.fsdecode(each) if isinstance(each, (str, bytes, os.PathLike)) else ""
        whole = os.path.abspath(name)  # noqa: PTH100  without following links
        inside = whole.startswith((f"{home}/", "/dev/", "/proc/")) or whole in (str(home), gettempdir())
        if name and not inside:  # a file without a name is opened by that of its directory
            yield f"{event} {whole}"


def faults(done: Run, allowed: Collection[int], home: Path, files: Collection[str] | None = None) -> list[str]:
    """What is wrong with a run; `files` are the names of files in its home before it, if it must write none."""
    found = []
    if done.status not in allowed:
        found.append("took too long" if done.status in _TIMEOUTS else f"exit status {done.status}")
    if done.seconds > SECONDS or done.peak > BYTES:
        found.append(f"{done.seconds:.1f} s, {done.peak / 1e9:.1f} GB")
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
        raw = _RAW.search(text)
        if raw is not None:
            found.append(f"{raw[0]!r} in {name}: {text[max(0, raw.start() - 60) : raw.end() + 60]!r}")
    found += done.touched
    if files is not None:
        found += [f"wrote {each}" for each in sorted(listed(home) - set(files))]
    return found


def listed(home: Path) -> set[str]:
    """The names of the files below `home`, without caches."""
    return {str(each.relative_to(home)) for each in home.rglob("*") if ".cache" not in each.parts}


def blocks(count: int) -> pytest.MarkDecorator:
    """Mark a test that takes `seeds`, a range: all of `count` in blocks, or those of SDCLI_FUZZ."""
    first, _, last = os.environ.get("SDCLI_FUZZ", str(count)).rpartition(":")
    start, stop = int(first or 0), int(last)
    found = [range(each, min(each + BLOCK, stop)) for each in range(start, stop, BLOCK)]
    return pytest.mark.parametrize("seeds", found, ids=[f"{each.start}-{each.stop - 1}" for each in found])


def check(seeds: Iterable[int], attempt: Callable[[int], Iterable[tuple[str, Run, list[str]]]]) -> None:
    """Fail with all faults of `seeds`; `attempt(seed)` yields what was tried, the run, and its faults."""
    told = []
    for seed in seeds:
        for what, done, found in attempt(seed):
            if found:
                told.append(f"seed {seed}: {what}\n  {'; '.join(found)}\n  {done.stderr[-600:]}")
    assert not told, f"{len(told)} faults\n" + "\n".join(told)
