"""Fixtures that tests share: tiny models on disk, and the installed command as a shell sees it."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import tiny

# A shell that runs the tests in the background has them ignore SIGINT, and ignored is what children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("sdcli", deadline=None)  # a clock on a busy machine tells nothing of the code
settings.load_profile("sdcli")


@dataclass(frozen=True)
class Finished:
    """What a shell sees of a command that has ended."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()


Run = Callable[..., Finished]

# Whatever of the caller's environment could change what the command does.
_STRAY = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "SDCLI_", "XDG_", "COLUMNS", "NO_COLOR", "FORCE_COLOR")


def clean_environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_STRAY)}
    return kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "OMP_NUM_THREADS": "1", "TERM": "dumb"}


@pytest.fixture(autouse=True)
def _nothing_of_the_callers(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests in this process see no settings and no pulled models either."""
    for name in os.environ:
        if name.startswith("SDCLI_"):
            monkeypatch.delenv(name)
    nowhere = tmp_path_factory.getbasetemp() / "nowhere"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(nowhere))
    monkeypatch.setenv("XDG_DATA_HOME", str(nowhere))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("generate", "a fox", ..., stdin=b"", env={...}, cwd=...)` runs the command in an empty directory."""

    def run_sdcli(
        *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path = tmp_path
    ) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "sdcli", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env=clean_environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parent.parent)} | dict(env or {}),
            timeout=240,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr.decode())

    return run_sdcli


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 in a diffusers folder."""
    return tiny.make_folder("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`pair(family)` is a tiny model of that family, loaded by diffusers and by sdcli (see tests/pairs.py)."""
    from tests import pairs

    return functools.cache(lambda family: pairs.load(tiny.make_folder(family, tmp_path_factory.mktemp(family))))


@pytest.fixture
def mounts(tmp_path: Path) -> list[str] | None:
    """The command under which this user may mount a file system, if there is one."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    for command in ([unshare, "--user", "--map-root-user", "--mount"], [unshare, "--mount"]):
        tried = subprocess.run(
            [*command, "sh", "-c", f"mount -t tmpfs tmpfs {tmp_path}"], capture_output=True, check=False
        )
        if tried.returncode == 0:
            return command
    return None
