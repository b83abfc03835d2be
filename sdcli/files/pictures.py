"""Opens images: from a file's bytes to an upright image with 8 bits per channel. Knows PIL and numpy, no models."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sdcli.errors import InputError
from sdcli.files.metadata import decoding, file_bytes

MAX_PIXELS = 178_956_970
"""The size that Pillow rejects as a decompression bomb: twice its MAX_IMAGE_PIXELS."""


def upright(image: Image.Image) -> Image.Image:
    """Convert `image` to 8-bit RGB, or RGBA if it can have transparency, rotated according to its EXIF data.

    16-bit greys are rounded to 8 bits. Raises InputError for floating-point pixels, whose range is unknown.
    """
    transparent = image.has_transparency_data
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError("the image has floating-point pixels", "save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        greys, clear = np.asarray(image).astype(np.float64), image.info.get("transparency")
        image = Image.fromarray((greys.clip(0, 65535) / 257).round().astype(np.uint8))
        if transparent:
            image.putalpha(Image.fromarray(np.uint8(255) * (greys != clear)))
    return image.convert("RGBA" if transparent else "RGB")


def mask_of(picture: Image.Image) -> Image.Image:
    """Convert a mask, upright RGB or RGBA, to greys; transparent pixels become black."""
    if picture.mode == "RGBA":
        black = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(black, picture)
    return picture.convert("L")


def open_picture(
    path: str,
    recorded: str | None,
    convert: Callable[[Image.Image], Image.Image] = upright,
    directory: Path = Path(),
) -> tuple[Image.Image, str]:
    """Open the image at `path`, apply `convert`, and return it with the sha256 of its file.

    A relative path is relative to `directory`. Raises InputError for a file that is not an image, or differs from the
    `recorded` sha256.
    """
    data = file_bytes(path, directory)
    digest = hashlib.sha256(data).hexdigest()
    if recorded is not None and digest != recorded:
        raise InputError(f"{path} has changed since the recipe was made", f"give the file with the sha256 {recorded}")
    return decode(data, path, convert), digest


def decode(data: bytes, name: str, convert: Callable[[Image.Image], Image.Image] = upright) -> Image.Image:
    """Decode an image and apply `convert`; `name` is its name in errors."""
    if not data:
        raise InputError(f"{name} is empty", "give a PNG, JPEG or WebP file")
    with decoding(name), Image.open(BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
        return convert(image)


def check_whole(picture: Image.Image, unit: int, name: str) -> None:
    """Raise InputError, with the nearest sizes in the hint, unless the sides are multiples of `unit` pixels."""
    sizes = {tuple(max(steps(side / unit), 1) * unit for side in picture.size) for steps in (math.floor, math.ceil)}
    if sizes != {picture.size}:
        nearest = " and ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise InputError(
            f"{name} is {picture.width}×{picture.height}, and this model's latents cover {unit} pixels per side",
            f"crop or resize it; the nearest sizes are {nearest}",
        )
