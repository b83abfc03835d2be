"""The SHA-256 of a file. Large files are hashed once: the result is kept in the user's cache directory.

A file is unchanged if its path, size, modification time and inode are the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdcli.files import atomic
from sdcli.files.user_files import cache_folder

WORTH_REMEMBERING = 1024**2  # bytes; smaller files are hashed every time

_HEX = frozenset("0123456789abcdef")
_SETTLED = 2.0  # seconds; a file can change again within the resolution of its time stamp


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, from the cache if it is large and unchanged. Raises OSError."""
    return _known_or(_hash, path, "")


def tensors_sha256(path: Path) -> str:
    """Return the SHA-256 of a `.safetensors` file without its header, as kohya's scripts and A1111 hash LoRAs.

    Raises OSError.
    """
    return _known_or(_hash_tensors, path, "tensors of ")


def _known_or(hash_file: Callable[[Path], str], path: Path, what: str) -> str:
    """Return what `hash_file` gives, from the cache if the file is large and unchanged; `what` tells results apart."""
    real = path.resolve()
    before = real.stat()
    if before.st_size < WORTH_REMEMBERING:
        return hash_file(real)
    stamp = f"{before.st_size} {before.st_mtime_ns} {before.st_ino}"
    note = cache_folder() / "digests" / hashlib.sha256(what.encode() + os.fsencode(real)).hexdigest()
    known = _remembered(note, stamp)
    if known is not None:
        return known
    digest = hash_file(real)
    after = real.stat()
    unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if unchanged and time.time() - before.st_mtime > _SETTLED:
        _remember(note, f"{digest} {stamp}\n")
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_tensors(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(note: Path, stamp: str) -> str | None:
    """Return the cached digest for this stamp, or None."""
    try:
        digest, _, found = note.read_text(encoding="ascii").strip().partition(" ")
    except (OSError, ValueError):
        return None
    return digest if found == stamp and len(digest) == 64 and set(digest) <= _HEX else None


def _remember(note: Path, text: str) -> None:
    """Write a digest to the cache. A failure is ignored."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(note, text.encode("ascii"))
