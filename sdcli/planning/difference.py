"""The difference between the pixels of two pictures. Knows nothing of recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageStat


@dataclass(frozen=True)
class Difference:
    """The difference between two pictures: pixels out of `total`, the largest one out of 255, and PSNR in dB."""

    pixels: int
    total: int
    max: int
    psnr: float

    def __str__(self) -> str:
        share = f"{self.pixels:,} of {self.total:,} pixels"
        return f"{share}, by {self.max} of 255 at most, PSNR {self.psnr:.1f} dB"


def between(before: Image.Image, after: Image.Image) -> Difference | None:
    """Compare the RGB pixels of two pictures; None if they are identical.

    Pictures of different sizes differ in every pixel, by 255 and 0 dB. PSNR is 10 log₁₀(255² / mean squared
    difference).
    """
    before, after = before.convert("RGB"), after.convert("RGB")
    if before.size != after.size:
        total = max(before.width * before.height, after.width * after.height)
        return Difference(total, total, 255, 0.0)
    apart = ImageChops.difference(before, after)
    if apart.getbbox() is None:
        return None
    red, green, blue = apart.split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    histogram = largest.histogram()
    highest = max(value for value, count in enumerate(histogram) if count)
    total = before.width * before.height
    squares = sum(ImageStat.Stat(apart).sum2)
    psnr = 10 * math.log10(255**2 / (squares / (3 * total)))
    return Difference(total - histogram[0], total, highest, psnr)
