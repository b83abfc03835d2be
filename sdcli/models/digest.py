"""What a model is, whatever it is called: one SHA-256 over the files that determine its pictures. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from sdcli.errors import ModelCorrupt
from sdcli.models.source import Source

WORTH_REMEMBERING = 1024**2  # bytes; hashing less takes no longer than looking it up

_HEX = frozenset("0123456789abcdef")
_SETTLED = 2.0  # seconds; a file may change again within the resolution of its time stamp


def model_digest(source: Source) -> str:
    """The digest, 64 hex digits, of a model.

    Of a single file it is the SHA-256 of the file. Of a diffusers folder it is the SHA-256 of what `sha256sum` prints
    for its model_index.json, its classes.json where it has one, and the configs, vocabularies and weights in the
    folders of its parts, by their names relative to the folder in sorted order; neither the folder's own name nor
    anything else in it matters. A part that comes from elsewhere counts as if it lay in the folder, in place of the one
    that is there: a composed model has the digest of the folder that holds the same files. A single file with such
    parts is one file more in that list. A ControlNet's config and weights lie in its folder itself.

    Large files are hashed once: what came out is kept in the user's cache directory, by path, size and time stamp.
    Raises ModelNotFound where there is nothing, and ModelCorrupt where a file cannot be read.
    """
    source.check()
    try:
        if source.is_file and not source.parts:
            return file_sha256(source.path)
        listing = "".join(f"{file_sha256(file)}  {name}\n" for name, file in sorted(source.files().items()))
    except OSError as error:
        raise ModelCorrupt(
            f"{error.filename or source.path} cannot be read: {error.strerror}",
            "check the model's files and permissions",
        ) from error
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256, in hex, of a file, from the cache if it is large and unchanged. Raises OSError."""
    real = path.resolve()
    before = real.stat()
    if before.st_size < WORTH_REMEMBERING:
        return _hash(real)
    stamp = f"{before.st_size} {before.st_mtime_ns} {before.st_ino}"
    note = _cache_directory() / hashlib.sha256(os.fsencode(real)).hexdigest()
    known = _remembered(note, stamp)
    if known is not None:
        return known
    digest = _hash(real)
    after = real.stat()
    unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if unchanged and time.time() - before.st_mtime > _SETTLED:
        _remember(note, f"{digest} {stamp}\n")
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_directory() -> Path:
    """`sdcli/digests` in the XDG cache directory, which is absolute or not heeded (XDG Base Directory 0.8)."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "sdcli" / "digests"


def _remembered(note: Path, stamp: str) -> str | None:
    """The digest in a note of the cache, None where there is none for this stamp, or the note is damaged."""
    try:
        digest, _, found = note.read_text(encoding="ascii").strip().partition(" ")
    except (OSError, ValueError):
        return None
    return digest if found == stamp and len(digest) == 64 and set(digest) <= _HEX else None


def _remember(note: Path, text: str) -> None:
    """Write a note, whole or not at all. The cache saves time and nothing else, so that failing to is no error."""
    temporary = note.with_name(f"{note.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="ascii")
            temporary.replace(note)
        finally:
            temporary.unlink(missing_ok=True)
