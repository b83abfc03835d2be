"""Opening pictures: bytes of a file become an upright picture of 8 bits a channel. Knows PIL and numpy, no models."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdcli.errors import InputError
from sdcli.files.metadata import UNREADABLE, file_bytes

MAX_PIXELS = 178_956_970
"""Where Pillow takes a picture for a decompression bomb: twice its MAX_IMAGE_PIXELS."""


def upright(image: Image.Image) -> Image.Image:
    """`image` as 8-bit RGB, or RGBA where anything may be transparent, turned as its EXIF says.

    16-bit greys keep their upper 8 bits, rounded. Raises InputError for floating-point pixels, whose range nobody
    tells.
    """
    transparent = image.has_transparency_data
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError("the picture's pixels are floating-point numbers", "save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        greys, clear = np.asarray(image).astype(np.float64), image.info.get("transparency")
        image = Image.fromarray((greys.clip(0, 65535) / 257).round().astype(np.uint8))
        if transparent:
            image.putalpha(Image.fromarray(np.uint8(255) * (greys != clear)))
    return image.convert("RGBA" if transparent else "RGB")


def mask_of(picture: Image.Image) -> Image.Image:
    """A mask picture, upright RGB or RGBA, as greys; what is transparent in it counts as black."""
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
    """The picture at `path`, through `convert`, and the sha256 of its file.

    A relative path counts from `directory`. Raises InputError for what is no picture, and for another file than the one
    whose sha256 is `recorded`.
    """
    data = file_bytes(path, directory)
    digest = hashlib.sha256(data).hexdigest()
    if recorded is not None and digest != recorded:
        raise InputError(
            f"{path} is another file than the recipe was made with", f"give the one whose sha256 is {recorded}"
        )
    return decode(data, path, convert), digest


def decode(data: bytes, name: str, convert: Callable[[Image.Image], Image.Image] = upright) -> Image.Image:
    """The picture that a file of these bytes shows, through `convert`; `name` is what an InputError calls it."""
    if not data:
        raise InputError(f"{name} is empty", "give a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on odd but readable files
            with Image.open(BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return convert(image)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(
            f"{name} is too large a picture to open", "give a picture of less than 178 megapixels"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no picture, or damaged from its start", "give a PNG, JPEG or WebP file") from error
    except UNREADABLE as error:
        raise InputError(
            f"{name} is cut short or damaged: {error}", "get the file again, or open and save it with another tool"
        ) from error


def check_whole(picture: Image.Image, unit: int, name: str) -> None:
    """Raise InputError, naming the nearest sizes, for sides that are no multiples of `unit`, the side of a latent."""
    sizes = {tuple(max(steps(side / unit), 1) * unit for side in picture.size) for steps in (math.floor, math.ceil)}
    if sizes != {picture.size}:
        nearest = " and ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise InputError(
            f"{name} is {picture.width}×{picture.height}, and this model's latents stand for {unit} pixels a side",
            f"crop or scale it; the nearest sizes are {nearest}",
        )
