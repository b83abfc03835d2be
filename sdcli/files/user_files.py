"""sdcli's own small files, such as the list of the user's models: written atomically, by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdcli.errors import OutputError
from sdcli.files import outputs


def user_folder(variable: str, fallback: str) -> Path:
    """Return sdcli's folder in a base directory of the XDG specification (`XDG_CONFIG_HOME` and others)."""
    base = os.environ.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "sdcli"


def home_path(path: str) -> Path:
    """Return a path with `~` replaced; that of an unknown user stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def from_home(path: str) -> str:
    """Return an absolute path below the user's home as `~/…`, which `home_path` reads; others stay as they are."""
    try:
        home = Path.home()
    except RuntimeError:
        return path
    begins = (f"{each}/" for each in (home, home.resolve()) if str(each) != "/")
    return next((f"~/{path[len(each) :]}" for each in begins if path.startswith(each)), path)


def stamp(path: Path) -> tuple[int, int] | None:
    """Return the modification time and size of a file, for caches of what is read from it; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def cache_folder() -> Path:
    """Return sdcli's folder in the user's cache directory."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Replace the text of `path` ("" if it does not exist) by `change(text)`, atomically.

    Concurrent writers see each other's changes. Raises OutputError if `path` cannot be written.
    """
    try:
        with locked(path.parent):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            outputs.write(outputs.Destination(str(path), force=True), change(text).encode())
    except (OSError, OutputError) as error:
        reason = error.message if isinstance(error, OutputError) else f"cannot write {path}: {error.strerror}"
        raise OutputError(reason, f"check that {path.parent} is writable and has free space") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes, creating it if needed; waits for the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
