"""Writes folders completely or not at all: to a temporary folder next to the final one, synced, and renamed."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdcli.errors import OutputError, OutputExists
from sdcli.files import atomic

_ERRNO = re.compile(r"\(os error (\d+)\)")


def check(folder: str, *, force: bool, known: Container[str]) -> None:
    """Raise OutputExists or OutputError if `folder` cannot be written.

    It can be missing, an empty directory or, with `force`, a directory that only has `known` names, which is replaced
    with everything inside.
    """
    final = _final(folder)
    if final == Path.cwd():
        raise OutputExists(f"{folder} is the current directory", "give the name of a new directory inside it")
    try:
        if not final.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        inside = sorted(each.name for each in final.iterdir()) if os.path.lexists(final) else []
    except NotADirectoryError:
        raise OutputExists(f"{folder} is a file", "choose another name, or remove it") from None
    except OSError as error:
        raise _cannot_write(folder, final.parent, error) from error
    if inside and not force:
        raise OutputExists(f"{folder} already exists and is not empty", "choose another name, or replace it: --force")
    unknown = [name for name in inside if name not in known]
    if unknown:
        raise OutputExists(
            f"{folder} has a file that --force would not replace: {unknown[0]}",
            "choose another name, or delete the directory",
        )


@contextmanager
def written(folder: str, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory, which is renamed to `folder` at the end, or deleted if the block raises.

    Call `check` first. Raises OutputExists if another process has written to `folder` meanwhile, and OutputError for an
    OSError in the block.
    """
    final = _final(folder)
    staged = final.parent / atomic.hidden_name()
    try:
        try:
            staged.mkdir()
            yield staged
            for each in (*staged.rglob("*"), staged):
                atomic.sync(each)
            _put(staged, final, force)
            atomic.sync(final.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputExists(f"{folder} already exists and is not empty", "choose another name") from error
        raise _cannot_write(folder, final.parent, error) from error


def os_error(error: Exception) -> OSError | None:
    """Return the OSError in the message of an exception of a Rust library, or None."""
    found = _ERRNO.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _final(folder: str) -> Path:
    return Path(os.path.realpath(folder))


def _put(staged: Path, final: Path, force: bool) -> None:
    """Rename `staged` to `final`, replacing an empty directory or, with `force`, any directory."""
    if not (force and final.is_dir() and any(final.iterdir())):
        staged.rename(final)  # fails if the directory is not empty
        return
    old = staged.with_suffix(".old")
    final.rename(old)
    try:
        staged.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _cannot_write(folder: str, parent: Path, error: OSError) -> OutputError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            hint = "free some space, or choose another disk"
        case errno.ENOENT:
            hint = f"create the directory first: mkdir -p {shlex.quote(str(parent))}"
        case _:
            hint = "choose a directory that you can write to"
    return OutputError(f"cannot write {folder}: {error.strerror}", hint)
