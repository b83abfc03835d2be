"""Folders of files that are written whole or not at all: beside their final place, synced, and renamed."""

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
    """Raise OutputExists or OutputError where `folder` cannot be written.

    What is there already must be an empty directory, or with `force` one that holds nothing but `known` names: it is
    replaced as a whole, and with it everything inside.
    """
    final = _final(folder)
    if final == Path.cwd():
        raise OutputExists(f"{folder} is the current directory", "give a name for a new one inside it")
    try:
        if not final.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        inside = sorted(each.name for each in final.iterdir()) if os.path.lexists(final) else []
    except NotADirectoryError:
        raise OutputExists(f"{folder} is a file", "choose another name, or remove it") from None
    except OSError as error:
        raise _cannot_write(folder, final.parent, error) from error
    if inside and not force:
        raise OutputExists(f"{folder} exists already, and is not empty", "choose another name, or replace it: --force")
    strangers = [name for name in inside if name not in known]
    if strangers:
        raise OutputExists(
            f"{folder} holds more than --force would write anew: {strangers[0]}",
            "choose another name, or remove the directory yourself",
        )


@contextmanager
def written(folder: str, *, force: bool = False) -> Iterator[Path]:
    """An empty directory beside `folder`, which takes its place when the block ends, and is gone if the block raises.

    Checked before by `check`. Raises OutputExists where somebody else has written there meanwhile, and OutputError
    for whatever the operating system has against a write in the block.
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
            raise OutputExists(f"{folder} exists already, and is not empty", "choose another name") from error
        raise _cannot_write(folder, final.parent, error) from error


def os_error(error: Exception) -> OSError | None:
    """The error of the operating system that a library of Rust's tells of in words; None for any other."""
    found = _ERRNO.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _final(folder: str) -> Path:
    return Path(os.path.realpath(folder))


def _put(staged: Path, final: Path, force: bool) -> None:
    """Rename `staged` to `final`: over nothing, over an empty directory, or with `force` over what is there."""
    if not (force and final.is_dir() and any(final.iterdir())):
        staged.rename(final)  # refused by the system where something is inside by now
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
            hint = "free some space, or choose another place"
        case errno.ENOENT:
            hint = f"make the directory first: mkdir -p {shlex.quote(str(parent))}"
        case _:
            hint = "choose a place that you can write to"
    return OutputError(f"cannot write {folder}: {error.strerror}", hint)
