"""A finished picture, made in this process or in another one. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Self

from sdcli.models.addons import embedding, lora
from sdcli.models.digest import tensors_sha256
from sdcli.models.weights import Weights
from sdcli.planning.memory import MemoryPlan
from sdcli.recipe.parts import MAX_SIDE
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

    from sdcli.diffusion.finish import Result


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_SIDE = 4 * MAX_SIDE
"""Pixels; an image that is edited keeps its size, which can be larger than the size that is worked at."""


@dataclass(frozen=True)
class Picture:
    """A finished picture as the bytes of its file. `recipe` makes it again; `seconds` is its time without loading."""

    png: bytes
    pixels_sha256: str
    recipe: Recipe
    seconds: float
    warnings: tuple[str, ...] = ()
    flat: str | None = None
    """The warning about a picture of a single colour, or nearly so; it is also in `warnings`."""
    latents: bytes = b""
    """The file of its latents, as --save-latents writes it."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted into memory: `staged`, `offload` and `tiling` (see sdcli/planning/memory.py)."""

    @classmethod
    def of(cls, result: Result, weights: Weights, plan: MemoryPlan | None = None) -> Self:
        """Make a picture from a result of the pipeline that ran by `plan`."""
        from sdcli.files import images, latent_files, metadata

        extra = weights.metadata() | ({} if result.batch is None else {"batch": result.batch})
        latents = latent_files.file_of(
            result.latents,
            weights.model.sha256,
            model=result.recipe.model,
            scaling_factor=result.scaling_factor,
            recipe=result.recipe,
        )
        return cls(
            png=metadata.png_bytes(result.image, result.recipe, extra=extra, hashes=_hashes(weights)),
            pixels_sha256=images.pixels_sha256(result.image),
            recipe=result.recipe,
            seconds=result.seconds,
            warnings=result.warnings,
            flat=result.flat,
            latents=latents,
            memory={} if plan is None else plan.to_dict(),
        )

    @property
    def image(self) -> Image.Image:
        """The pixels; the PNG is decoded in each call."""
        from PIL import Image

        with Image.open(BytesIO(self.png)) as image:
            image.load()
        return image

    def save(self, path: str | PathLike[str], *, force: bool = False) -> str:
        """Write the PNG, with the recipe in its metadata, completely or not at all, and return the path.

        Raises OutputExists if the file exists and `force` is not set, and OutputError if it cannot be written.
        """
        from sdcli.files import outputs

        return outputs.write(outputs.Destination(fspath(path), force=force), self.png)

    def to_wire(self) -> dict[str, Any]:
        """Convert to JSON for `from_wire`."""
        return {
            "png": b64encode(self.png).decode(),
            "sha256": hashlib.sha256(self.png).hexdigest(),
            "pixels_sha256": self.pixels_sha256,
            "recipe": self.recipe.to_dict(),
            "seconds": self.seconds,
            "warnings": self.warnings,
            "flat": self.flat,
            "latents": b64encode(self.latents).decode(),
            "memory": self.memory,
        }

    @classmethod
    def from_wire(cls, recorded: Mapping[str, Any]) -> Self:
        """Convert from the JSON of `to_wire`. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls(
            png=b64decode(recorded["png"], validate=True),
            pixels_sha256=recorded["pixels_sha256"],
            recipe=Recipe.from_dict(recorded["recipe"]),
            seconds=recorded["seconds"],
            warnings=tuple(recorded["warnings"]),
            flat=recorded["flat"],
            latents=b64decode(recorded["latents"], validate=True),
            memory=dict(recorded["memory"]),
        )
        texts = [made.pixels_sha256, *made.warnings, *([] if made.flat is None else [made.flat])]
        if not all(isinstance(each, str) for each in texts) or not isinstance(made.seconds, int | float):
            raise TypeError("a value of a picture has another type")
        if not re.fullmatch(r"[0-9a-f]{64}", made.pixels_sha256) or not 0 <= made.seconds < math.inf:
            raise ValueError("a value of a picture is out of range")
        if hashlib.sha256(made.png).hexdigest() != recorded["sha256"]:
            raise ValueError("the picture has another sha256 than its line says")
        check_png(made.png)
        return made


def check_png(data: bytes) -> None:
    """Raise ValueError for anything but a whole PNG: its chunks, their checksums, and pixels of a size that can be."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("it is not a PNG")
    place, kinds = len(_SIGNATURE), []
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        body, end = data[place + 4 : place + 8 + length], place + 8 + length
        if len(body) != 4 + length or data[end : end + 4] != struct.pack(">I", zlib.crc32(body)):
            raise ValueError("a chunk of the PNG is damaged")
        kinds.append(kind)
        place += 12 + length
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds or len(data) < 24:
        raise ValueError("the PNG lacks a chunk")
    if not all(1 <= side <= MAX_PNG_SIDE for side in struct.unpack_from(">II", data, 16)):
        raise ValueError("the PNG has an impossible size")


def _hashes(weights: Weights) -> dict[str, dict[str, str]]:
    """Return Automatic1111's hashes of LoRAs, which do not include the header, and of embeddings, by its fields."""
    return {
        "Lora hashes": {each.name: tensors_sha256(each.source.path) for each in weights.of_kind(lora.KIND)},
        "TI hashes": {each.name: each.source.sha256 for each in weights.of_kind(embedding.KIND)},
    }
