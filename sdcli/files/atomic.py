"""Writes files completely or not at all: to a temporary file next to the final one, synced, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path`, in place of any file there. Raises OSError, and then leaves `path` as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, name: str | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` at the end of the block, or deleted if the block raises.

    It is in the same folder, called `name` if that is given. A file of that name, left by a killed process, is
    overwritten. Raises OSError.
    """
    temporary = path.with_name(name or hidden_name())
    with _deleted(temporary):
        with temporary.open("wb" if name else "xb") as file:
            yield file
            _sync_file(file)
        temporary.replace(path)
    sync_name(path.parent)


@contextmanager
def staged(directory: Path, data: bytes, name: str | None = None) -> Iterator[Path]:
    """A synced file with `data` in `directory`, hidden, and gone again at the end. Its mode follows the umask."""
    temporary = directory / (name or hidden_name())
    with _deleted(temporary):
        with temporary.open("xb") as file:
            file.write(data)
            _sync_file(file)
        yield temporary


@contextmanager
def _deleted(temporary: Path) -> Iterator[None]:
    """Delete `temporary` at the end of the block."""
    try:
        yield
    finally:
        with suppress(OSError):  # renamed away; or the file was never made
            temporary.unlink()


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def hidden_name() -> str:
    """A name that no other file has, for what is to be renamed."""
    return f".sdcli-{secrets.token_hex(8)}.tmp"


def sync(path: Path) -> None:
    """Have the operating system bring a file or directory to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(directory: Path) -> None:
    """Make the names in `directory` last. Some file systems cannot; the files are whole all the same."""
    with suppress(OSError):
        sync(directory)
