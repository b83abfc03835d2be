"""Records which jobs of a directory are done: one JSON line per picture, in a file next to the pictures.

A line is written and synced BEFORE its picture is renamed to its final name, and counts only if that file has the
recorded SHA-256. A process can therefore be killed at any time: a line without its picture is ignored, and there is
never a picture without its line.

The directory can be removed or replaced while a batch runs. Nothing is written then, because a new ledger there would
know nothing of this batch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from sdcli.errors import OutputError
from sdcli.files import atomic
from sdcli.files.outputs import cannot_write

NAME = ".sdcli-batch.jsonl"
STAGING = ".sdcli-batch.tmp"
"""The temporary file that a picture is written to."""


@dataclass(frozen=True)
class Ledger:
    """A ledger, locked against other processes while its file is open.

    `entries` maps a job's key to the name of its picture and its JSON line.
    """

    directory: Path
    file: BinaryIO | None
    entries: dict[str, tuple[str, Mapping[str, Any]]]


def peek(directory: Path) -> Ledger:
    """Read the ledger of `directory` without creating or locking it. Raises OutputError."""
    path = directory / NAME
    try:
        return Ledger(directory, None, _entries(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return Ledger(directory, None, {})
    except OSError as error:
        raise cannot_write(str(path), directory, error) from error


@contextmanager
def opened(directory: Path) -> Iterator[Ledger]:
    """Open the ledger of `directory`, creating both if needed, and delete temporary files of a killed batch.

    Raises OutputError if that fails, or if another process has it open.
    """
    path = directory / NAME
    try:
        atomic.make_directories(directory)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise cannot_write(str(path), directory, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            data = file.read()
            entries = _entries(data)
            if data and not data.endswith(b"\n"):  # incomplete because of a kill or a full disk
                _append(file, b"\n")
            _clear(directory, entries)
        except BlockingIOError as error:
            raise OutputError(
                f"another sdcli batch is writing to {directory}", "wait for it, or choose another directory with -o"
            ) from error
        except OSError as error:
            raise cannot_write(str(path), directory, error) from error
        yield Ledger(directory, file, entries)


def finished(ledger: Ledger, key: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name and the JSON line of the job `key`, if its picture exists and is unchanged."""
    entry = ledger.entries.get(key)
    if entry is None:
        return None
    name, line = entry
    try:
        with (ledger.directory / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    return entry if digest == line["sha256"] else None


def record(ledger: Ledger, key: str, name: str, line: Mapping[str, Any]) -> None:
    """Record that `name` will be the picture of the job `key`, with its JSON line.

    Raises OutputError, also if the batch's directory is not the one that it began with.
    """
    assert ledger.file is not None
    check_in_place(ledger)
    text = json.dumps({"job": key, "name": name, "line": line}, allow_nan=False)
    try:
        _append(ledger.file, text.encode() + b"\n")
    except OSError as error:
        raise cannot_write(str(ledger.directory / NAME), ledger.directory, error) from error
    ledger.entries[key] = name, line


def check_in_place(ledger: Ledger) -> None:
    """Raise OutputError if the batch's directory was removed or replaced since it was opened."""
    assert ledger.file is not None
    try:
        there, ours = (ledger.directory / NAME).stat(), os.fstat(ledger.file.fileno())
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return
    except OSError:
        pass
    raise OutputError(
        f"{ledger.directory} was removed or replaced while the batch was running",
        "run the same command again: it makes the pictures that are missing there",
    )


def make_folder(ledger: Ledger, name: str) -> None:
    """Create the directories of `name` inside the batch's directory, but never that one again.

    Raises OSError, and OutputError for a directory that was removed or replaced.
    """
    check_in_place(ledger)
    folder = ledger.directory
    for part in PurePath(name).parent.parts:
        if not (folder / part).is_dir():
            (folder / part).mkdir()
            atomic.sync_name(folder)
        folder /= part


def _append(file: BinaryIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
    os.fsync(file.fileno())


def _entries(data: bytes) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the last entry of each job; invalid lines are ignored."""
    entries = {}
    for text in data.split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(text)
            key, name, line = entry["job"], entry["name"], entry["line"]
            if isinstance(key, str) and isinstance(name, str) and isinstance(line["sha256"], str) and "\0" not in name:
                entries[key] = name, line
    return entries


def _clear(directory: Path, entries: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Delete what a killed batch left: temporary files, and empty ones that reserved a name without hard links.

    The lock is held, so no other process uses them.
    """
    for folder in {directory, *((directory / name).parent for name, _ in entries.values())}:
        with suppress(NotADirectoryError):
            (folder / STAGING).unlink(missing_ok=True)
    for name, _ in entries.values():
        with suppress(OSError):
            path = directory / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size == 0:
                path.unlink()
