"""Fixtures that tests share: tiny models on disk, and the command as a shell sees it."""

import functools
import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Said before torch and the libraries are imported, as sdcli says it: tests in parallel have a core each.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

from tests.forked import waiting
from tests.shell import ROOT, Finished, Run, call, clean_environment, spawn

__all__ = ["Finished", "Run", "clean_environment"]

# A shell that runs the tests in the background has them ignore SIGINT, and ignored is what children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(100_000, 10, 100)  # a collection traverses a million objects of the libraries, and would be frequent

settings.register_profile("sdcli", deadline=None)  # a clock on a busy machine tells nothing of the code
settings.load_profile("sdcli")


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
    """`run("generate", "a fox", ..., stdin=b"", env={...}, cwd=...)` runs the command here, in an empty directory."""
    return partial(call, home=tmp_path)


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """`run`, as a process of its own, for what cannot be seen within this one."""
    return partial(spawn, home=tmp_path)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[str]:
    """The words that start the command as a process, quickly (see tests/forked.py for what that cannot show)."""
    alone = worker_id == "master"
    folder = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent
    environment = clean_environment(folder) | {"PYTHONPATH": str(ROOT)}
    return waiting(folder, environment, os.getpid() if alone else os.getppid())


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 in a diffusers folder."""
    from tests import tiny

    return tiny.make_folder("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`pair(family)` is a tiny model of that family, loaded by diffusers and by sdcli (see tests/pairs.py)."""
    from tests import pairs, tiny

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
