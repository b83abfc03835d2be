"""Writes a sheet as one page for a browser, which requests nothing: pictures, styles and code are inside it.

Pictures are in chunks of JSON at the end of the page, which a browser skips until they are shown.
"""

from __future__ import annotations

import html
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdcli.files.templates import fill, script_json
from sdcli.making.sheets.axes import Arrangement
from sdcli.making.sheets.entries import Entry

PER_CHUNK = 50
_SIDES = ((60, 1024), (300, 640), (1200, 384), (4000, 256))
_LEAST_SIDE = 160
_HERE = Path(__file__).parent


def side_for(count: int) -> int:
    """Return the side of the pictures inside a page of `count`, so that the page has some tens of megabytes."""
    return next((side for most, side in _SIDES if count <= most), _LEAST_SIDE)


def page(entries: Sequence[Entry], arranged: Arrangement, path: str) -> Iterator[bytes]:
    """Yield the parts of the page that is written to `path`. The entries have their pictures as WebP."""
    style, script = (_HERE.joinpath(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    template = _HERE.joinpath("page.html").read_text(encoding="utf-8")
    count = f"{len(entries):,} pictures" if len(entries) > 1 else "1 picture"
    varied = [each.replace("_", " ") for each in arranged.axes]
    filled = {
        "title": html.escape(count + (f" by {', '.join(varied)}" if varied else "")),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": script_json(_data(entries, arranged, path)),
    }
    before, after = template.split("{{chunks}}")
    yield fill(before, filled).encode()
    for number, start in enumerate(range(0, len(entries), PER_CHUNK)):
        inside = [[b64encode(each.webp).decode(), each.command] for each in entries[start : start + PER_CHUNK]]
        yield f'<script type="application/json" id="chunk-{number}">{script_json(inside)}</script>\n'.encode()
    yield after.encode()


def _data(entries: Sequence[Entry], arranged: Arrangement, path: str) -> dict[str, Any]:
    differing = [key for key in arranged.differing if any(key in each.values for each in entries)]
    first = entries[0].values
    everywhere = {key for key in first if all(key in each.values for each in entries)}
    shared = {key: value for key, value in first.items() if key in everywhere and key not in differing}
    shared = {key: value for key, value in shared.items() if not key.endswith("_sha256")}
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120  a text, as given
    return {
        "shared": shared,
        "differing": differing,
        "per_chunk": PER_CHUNK,
        "aspect": min(max(each.size[1] / each.size[0] for each in entries), 1.6),
        "pictures": [
            _picture(each, caption, shared, folder) for each, caption in zip(entries, arranged.captions, strict=True)
        ],
        "blocks": [
            {
                "heading": block.heading,
                "rows": block.rows,
                "columns": block.columns,
                "cells": [[row, column, inside] for (row, column), inside in block.cells.items()],
            }
            for block in arranged.blocks
        ],
    }


def _picture(entry: Entry, caption: str, shared: Mapping[str, Any], folder: str) -> dict[str, Any]:
    return {
        "name": Path(entry.path).name,
        "href": quote(os.fsencode(os.path.relpath(entry.path, folder))),
        "width": entry.size[0],
        "height": entry.size[1],
        "writer": entry.writer,
        "caption": caption,
        "values": {key: value for key, value in entry.values.items() if key not in shared},
    }


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
