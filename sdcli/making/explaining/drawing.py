"""Numbers as images, and images as data: URLs."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_SIDE = 384  # pixels
_MAP_SIDE = 192
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""The colours of `inferno`, from low to high, which are told apart in grey and by colour-blind people too."""

Numbers = NDArray[np.float32]


def small(image: Image.Image) -> Image.Image:
    """Return the image, not larger than MOST_SIDE."""
    image = image.convert("RGB")
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return image


def jpeg(image: Image.Image, quality: int = 85) -> str:
    """Return a JPEG as a data: URL."""
    data = BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(data.getvalue()).decode()}"


def png(image: Image.Image) -> str:
    """Return a PNG as a data: URL."""
    data = BytesIO()
    image.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"


def grey(values: Numbers, spread: float = 3.0) -> Image.Image:
    """Draw numbers (h, w) in grey: 0 in the middle, and `spread` in white."""
    return Image.fromarray((255 * np.clip(values / (2 * spread) + 0.5, 0, 1)).astype(np.uint8))


def channels(values: Numbers, spread: float = 3.0) -> Image.Image:
    """Draw numbers (C, h, w) as `grey` does, in a row, one image for each channel, with a gap of one pixel."""
    parts = [np.asarray(grey(each, spread)) for each in values]
    gap = np.full((parts[0].shape[0], 1), 128, np.uint8)
    row = [part for each in parts for part in (each, gap)][:-1]
    return Image.fromarray(np.concatenate(row, axis=1))


def heat(values: Numbers, size: tuple[int, int]) -> Image.Image:
    """Draw numbers (h, w) as colours, from the least, which is black, to the largest, for a picture of `size`."""
    level = smooth(values, size)
    colours = np.array(_HEAT, np.float32)
    place = level * (len(colours) - 1)
    below = np.minimum(place.astype(int), len(colours) - 2)
    part = (place - below)[..., None]
    rgb = (1 - part) * colours[below] + part * colours[below + 1]
    return Image.fromarray(rgb.astype(np.uint8))


def smooth(values: Numbers, size: tuple[int, int]) -> Numbers:
    """Return numbers scaled to 0 … 1 and enlarged smoothly, in the shape of a picture of `size`, at most _MAP_SIDE."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    factor = min(1.0, _MAP_SIDE / max(size))
    width, height = (max(1, round(side * factor)) for side in size)
    enlarged = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    level: Numbers = np.clip(np.asarray(enlarged), 0, 1)
    return level
