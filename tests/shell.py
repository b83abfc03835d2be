"""The command as a shell sees it: run within this process, or as a process of its own.

`call` runs `sdcli ARGUMENTS…` here, where torch is imported already: its own environment, directory, descriptors 0 to
2, signal handlers, warnings and caches, and the exit status. What it cannot show needs `spawn`: how a process starts
and dies, signals, pipes between processes, and what is imported.
"""

import functools
import importlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from unittest import mock

import typer

from sdcli import cli
from sdcli.__main__ import main
from sdcli.commands.plain_help import Commands

ROOT = Path(__file__).parent.parent


def _kept(make: Callable[..., Commands]) -> Callable[..., Commands]:
    """`cli.application` that makes each command line once; `forget` does not know of it."""
    made: dict[tuple[str, ...] | None, Commands] = {}

    def application(names: Collection[str] | None = None) -> Commands:
        key = None if names is None else tuple(names)
        if key not in made:
            made[key] = make(names)
        return made[key]

    return application


_CONSTANT = ("sdcli.recipe.", "sdcli.training.", "sdcli.models.registry", "sdcli.models.vocabulary")
"""Modules whose caches depend on nothing but the source."""

# A process makes its command line once, and typer makes all commands of one from their functions whenever it is run.
cli.application = _kept(cli.application)
typer.main.get_command = functools.cache(typer.main.get_command)


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


def spawn(
    *arguments: str | Path,
    home: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run `sdcli ARGUMENTS…` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sdcli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd or home,
        env=clean_environment(home) | {"PYTHONPATH": str(ROOT)} | dict(env or {}),
        timeout=240,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr.decode())


def call(
    *arguments: str | Path,
    home: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run `sdcli ARGUMENTS…` within this process."""
    with (
        _descriptors(stdin) as (out, err),
        mock.patch.dict(os.environ, clean_environment(home) | dict(env or {}), clear=True),
        mock.patch.object(sys, "argv", ["sdcli", *map(str, arguments)]),
        _directory(cwd or home),
        _signal_handlers(),
        _warnings_on_stderr(),
        _libraries(),
    ):
        try:
            main()
            raise AssertionError("main returned")
        except SystemExit as end:
            status = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        assert isinstance(status, int)
        return Finished(status, _content(out), _content(err).decode())


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


@contextmanager
def _descriptors(stdin: bytes) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Descriptors 0 to 2, and sys's objects above them, are files; those of stdout and stderr are given."""
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in range(3)]
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        try:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            yield out, err
        finally:
            sys.stdin, sys.stdout, sys.stderr = kept
            for number, descriptor in enumerate(saved):
                os.dup2(descriptor, number)
                os.close(descriptor)


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _signal_handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Warnings are shown as a fresh interpreter shows them, not raised as pytest is told to."""

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@contextmanager
def _libraries() -> Iterator[None]:
    """Nothing that sdcli or huggingface_hub has kept from an earlier run, and torch's threads as they were."""
    forget()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    try:
        yield
    finally:
        forget()
        if torch:
            torch.set_num_threads(threads)


def forget() -> None:
    """Empty what sdcli and huggingface_hub have kept from an earlier run, except what is the same in all runs."""
    for name in [name for name in sys.modules if name.startswith("sdcli.") and not name.startswith(_CONSTANT)]:
        for kept in _caches_of(name):
            kept.cache_clear()
    if "huggingface_hub.constants" in sys.modules:  # they are read from the environment when it is imported
        importlib.reload(sys.modules["huggingface_hub.constants"])
        from huggingface_hub.utils import close_session

        close_session()


@functools.cache
def _caches_of(module: str) -> tuple[Any, ...]:
    values = vars(sys.modules[module]).values()
    return tuple(value for value in values if hasattr(value, "cache_clear") and hasattr(value, "__wrapped__"))
