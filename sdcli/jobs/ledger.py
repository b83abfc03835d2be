"""Records which jobs of a directory are done: one JSON line per picture, in a file next to the pictures.

A line is written and synced BEFORE its picture is renamed to its final name, and counts only if that file has the
recorded SHA-256. A process can therefore be killed at any time: a line without its picture is ignored, and there is
never a picture without its line.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sdcli.errors import OutputError
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
        directory.mkdir(parents=True, exist_ok=True)
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
    """Record that `name` will be the picture of the job `key`, with its JSON line. Raises OutputError."""
    assert ledger.file is not None
    text = json.dumps({"job": key, "name": name, "line": line}, allow_nan=False)
    try:
        _append(ledger.file, text.encode() + b"\n")
    except OSError as error:
        raise cannot_write(str(ledger.directory / NAME), ledger.directory, error) from error
    ledger.entries[key] = name, line


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
    """Delete the temporary files of a killed batch. The lock is held, so no other process uses them."""
    for folder in {directory, *((directory / name).parent for name, _ in entries.values())}:
        with suppress(NotADirectoryError):
            (folder / STAGING).unlink(missing_ok=True)
