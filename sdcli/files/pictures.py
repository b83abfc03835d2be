"""Opens images: from a file's bytes to an upright sRGB image with 8 bits per channel. Knows PIL and numpy, no models.

EXIF data, texts and profiles never make an image unreadable: what is damaged is skipped, with a warning.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from sdcli.errors import InputError
from sdcli.files import png_chunks, profiles
from sdcli.files.reading import Files, check_size, decoding
from sdcli.recipe.warning import RecipeWarning

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose pixels of the mode "I" have 16 bits, 0 … 65535; others have 32."""


@dataclass(frozen=True)
class Decoded:
    """A picture, and warnings about what was skipped or converted."""

    picture: Image.Image
    warnings: tuple[RecipeWarning, ...] = ()


@dataclass(frozen=True)
class Opened(Decoded):
    """The same, with the sha256 of the file."""

    sha256: str = ""


def open_picture(
    path: str,
    recorded: str | None,
    files: Files,
    *,
    field: str = "image",
    decoder: Callable[[bytes, str, str], Decoded] | None = None,
) -> Opened:
    """Open the image at `path`; `field` is the key of the recipe that names it.

    Raises InputError for a file that is not an image, or differs from the
    `recorded` sha256.
    """
    data = files.read(path)
    digest = hashlib.sha256(data).hexdigest()
    if recorded is not None and digest != recorded:
        raise InputError(f"{path} has changed since the recipe was made", f"give the file with the sha256 {recorded}")
    found = (decoder or decode)(data, path, field)
    return Opened(found.picture, found.warnings, digest)


def decode(data: bytes, name: str, field: str = "image") -> Decoded:
    """Decode an image to upright 8-bit sRGB, or RGBA if it can have transparency; `name` is its name in errors.

    16-bit greys are rounded to 8 bits. Raises InputError for floating-point and 32-bit pixels, whose range is unknown.
    """
    found = load(data, name, field)
    with decoding(name):
        picture, told = _to_srgb(found.picture)
    return Decoded(picture, (*found.warnings, *(_warning(name, each, field) for each in told)))


def load(data: bytes, name: str, field: str = "image", *, low_bytes: bool = False) -> Decoded:
    """Decode the first frame of an image in its own mode, upright according to its EXIF data.

    Of colours with 16 bits, Pillow keeps the high bytes; with `low_bytes` it reads the others, of a PNG.
    """
    if not data:
        raise InputError(f"{name} is empty", "give a PNG, JPEG or WebP file")
    cleaned = png_chunks.clean(data)
    told = [f"{each}, and was skipped" for each in cleaned.skipped]
    with decoding(name), Image.open(BytesIO(cleaned.data)) as image:
        check_size(image, name)
        if cleaned.animated or (image.format != "MPO" and _has_frames(image)):
            told.append("it has several frames or pages, and only the first is used")
        if low_bytes:
            image.tile = [each._replace(args=str(each.args).replace("16B", "16L")) for each in image.tile]
        image.load()
        if cleaned.profile is not None:
            image.info["icc_profile"] = cleaned.profile
        turn, problem = orientation(image)
        told += [problem] if problem else []
        picture: Image.Image = image.transpose(_TURNS[turn]) if turn in _TURNS else image
        picture.format = image.format
    return Decoded(picture, tuple(_warning(name, each, field) for each in told))


def orientation(image: Image.Image) -> tuple[Any, str | None]:
    """Return the EXIF orientation, which can be any value, and a problem of the EXIF data; reads no other tag."""
    data = image.info.get("exif")
    if isinstance(data, bytes) and data.removeprefix(b"Exif\0\0")[:4] not in (*png_chunks.TIFF, b""):
        return None, "its EXIF data are damaged, and were skipped"
    try:
        return image.getexif().get(ExifTags.Base.Orientation), None
    except Exception as error:  # noqa: BLE001  Pillow raises many for damaged EXIF data
        return None, f"its EXIF data are damaged, and were skipped: {error}"


def check_whole(picture: Image.Image, unit: int, name: str) -> None:
    """Raise InputError, with the nearest sizes in the hint, unless the sides are multiples of `unit` pixels."""
    sizes = {tuple(max(steps(side / unit), 1) * unit for side in picture.size) for steps in (math.floor, math.ceil)}
    if sizes != {picture.size}:
        nearest = " and ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise InputError(
            f"{name} is {picture.width}×{picture.height}, and this model's latents cover {unit} pixels per side",
            f"crop or resize it; the nearest sizes are {nearest}",
        )


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001  a later frame is damaged
        return True


def _to_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert an image of any mode to RGB or RGBA without metadata, and say what was done to its colours."""
    mode, profile, told = "RGBA" if image.has_transparency_data else "RGB", image.info.get("icc_profile"), None
    if image.mode == "F":
        raise InputError("the image has floating-point pixels", "save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    gamma = image.info.get("gamma") if "srgb" not in image.info else None
    plain = image if image.mode == mode else image.convert(mode)
    converted = plain
    if isinstance(profile, bytes) and profile:
        base = "L" if image.mode in ("1", "L", "LA") else "CMYK" if image.mode == "CMYK" else "RGB"
        converted, told = profiles.to_srgb(image if image.mode == base else image.convert(base), profile)
    elif image.mode == "CMYK":
        told = "its CMYK colours have no profile, and were converted approximately"
    elif gamma is not None:
        converted, told = profiles.from_gamma(plain.convert("RGB"), gamma)
    if told is None:
        converted = plain
    elif mode == "RGBA" and converted is not plain:
        converted.putalpha(plain.getchannel("A"))
    converted.info = {}
    return converted, [told] if told else []


def _eight_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit greys to 8 bits, with an alpha channel if one grey is transparent."""
    if image.mode == "I" and image.format not in _SIXTEEN_BITS:
        raise InputError("the image has 32-bit integer pixels", "save it with 8 or 16 bits per channel")
    table = [(value + 128) // 257 for value in range(65536)]
    picture, clear = image.convert("I").point(table, "L"), image.info.get("transparency")
    if clear is not None:
        picture.putalpha(Image.fromarray(np.uint8(255) * (np.asarray(image) != clear)))
    picture.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return picture


def _warning(name: str, problem: str, field: str) -> RecipeWarning:
    return RecipeWarning(f"{name}: {problem}", "save it again with another tool", field)
