"""What a new user tries: a picture through pipes, and a matrix on a narrow terminal."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Run, clean_environment

FAST = ("--steps", "2", "--seed", "7", "--threads", "1", "-q")


def test_a_picture_goes_through_pipes(run: Run, sd15: Path):
    made = run("generate", "a fox", "-m", sd15, "-W", "64", "-H", "64", *FAST, "-o", "-")
    redrawn = run("img2img", "-", "an owl", "-m", sd15, *FAST, "-o", "-", stdin=made.stdout)
    latents = run("encode", "-", "-m", sd15, "-o", "-", stdin=redrawn.stdout)
    decoded = run("decode", "-", "-m", sd15, "-o", "-", stdin=latents.stdout)
    assert [made.status, redrawn.status, latents.status, decoded.status] == [0, 0, 0, 0], redrawn.stderr
    told = json.loads(run("info", "-", "--json", stdin=redrawn.stdout).stdout)
    assert (told["path"], told["recipe"]["prompt"], told["recipe"]["image"]) == ("-", "an owl", "-")
    assert json.loads(run("info", "-", "--json", stdin=decoded.stdout).stdout)["width"] == told["width"]


def test_a_matrix_on_a_narrow_terminal(forked: list[str], sd15: Path, tmp_path: Path):
    leader, follower = pty.openpty()
    words = ("batch", "--matrix", "prompt=a fox", "--matrix", "scheduler=euler,ddim", "-m", str(sd15), "-o", "out")
    size = ("--steps", "2", "--seed", "7", "-W", "64", "-H", "64")
    environment = clean_environment(tmp_path) | {"TERM": "xterm", "COLUMNS": "40", "NO_COLOR": "1"}
    with subprocess.Popen(
        [*forked, *words, *size],
        cwd=tmp_path,
        env=environment,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        seen = b""
        while part := _read(leader):
            seen += part
        assert process.wait() == 0, seen
    os.close(leader)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    lines = [each.rstrip() for each in re.split(r"[\r\n]+", plain)]
    assert [each for each in lines if each.startswith("done")] == [
        "done    out/a-fox-euler-7.png",
        "done    out/a-fox-ddim-7.png",
    ]
    assert not any("{" in each for each in lines)
    assert max(map(len, lines)) <= 40


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("words", [("generate",), ("train", "kit"), ("models",)])
def test_help_fits_a_narrow_terminal(run: Run, words: tuple[str, ...]):
    text = run(*words, "--help", env={"COLUMNS": "40"}).stdout.decode()
    prose = [line for line in text.splitlines() if not line.startswith(("    sdcli", "  -", "      --"))]
    assert [line for line in prose if len(line) > 40 and " " in line.strip()] == []
