"""A user's own pictures in the hub's imagefolder convention: images, and a metadata.jsonl with their texts.

Reads only the metadata, and checks that the files exist. Imports no large libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import InputError

FILE, TEXT, MAP = "file_name", "text", "map_file_name"
EXAMPLE = f'an example of a line: {{"{FILE}": "fox.png", "{TEXT}": "a fox in the snow"}}'


@dataclass(frozen=True)
class Row:
    """One line of the metadata: the image, its text, its segmentation map if requested, and the line's position."""

    image: Path
    text: str
    segmentation: Path | None
    metadata: Path
    line: int


def where(row: Row) -> str:
    """Return the file and the line number of a row, for error messages."""
    return f"{row.metadata} line {row.line}"


def read_rows(folder: Path, *, texts: bool = True, maps: bool = False) -> list[Row]:
    """Read FOLDER/metadata.jsonl, or FOLDER/train/metadata.jsonl.

    `texts` and `maps` require a text or a map in each line. Raises InputError with the line number if something is
    missing.
    """
    found = [path for path in (folder / "metadata.jsonl", folder / "train" / "metadata.jsonl") if path.is_file()]
    if not found:
        raise InputError(f"there is no metadata.jsonl in {folder}", EXAMPLE)
    try:
        lines = found[0].read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {found[0]}: {error}", "it must be UTF-8 text with one JSON object per line"
        ) from error
    rows = [_row(found[0], number, line, texts, maps) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{found[0]} has no lines", EXAMPLE)
    return rows


def _row(metadata: Path, number: int, line: str, texts: bool, maps: bool) -> Row:
    place = f"{metadata} line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error}", EXAMPLE) from error
    if not isinstance(entry, dict):
        raise InputError(f"{place}: not a JSON object", EXAMPLE)
    text = entry.get(TEXT, "" if not texts else None)
    if not isinstance(text, str):
        raise InputError(f'{place}: no "{TEXT}"' if text is None else f'{place}: "{TEXT}" is not a string', EXAMPLE)
    image = _file(metadata, place, entry, FILE)
    return Row(image, text, _file(metadata, place, entry, MAP) if maps else None, metadata, number)


def _file(metadata: Path, place: str, entry: Mapping[str, Any], key: str) -> Path:
    name = entry.get(key)
    if not isinstance(name, str):
        raise InputError(f'{place}: no "{key}"', EXAMPLE)
    path = metadata.parent / name
    if not path.is_file():
        raise InputError(f"{place}: there is no file {path}", "paths are relative to the metadata's folder")
    return path
