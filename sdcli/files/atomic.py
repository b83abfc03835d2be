"""Writes files completely or not at all: to a temporary file next to the final one, synced, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_NO_SUCH_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP})
_DISK_FAILS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
_HERE, _NOREPLACE = -100, 1
"""AT_FDCWD and RENAME_NOREPLACE of Linux."""


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
    """Make the names in `directory` last. Raises OSError if the disk fails.

    Some file systems cannot do it, and a directory may be writable but not readable; the files are whole all the same.
    """
    try:
        sync(directory)
    except OSError as error:
        if error.errno in _DISK_FAILS:
            raise


def make_directories(directory: Path) -> None:
    """Create `directory` and its parents, so that their names last. Raises OSError."""
    missing = []
    while not os.path.lexists(directory):
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)  # another process may create it too
        sync_name(each.parent)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def link(temporary: Path, path: Path) -> None:
    """Give the file at `temporary` the name `path`; raises FileExistsError if that exists, and OSError.

    Without hard links, as on exFAT, it is renamed by the system call that does not overwrite. Where there is none
    either, an empty file reserves the name for a moment.
    """
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if not _renamed(temporary, path):
            path.open("xb").close()
            try:
                temporary.replace(path)
            except BaseException:
                path.unlink()
                raise


def _renamed(temporary: Path, path: Path) -> bool:
    """Rename without overwriting by Linux's renameat2; False where it does not exist or the file system lacks it."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(temporary), _HERE, os.fsencode(path), _NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SUCH_RENAME:
        return False
    raise OSError(number, os.strerror(number), str(path))
