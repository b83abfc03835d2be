"""Pictures as arrays, which keep 16 bits per channel, greys and transparency. Knows no models.

Pillow reads a PNG with 16 bits and colours as 8 bits. It can read the low bytes as well as the high ones, and what it
cannot write is written here: "Portable Network Graphics (PNG) Specification (Third Edition)", sections 9 to 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffTags
from PIL.PngImagePlugin import PngInfo

from sdcli.files import canvas, images, pictures, png_chunks
from sdcli.files.reading import decoding
from sdcli.recipe.warning import RecipeWarning

_GREY, _GREY_ALPHA, _RGBA = 0, 4, 6
"""Colour types of a PNG; RGB is 2."""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I")
_HIDDEN = 16
"""Pixels: the colours of transparent pixels are taken from squares of this size."""


@dataclass(frozen=True)
class Raster:
    """An upright picture: `pixels` (H, W, C) of grey, grey and alpha, RGB, or RGBA, with 8 or 16 bits.

    `profile` is the colour profile of a picture with 16 bits; those with 8 bits were converted to sRGB.
    """

    pixels: NDArray[Any]
    profile: bytes | None = None
    warnings: tuple[RecipeWarning, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def bits(self) -> int:
        """Bits per channel."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def alpha(self) -> NDArray[Any] | None:
        """The alpha channel (H, W, 1), or None."""
        return self.pixels[..., -1:] if self.pixels.shape[2] in (2, 4) else None

    @property
    def colours(self) -> NDArray[Any]:
        """Grey or RGB (H, W, 1 or 3)."""
        return self.pixels if self.alpha is None else self.pixels[..., :-1]

    @property
    def image(self) -> Image.Image:
        """The picture as Pillow reads it from a PNG."""
        if self.bits == 8:
            return _image(self.pixels)
        if self.pixels.shape[2] == 1:
            return Image.fromarray(np.ascontiguousarray(self.pixels[..., 0]))
        high = (self.pixels >> 8).astype(np.uint8)
        return _image(high).convert("RGBA") if high.shape[2] == 2 else _image(high)

    @property
    def pixels_sha256(self) -> str:
        """The digest that `metadata.read` gives for its PNG."""
        return images.pixels_sha256(self.image)

    def with_colours(self, colours: NDArray[Any], alpha: NDArray[Any] | None) -> Raster:
        """Return the raster with other colours and alpha, of another size."""
        pixels = colours if alpha is None else np.concatenate([colours, alpha], axis=2)
        return replace(self, pixels=pixels)


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def decode(data: bytes, name: str) -> Raster:
    """Decode a picture; `name` is its name in errors. Raises what `pictures.decode` raises."""
    if data.startswith(png_chunks.SIGNATURE) and data[24:25] == b"\x10":
        return _sixteen(data, name)
    with decoding(name), Image.open(BytesIO(data or b" ")) as image:
        mode = image.mode
        deep = image.format == "TIFF" and _bits(image) > 8 and mode not in _GREY_MODES
    if mode.startswith("I;16"):
        found = pictures.load(data, name)
        pixels = np.asarray(found.picture).astype(np.uint16)[..., None]
        return Raster(pixels, found.picture.info.get("icc_profile"), found.warnings)
    decoded = pictures.decode(data, name)
    warnings = decoded.warnings
    if deep:
        message = f"{name}: it has 16 bits per channel, of which 8 are used"
        warnings += (RecipeWarning(message, "save it as PNG, whose 16 bits are kept", "image"),)
    pixels = np.asarray(decoded.picture)
    if mode in _GREY_MODES:
        pixels = pixels[..., [0, *range(3, pixels.shape[2])]]
    return Raster(pixels, None, warnings)


def _bits(image: Any) -> int:
    bits = image.tag_v2.get(TiffTags.lookup(258).value or 258, (8,))
    return max(bits) if isinstance(bits, tuple) and all(isinstance(each, int) for each in bits) else 8


def _sixteen(data: bytes, name: str) -> Raster:
    """Decode a PNG with 16 bits per channel."""
    kind = data[25]
    if kind == _GREY_ALPHA:  # Pillow reads its four bytes as a pixel of RGBA
        found = pictures.load(_as_rgba(data), name)
        bytes_ = np.asarray(found.picture).astype(np.uint16)
        pixels: NDArray[Any] = bytes_[..., 0::2] << 8 | bytes_[..., 1::2]
    elif kind == _GREY:
        found = pictures.load(data, name)
        pixels = np.asarray(found.picture).astype(np.uint16)[..., None]
    else:
        found, low = pictures.load(data, name), pictures.load(data, name, low_bytes=True)
        high, rest = (np.asarray(each.picture).astype(np.uint16) for each in (found, low))
        pixels = high << 8 | rest
    clear = found.picture.info.get("transparency")
    if clear is not None and kind not in (_GREY_ALPHA, _RGBA):
        opaque = (pixels != np.asarray(clear).reshape(-1)).any(-1, keepdims=True)
        pixels = np.concatenate([pixels, np.uint16(65535) * opaque], axis=2)
    profile = found.picture.info.get("icc_profile")
    return Raster(pixels, profile if isinstance(profile, bytes) else None, found.warnings)


