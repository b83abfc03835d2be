"""Removes the chunks of a PNG that are not needed for its pixels and cannot be read. Knows nothing of PIL.

Pillow refuses a whole picture for a text chunk that is too long, or for EXIF data that are not TIFF. See "Portable
Network Graphics (PNG) Specification (Third Edition)", sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1024**2
MAX_TEXTS_BYTES = 32 * 1024**2
MAX_PROFILE_BYTES = 16 * 1024**2
TIFF = (b"II*\0", b"MM\0*")
"""How EXIF data start."""
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}


@dataclass(frozen=True)
class Cleaned:
    """A picture file, whose chunks can all be read.

    `profile` is the colour profile of a PNG; `skipped` says in words what was removed.
    """

    data: bytes
    profile: bytes | None = None
    animated: bool = False
    skipped: tuple[str, ...] = ()


def clean(data: bytes) -> Cleaned:
    """Remove the unreadable chunks, the frames after the first and the profile from a PNG; others are unchanged."""
    if not data.startswith(SIGNATURE):
        return Cleaned(data)
    kept, skipped = [data[: len(SIGNATURE)]], []
    profile, animated, room = None, False, MAX_TEXTS_BYTES
    for kind, body, whole in _chunks(data):
        problem = None
        if kind in _ANIMATION:
            animated = True
            continue
        if kind and kind[0] & 0x20:  # not needed for the pixels, but for tRNS
            if zlib.crc32(kind + body) != int.from_bytes(whole[-4:]):
                problem = "is damaged"
            elif kind == b"iCCP":
                profile, problem = _profile(body)
                if problem is None:
                    continue
            elif kind in _TEXTS:
                length = _text_length(kind, body)
                problem = "is damaged" if length < 0 else "is too long" if length > min(MAX_TEXT_BYTES, room) else None
                room -= max(length, 0) if problem is None else 0
            elif len(body) != _LENGTHS.get(kind, len(body)):
                problem = "is damaged"
            elif kind == b"eXIf" and body[:4] not in TIFF:
                problem = "is not EXIF data"
        if problem is None or kind == b"tRNS":
            kept.append(whole)
        else:
            skipped.append(f"its chunk {_name(kind, body)} {problem}")
    untouched = not skipped and profile is None and not animated
    return Cleaned(data if untouched else b"".join(kept), profile, animated, tuple(skipped))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield the kind, the body and all bytes of each chunk; last, whatever is no whole chunk, with an empty kind."""
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        yield kind, data[start + 8 : end - 4], data[start:end]
        start = end
        if kind == b"IEND":
            return
    yield b"", b"", data[start:]


def _name(kind: bytes, body: bytes) -> str:
    name = kind.decode("ascii", "backslashreplace")
    if kind not in _TEXTS:
        return name
    return f"{name} {body[:80].partition(bytes(1))[0].decode('latin-1')!r}"


def _profile(body: bytes) -> tuple[bytes | None, str | None]:
    """Return the profile in an iCCP chunk, or what is wrong with it."""
    _, found, packed = body.partition(b"\0")
    profile = _unpacked(packed[1:], MAX_PROFILE_BYTES) if found and packed[:1] == b"\0" else None
    if profile is None:
        return None, "is damaged"
    return (None, "is too long") if len(profile) > MAX_PROFILE_BYTES else (profile, None)


def _text_length(kind: bytes, body: bytes) -> int:
    """Return the length of a text after decompression, at most one more than the limit; -1 for a damaged chunk."""
    _, found, rest = body.partition(b"\0")
    if kind == b"tEXt":
        return len(body)
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        if len(rest) < 2 or rest[0] > 1:
            return -1
        packed = rest[0] == 1
        rest = rest[1:]
    if not packed:
        return len(rest)
    if not found or rest[:1] != b"\0":
        return -1
    rest = rest[1:]
    if kind == b"iTXt":
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]
    text = _unpacked(rest, MAX_TEXT_BYTES)
    return -1 if text is None else len(text)


def _unpacked(packed: bytes, most: int) -> bytes | None:
    """Decompress at most one byte more than `most`; None if the data are damaged or truncated."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, most + 1)
    except zlib.error:
        return None
    return data if stream.eof or len(data) > most else None
