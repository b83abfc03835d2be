"""A warm process as a subprocess, and what is needed to talk to it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Warm:
    """A warm process that is ready."""

    process: subprocess.Popen[bytes]
    socket: str
    url: str

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Its exit status and what it said on stderr."""
        assert self.process.stderr is not None
        status = self.process.wait(timeout=seconds)
        return status, self.process.stderr.read().decode()


Serve = Callable[..., AbstractContextManager[Warm]]


@contextmanager
def serving(folder: Path, command: Sequence[str], *arguments: str | Path, quiet: bool = True) -> Iterator[Warm]:
    socket = os.path.relpath(folder / "warm.sock", Path.cwd())  # temporary directories can be too long for a socket
    options = [*(["--quiet"] if quiet else []), *map(str, arguments)]
    with subprocess.Popen(
        [*command, "serve", "--socket", socket, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(folder) | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline().decode().strip() for _ in range(2)]
            if not all(lines):
                assert process.stderr is not None
                raise AssertionError(process.stderr.read().decode())
            assert lines[0] == socket
            yield Warm(process, str(folder / "warm.sock"), lines[1])
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def serve(tmp_path: Path, forked: list[str]) -> Serve:
    """`with serve("--queue", 0) as warm: …` runs a warm process of its own."""
    return lambda *arguments, **options: serving(tmp_path, forked, *arguments, **options)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, forked: list[str], sd15: Path) -> Iterator[Warm]:
    """A warm process for all tests that leave it as it is, with the tiny SD 1.5 loaded."""
    with serving(tmp_path_factory.mktemp("warm"), forked, "-m", sd15) as ready:
        yield ready


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
