"""sdcli's own small files, such as the list of a user's models: written whole, and by one writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdcli.errors import OutputError
from sdcli.files import outputs


def user_folder(variable: str, fallback: str) -> Path:
    """sdcli's folder in a base directory of the XDG specification (`XDG_CONFIG_HOME`, …), which must be absolute."""
    base = os.environ.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "sdcli"


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Replace the text of `path`, "" where there is none, by `change(text)`: whole, or not at all.

    Of several writers each sees what the one before it wrote. Raises OutputError where `path` cannot be written.
    """
    try:
        with locked(path.parent):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            outputs.write(outputs.Destination(str(path), force=True), change(text).encode())
    except (OSError, OutputError) as error:
        reason = error.message if isinstance(error, OutputError) else f"cannot write {path}: {error.strerror}"
        raise OutputError(reason, f"make {path.parent} a directory that you can write to, with space left") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made where it is missing, against every other process that asks the same; waits for its turn."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
