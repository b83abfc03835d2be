"""Writes files completely or not at all: to a temporary file next to the final one, synced, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path`, in place of any file there. Raises OSError, and then leaves `path` as it was."""
    with staged(path.parent, data) as temporary:
        temporary.replace(path)
    sync_name(path.parent)


@contextmanager
def staged(directory: Path, data: bytes, name: str | None = None) -> Iterator[Path]:
    """A synced file with `data` in `directory`, hidden, and gone again at the end. Its mode follows the umask."""
    temporary = directory / (name or hidden_name())
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(OSError):  # renamed away; or the file was never made
            temporary.unlink()


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
