"""What must answer at once imports nothing heavy: counted in sys.modules, not on a clock."""

import atexit
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from tests.conftest import clean_environment

HEAVY = {"torch", "transformers", "diffusers", "numpy", "PIL", "safetensors", "tokenizers", "scipy", "torchsde"}
HEAVY |= {"httpx", "httpx2"}  # with which huggingface_hub reaches for the network
HEAVY |= {"pydantic"}  # of newer versions of typer

PROBE = """
import json, sys
from sdcli.cli import run
status = run(sys.argv[1:])
print("\\n" + json.dumps({"status": status, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""
# Runs each command that comes in a fork, which has imported what the command line itself imports.
FORKS = """
import json, os, sys
from sdcli.cli import run
for line in sys.stdin:
    asked = json.loads(line)
    if os.fork() == 0:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(asked["streams"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(asked["home"])
        os.environ.clear()
        os.environ |= asked["environment"]
        status = run(asked["arguments"])
        modules = sorted({name.split(".")[0] for name in sys.modules})
        print(json.dumps({"status": status, "modules": modules}), file=answers, flush=True)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]):
        print("{}", flush=True)
"""


@cache
def _forks() -> subprocess.Popen[str]:
    environment = clean_environment(Path("nowhere")) | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(process.communicate)
    return process


def modules_of(arguments: list[str], home: Path, expected_status: int) -> set[str]:
    """The packages that a process has imported that has run this command, and nothing else, in the directory `home`."""
    with NamedTemporaryFile(mode="r", errors="replace") as streams:
        asked = {"arguments": arguments, "home": str(home), "environment": clean_environment(home)}
        process = _forks()
        process.stdin.write(json.dumps(asked | {"streams": streams.name}) + "\n")
        process.stdin.flush()
        report = json.loads(process.stdout.readline())
        assert report.get("status") == expected_status, streams.read()
    return set(report["modules"])


LIGHT: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["--version"], 0),
    (["generate", "--help"], 0),
    (["batch", "--help"], 0),
    (["info", "--help"], 0),
    (["replay", "--help"], 0),
    (["replay"], 2),
    (["serve", "--help"], 0),
    (["serve"], 2),
    (["train", "--help"], 0),
    (["train", "text-to-image", "--help"], 0),
    (["train", "inpaint", "--out", "run"], 2),
    (["train", "autoencoder", "--out", "run", "--data", "none"], 4),
    (["train", "semantic", "--out", "run", "--from", "none"], 3),
    (["train", "export", "none", "--to", "model"], 3),
    (["models", "--help"], 0),
    (["models", "list"], 0),
    (["models", "list", "--json"], 0),
    (["models", "show", "kit"], 0),
    (["models", "show", "sd15", "--json"], 0),
    (["models", "pull", "--help"], 0),
    (["models", "add", "x", "somebody/some-model"], 0),
    (["models", "export", "kit", "."], 8),
    (["encode", "x.png", "-o", "no/such/directory/z.safetensors"], 8),
    (["decode", "--help"], 0),
    (["models", "rm", "sd15"], 3),
    (["models", "verify", "kit"], 2),
    (["bench", "--help"], 0),
    (["bench", "--family", "nonsense"], 2),
    (["config", "show"], 0),
    (["config", "show", "--json", "-m", "sd15"], 0),
    (["config", "path"], 0),
    (["--config", "none.toml", "generate", "x"], 2),
    (["generate", "x", "--steps", "0"], 2),
    (["generate", "x", "--no-such-option"], 2),
    (["generate", "x", "-W", "250"], 2),
    (["generate", "x", "-m", "sd15"], 3),
    (["generate", "x", "-o", "no/such/directory/x.png"], 8),
    (["generate"], 2),
    (["nonsense"], 2),
]
PROBE_ALL = """
import json, os, sys
from sdcli.cli import run
report = []
for place, arguments in enumerate(json.loads(sys.argv[1])):
    home = os.path.join(sys.argv[2], str(place))
    os.mkdir(home)
    os.chdir(home)
    os.environ.pop("SDCLI_CONFIG", None)
    os.environ |= {"HOME": home, "XDG_CACHE_HOME": home}
    before = {name.split(".")[0] for name in sys.modules}
    status = run(arguments)
    report.append({"status": status, "modules": sorted({name.split(".")[0] for name in sys.modules} - before)})
print("\\n" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> list[dict]:
    """The status of each command of LIGHT, all run in one process, and the packages that it was first to import."""
    home = tmp_path_factory.mktemp("light")
    commands = json.dumps([arguments for arguments, _ in LIGHT])
    done = subprocess.run(
        [sys.executable, "-c", PROBE_ALL, commands, str(home)],
        capture_output=True,
        check=True,
        env=clean_environment(home) | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    return json.loads(done.stdout.decode().splitlines()[-1])


@pytest.mark.parametrize("place", range(len(LIGHT)), ids=[" ".join(arguments) for arguments, _ in LIGHT])
def test_answers_and_refusals_import_nothing_heavy(light, place):
    assert light[place]["status"] == LIGHT[place][1]
    assert not set(light[place]["modules"]) & HEAVY


def test_the_command_line_itself_imports_nothing_heavy(tmp_path):
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", PROBE, "generate", "x", "--steps", "0"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment)
    report = json.loads(done.stdout.decode().splitlines()[-1])
    assert report["status"] == 2, done.stderr.decode()
    assert not set(report["modules"]) & HEAVY


def test_a_batch_that_makes_nothing_imports_nothing_heavy(tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a", "steps": 0}\n{"prompt": \n{"prompt": "a", "width": 70}\n')
    assert not modules_of(["batch", "jobs.jsonl", "-o", "out"], tmp_path, 7) & HEAVY
    (tmp_path / "none.txt").write_text("")
    assert not modules_of(["batch", "none.txt", "-o", "out"], tmp_path, 0) & HEAVY


def test_info_imports_pillow_and_nothing_heavier(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert modules_of(["info", "plain.png"], tmp_path, 0) & HEAVY <= {"PIL"}


def test_a_plan_loads_a_tokenizer_and_nothing_heavier(tmp_path):
    assert modules_of(["generate", "a fox", "--dry-run"], tmp_path, 0) & HEAVY <= {"tokenizers"}
    (tmp_path / "jobs.txt").write_text("a fox\nan owl\n")
    assert modules_of(["batch", "jobs.txt", "--dry-run"], tmp_path, 0) & HEAVY <= {"tokenizers"}


def test_a_replay_that_is_refused_loads_pillow_and_nothing_heavier(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert modules_of(["replay", "plain.png"], tmp_path, 4) & HEAVY <= {"PIL"}


def test_completion_imports_nothing_heavy(tmp_path):
    environment = {"_SDCLI_COMPLETE": "complete_bash", "COMP_WORDS": "sdcli generate x -m s", "COMP_CWORD": "4"}
    probe = "import runpy, sys; sys.argv = ['sdcli']\ntry: runpy.run_module('sdcli', run_name='__main__')\n"
    probe += f"except SystemExit: print('HEAVY', [name for name in {sorted(HEAVY)} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment,
    )
    *names, heavy = done.stdout.decode().splitlines()
    assert "sd15" in names
    assert "kit" not in names
    assert heavy == "HEAVY []"