def _as_rgba(data: bytes) -> bytes:
    """Return a PNG of grey and alpha with 16 bits as one of RGBA with 8 bits, whose pixels have the same bytes."""
    body = b"IHDR" + data[16:24] + bytes([8, _RGBA]) + data[26:29]
    return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def resized(pixels: NDArray[Any], size: tuple[int, int], alpha: NDArray[Any] | None = None) -> NDArray[Any]:
    """Resize `pixels` (H, W, C) to `size` by Lanczos's filter; colours are weighted by their `alpha`, if given."""
    if pixels.shape[1::-1] == size:
        return pixels
    if pixels.dtype == np.uint8 and alpha is None and pixels.shape[2] in (1, 3):
        made = np.asarray(_image(pixels).resize(size, Image.Resampling.LANCZOS))
        return made.reshape(size[1], size[0], -1)
    most = np.iinfo(pixels.dtype).max
    shares = None if alpha is None else alpha[..., 0].astype(np.float32) / np.iinfo(alpha.dtype).max
    below = None if shares is None else np.maximum(_lanczos(shares, size), 1e-6)
    result = np.empty((size[1], size[0], pixels.shape[2]), pixels.dtype)
    for channel in range(pixels.shape[2]):
        plane = pixels[..., channel].astype(np.float32)
        made = _lanczos(plane, size) if shares is None or below is None else _lanczos(plane * shares, size) / below
        result[..., channel] = made.round().clip(0, most)
    return result


def _lanczos(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(plane.astype(np.float32, copy=False)).resize(size, Image.Resampling.LANCZOS))


def cropped(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Crop `pixels` to the aspect ratio of `size`, around the middle."""
    left, top, right, bottom = canvas.middle((pixels.shape[1], pixels.shape[0]), size)
    return pixels[top:bottom, left:right]


def shown(colours: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Return colours in which transparent pixels have those of visible ones nearby.

    A network that sees what is hidden would mix it into the edges.
    """
    hidden = alpha[..., 0] == 0
    if not hidden.any():
        return colours
    height, width = hidden.shape
    small = -(-width // _HIDDEN), -(-height // _HIDDEN)
    shares = alpha[..., 0].astype(np.float32) / np.iinfo(alpha.dtype).max
    below = _box(shares, small)
    result = colours.copy()
    for channel in range(colours.shape[2]):
        mean = _box(colours[..., channel] * shares, small) / np.maximum(below, 1e-6)
        plane = Image.fromarray(mean.astype(np.float32)).resize((width, height), Image.Resampling.NEAREST)
        weight = Image.fromarray(below).resize((width, height), Image.Resampling.NEAREST)
        filled = hidden & (np.asarray(weight) > 0)
        result[filled, channel] = np.asarray(plane)[filled].round()
    return result


def _box(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(plane.astype(np.float32, copy=False)).resize(size, Image.Resampling.BOX))


def png(raster: Raster, texts: Mapping[str, str]) -> bytes:
    """Encode a raster as a PNG with `texts` by their keywords."""
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    buffer = BytesIO()
    if raster.bits == 8:
        raster.image.save(buffer, "PNG", pnginfo=chunks, icc_profile=raster.profile)
        return buffer.getvalue()
    width, height = raster.size
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[raster.pixels.shape[2]], 0, 0, 0)
    parts = [(b"IHDR", header)]
    if raster.profile is not None:
        parts.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(raster.profile)))
    parts += [(each[0], each[1]) for each in chunks.chunks]
    parts += [(b"IDAT", _filtered(raster.pixels)), (b"IEND", b"")]
    written = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
               for kind, body in parts]  # fmt: skip
    return png_chunks.SIGNATURE + b"".join(written)


def _filtered(pixels: NDArray[Any]) -> bytes:
    """Return the compressed rows: the difference of each byte to the one above it (filter type 2)."""
    height = len(pixels)
    packer = zlib.compressobj()
    packed, above = [], None
    for top in range(0, height, images.ROWS):
        rows = (
            pixels[top : top + images.ROWS]
            .astype(">u2")
            .view(np.uint8)
            .reshape(-1, pixels.shape[1] * pixels.shape[2] * 2)
        )
        first = np.zeros_like(rows[:1]) if above is None else above
        differences = rows - np.concatenate([first, rows[:-1]])
        kinds = np.full((len(rows), 1), 2, np.uint8)
        packed.append(packer.compress(np.concatenate([kinds, differences], axis=1).tobytes()))
        above = rows[-1:]
    return b"".join([*packed, packer.flush()])
