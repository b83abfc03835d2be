"""A user's own pictures: images, with their texts in a metadata.jsonl (the hub's imagefolder convention) or in a text
file next to each.

Reads only the texts, and checks that the files exist. Imports no large libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli.errors import InputError

FILE, TEXT, MAP = "file_name", "text", "map_file_name"
METADATA, TEXTS = "metadata.jsonl", ".txt"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
EXAMPLE = f'an example of a line: {{"{FILE}": "fox.png", "{TEXT}": "a fox in the snow"}}'


@dataclass(frozen=True)
class Row:
    """An image, its text, its segmentation map if requested, and where they are listed: a line of the metadata (0: the
    image itself)."""

    image: Path
    text: str
    segmentation: Path | None
    metadata: Path
    line: int


def where(row: Row) -> str:
    """Return the file, and the line number of a row if it has one, for error messages."""
    return f"{row.metadata} line {row.line}" if row.line else str(row.metadata)


def read_rows(folder: Path, *, texts: bool = True, maps: bool = False, text: str | None = None) -> list[Row]:
    """Read FOLDER/metadata.jsonl or FOLDER/train/metadata.jsonl, or else the images in FOLDER with their text files.

    `texts` and `maps` require a text or a map of each image, and `text` replaces all texts. Raises InputError, with the
    line number if there is one, if something is missing.
    """
    rows = _read(folder, texts and text is None, maps)
    return rows if text is None else [replace(row, text=text) for row in rows]


def _read(folder: Path, texts: bool, maps: bool) -> list[Row]:
    found = [path for path in (folder / METADATA, folder / "train" / METADATA) if path.is_file()]
    if not found:
        images = [] if maps or not folder.is_dir() else sorted(each for each in folder.iterdir() if _is_image(each))
        if not images:
            what = "" if maps else " and no image"
            raise InputError(f"there is no {METADATA}{what} in {folder}", EXAMPLE)
        return [Row(each, _text_of(each, texts), None, each, 0) for each in images]
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


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _text_of(image: Path, required: bool) -> str:
    file = image.with_suffix(TEXTS)
    if not file.is_file():
        if not required:
            return ""
        raise InputError(
            f"{image} has no text: there is no {file.name} next to it", f"or write a {METADATA}; {EXAMPLE}"
        )
    try:
        return " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}", "it must be UTF-8 text") from error


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
