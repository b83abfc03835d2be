"""Metadata of a picture that was enlarged after it was made: what its file had, and how it was enlarged.

AUTOMATIC1111's web UI adds `Postprocess upscale by` and `Postprocess upscaler` to the fields of a recipe, or writes
them as the text `postprocessing` of a picture without one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from sdcli.errors import InputError
from sdcli.files import infotext, metadata, png_chunks
from sdcli.files.metadata import PictureInfo

CHUNK_KEY = metadata.UPSCALED


@dataclass(frozen=True)
class Upscaling:
    """How a picture was enlarged: the upscaler's name, the SHA-256 of its file, and the sizes before and after."""

    upscaler: str
    sha256: str | None
    size_before: tuple[int, int]
    size: tuple[int, int]
    factor: float | None = None
    """The factor that was asked for, if no size was."""
    tile: int | None = None
    execution: Mapping[str, str] | None = None
    """The device and the dtype of a network."""

    @property
    def fields(self) -> str:
        """The fields that A1111 writes."""
        if self.factor is None:
            first = f"Postprocess upscale to: {self.size[0]}x{self.size[1]}"
        else:
            first = f"Postprocess upscale by: {self.factor:g}"
        name = "Lanczos" if self.sha256 is None else self.upscaler
        return f"{first}, Postprocess upscaler: {infotext.quote(name)}"

    def to_dict(self, pixels_sha256: str) -> dict[str, Any]:
        """Return the entry of sdcli's chunk; `pixels_sha256` is the digest of the pixels before."""
        found = {
            "upscaler": self.upscaler,
            "sha256": self.sha256,
            "from": list(self.size_before),
            "to": list(self.size),
            "tile": self.tile,
            **(self.execution or {}),
            "pixels_sha256": pixels_sha256,
        }
        return {key: value for key, value in found.items() if value is not None}


def read(name: str, data: bytes) -> tuple[PictureInfo | None, str | None]:
    """Return the metadata of a picture that can be decoded, or None and why they cannot be read."""
    try:
        return metadata.read(name, data), None
    except InputError as error:
        return None, f"{error.message}, and was skipped"


def texts(found: PictureInfo | None, data: bytes, how: Upscaling, pixels_sha256: str) -> dict[str, str]:
    """Return the texts of an enlarged picture's PNG by their keywords: those of the file, and how it was enlarged.

    `pixels_sha256` is the digest of the new pixels.
    """
    if found is None:
        return {"postprocessing": how.fields}
    kept = _texts_of(data) if found.format == "PNG" else {}
    if found.chunk:
        before = found.chunk.get(CHUNK_KEY)
        done = [*(before if isinstance(before, list) else []), how.to_dict(found.pixels_sha256)]
        kept["sdcli"] = json.dumps({**found.chunk, CHUNK_KEY: done, "pixels_sha256": pixels_sha256})
    if found.parameters is not None and "Steps" in found.fields:
        kept["parameters"] = f"{found.parameters.rstrip()}, {how.fields}"
    else:
        before_that = kept.get("postprocessing")
        kept["postprocessing"] = f"{before_that}, {how.fields}" if before_that else how.fields
    return kept


def _texts_of(data: bytes) -> dict[str, str]:
    with Image.open(BytesIO(png_chunks.clean(data).data)) as image:
        found = dict(getattr(image, "text", {}))
    return {key: str(value) for key, value in found.items() if isinstance(value, str)}


def pixels_before(chunk: Mapping[str, Any]) -> str | None:
    """Return the digest of the pixels before a picture was enlarged, from sdcli's chunk; None if it was not."""
    listed = chunk.get(CHUNK_KEY)
    first = listed[0] if isinstance(listed, list) and listed else None
    digest = first.get("pixels_sha256") if isinstance(first, dict) else None
    return digest if isinstance(digest, str) else None


def described(chunk: Mapping[str, Any]) -> list[str]:
    """Return a line about each time that a picture was enlarged."""
    listed = chunk.get(CHUNK_KEY)
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [f"{_size(each.get('from'))} to {_size(each.get('to'))} by {each.get('upscaler')}" for each in entries]


def _size(sides: Any) -> str:
    return "x".join(map(str, sides)) if isinstance(sides, list) else "unknown"
