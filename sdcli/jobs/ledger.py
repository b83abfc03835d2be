"""Which jobs of a directory are done: one line of JSON for each picture, in a file beside the pictures.

A line is written, and synced, BEFORE its picture takes its name, and counts only while that name holds a file of the
line's SHA-256. So a process may be killed at any moment: a line without its picture says nothing, and a picture
without its line cannot be.
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
"""The file in which a picture is written before it takes its name."""


@dataclass(frozen=True)
class Ledger:
    """A ledger, locked against other processes while its file is open.

    `entries`: by a job's key, its picture's name and JSON line.
    """

    directory: Path
    file: BinaryIO | None
    entries: dict[str, tuple[str, Mapping[str, Any]]]


def seen(directory: Path) -> Ledger:
    """The ledger of `directory` as it stands, for reading alone: not made, not locked. Raises OutputError."""
    path = directory / NAME
    try:
        return Ledger(directory, None, _entries(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return Ledger(directory, None, {})
    except OSError as error:
        raise cannot_write(str(path), directory, error) from error


@contextmanager
def opened(directory: Path) -> Iterator[Ledger]:
    """The ledger of `directory`, both made where they are missing; what a killed batch left half-done is removed.

    Raises OutputError where that cannot be, or another process has it open.
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
            if data and not data.endswith(b"\n"):  # torn by a kill or a full disk
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
    """The name and the JSON line of the job `key`, if its picture is there as it was written."""
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
    """Write down that `name` is to be the picture of the job `key`, of which `line` is told. Raises OutputError."""
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
    """The last entry of each job; lines that are torn or are none of ours say nothing."""
    entries = {}
    for text in data.split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            said = json.loads(text)
            key, name, line = said["job"], said["name"], said["line"]
            if isinstance(key, str) and isinstance(name, str) and isinstance(line["sha256"], str) and "\0" not in name:
                entries[key] = name, line
    return entries


def _clear(directory: Path, entries: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Remove the staged file of a batch that was killed. The lock is held, so that it is nobody's any more."""
    for folder in {directory, *((directory / name).parent for name, _ in entries.values())}:
        with suppress(NotADirectoryError):
            (folder / STAGING).unlink(missing_ok=True)
