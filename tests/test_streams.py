"""Standard streams as a script may leave them: in another encoding, closed, full."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Finished, clean_environment

ROOT = Path(__file__).parent.parent
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


@pytest.fixture
def shell(tmp_path):
    """`shell("sdcli … > /dev/full")` in an empty directory."""

    def run(script: str, **environment: str) -> Finished:
        done = subprocess.run(
            ["bash", "-c", f'sdcli() {{ "{sys.executable}" -m sdcli "$@"; }}\n{script}'],
            input=b"a fox\n",
            capture_output=True,
            cwd=tmp_path,
            env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)} | environment,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr.decode())

    return run


def test_stdout_is_utf_8_whatever_the_locale(shell):
    said = shell("sdcli generate 'Füchse 狐' -s 1 --dry-run", **ASCII)
    assert said.status == 0, said.stderr
    assert "prompt:           Füchse 狐" in said.lines
    assert "paths:            fuchse-狐-1.png" in said.lines
    plan = json.loads(shell("echo 'Füchse 狐' | sdcli batch - --dry-run --json", **ASCII).stdout)
    assert plan["jobs"][0]["recipe"]["prompt"] == "Füchse 狐"


def test_a_name_that_is_not_utf_8_stays_it_and_json_stays_json(shell):
    name = b"\xff.png"
    assert rb"\udcff.png" in shell("sdcli generate x -s 1 --dry-run -o $'\\xff.png'").stdout
    said = shell("sdcli generate x -s 1 --dry-run --json -o $'\\xff.png'").stdout
    (path,) = json.loads(said.decode("utf-8"))["paths"]
    assert path.encode("utf-8", "surrogateescape") == name


def test_a_prompt_that_is_not_utf_8_is_refused(shell):
    for option in ("$'a \\xff'", "x -N $'a \\xff'"):
        done = shell(f"sdcli generate {option} --dry-run")
        assert done.status == 2
        assert "is not valid Unicode" in done.stderr


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ("sdcli models list > /dev/full", 8, "stdout: No space left on device"),
        ("sdcli generate fox --dry-run > /dev/full", 8, "stdout: No space left on device"),
        ("sdcli batch - --dry-run > /dev/full", 8, "stdout: No space left on device"),
        ("sdcli models list >&-", 8, "stdout: Bad file descriptor"),
        ("sdcli generate fox --dry-run >&-", 8, "stdout: Bad file descriptor"),
        ("sdcli generate - --dry-run <&-", 4, "stdin cannot be read: Bad file descriptor"),
        ("sdcli batch - --dry-run <&-", 4, "cannot read -: Bad file descriptor"),
        ("sdcli generate x --steps 0 <&- >&-", 2, "steps is 0"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_said(shell, script, status, error):
    done = shell(script)
    assert done.status == status
    assert done.stderr.splitlines()[0] == f"error: {error}"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("script", ["2>&-", "2> /dev/full", "<&- >&- 2>&-"])
def test_where_nobody_can_be_told_the_status_is_the_same(shell, script):
    assert shell(f"sdcli generate x --steps 0 {script}").status == 2


def test_what_is_said_lands_in_no_picture(shell, tmp_path):
    """A picture's file must not take the number of a closed descriptor."""
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    done = shell("sdcli sheet x.png -o sheet.png >&- 2>&-")
    assert done.status == 8
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sheet.png").read_bytes().endswith(b"IEND\xaeB`\x82")
