"""Copies the files of a model or an add-on to another machine, in pieces, to a folder of its cache.

The copy of a folder has the same names; parts from elsewhere are in it too, so that its digest is the original's. Files
are complete when they have their names: until then they end in `.part`, with the number of the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.models.registry import FILES
from sdcli.models.source import Source

PIECE = 16 * 1024**2  # bytes


@dataclass(frozen=True)
class Piece:
    """Bytes of a file from `offset` on; `name` is relative to the folder of the copy. The `last` completes it."""

    name: str
    offset: int
    data: bytes
    last: bool


def pieces(source: Source) -> Iterator[Piece]:
    """Yield the content of the files of `source`, one file after the other, PIECE bytes at a time. Raises OSError."""
    for name, path in _names(source).items():
        with path.open("rb") as file:
            offset, data = 0, file.read(PIECE)
            while True:
                after = file.read(PIECE)
                yield Piece(name, offset, data, not after)
                if not after:
                    break
                offset, data = offset + len(data), after


def write(folder: Path, piece: Piece) -> None:
    """Write a piece, as `pieces` yields them in order. Raises OSError, and ValueError for a name outside `folder`."""
    if Path(piece.name).is_absolute() or ".." in Path(piece.name).parts:
        raise ValueError(f"{piece.name} is outside the folder")
    final = folder / piece.name
    partial = final.with_name(f"{final.name}.{os.getpid()}.part")
    if piece.offset == 0:
        partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("r+b" if piece.offset else "wb") as file:
        file.seek(piece.offset)
        file.write(piece.data)
        if piece.last:
            file.flush()
            os.fsync(file.fileno())
    if piece.last:
        partial.replace(final)


def copy_of(source: Source, folder: Path) -> Source:
    """Return the location of the copy of `source` in `folder`, whether or not it is there."""
    path = folder / _single(source.path) if source.path.suffix in FILES else folder
    parts = tuple(
        (part, folder / part / place.name if place.suffix in FILES else folder / part) for part, place in source.parts
    )
    return replace(source, path=path, parts=parts)


def _single(path: Path) -> str:
    return f"model{path.suffix}"


def _names(source: Source) -> Mapping[str, Path]:
    """Return each file of `source` by its name in the folder of a copy."""
    found = dict(source.files())
    files = {part: place for part, place in source.parts if place.is_file()}
    named: dict[str, Path] = {}
    for name, path in found.items():
        part = name.partition("/")[0]
        if source.is_file and path == source.path:
            named[_single(path)] = path
        elif name == "model.yaml":
            named[f"model{path.suffix}"] = path
        elif name in files:
            named[f"{name}/{path.name}"] = path
        elif source.is_file and part not in dict(source.parts):  # the config next to a single file of a transformer
            named[path.name] = path
        else:
            named[name] = path
    return named
