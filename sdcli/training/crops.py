"""The sizes that pictures of any aspect ratio are trained at. Knows nothing of models or files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageOps

MOST_ASPECT = 2.0
"""The greatest ratio of the longer to the shorter side; pictures beyond it lose their ends."""


@dataclass(frozen=True)
class Crop:
    """How a picture is resized and cropped: its own size, that of the result, and the corner of the result in the
    resized picture. Sizes are (width, height)."""

    original: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]

    @property
    def time_ids(self) -> tuple[int, ...]:
        """What SDXL is told: original height and width, top and left, height and width."""
        (wide, high), (width, height), (left, top) = self.original, self.size, self.corner
        return high, wide, top, left, height, width

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Return the crop of `picture`."""
        return ImageOps.fit(picture, self.size, Image.Resampling.LANCZOS)


def crop_of(picture: tuple[int, int], side: int, multiple: int) -> Crop:
    """Return the crop of a picture for a model of `side` × `side` pixels: of the sizes with about this area, and sides
    that are multiples of `multiple`, the one with the nearest aspect ratio. The centre is kept.
    """
    width, height = picture
    aspect = width / height
    size = min(sizes(side, multiple), key=lambda each: abs(each[0] / each[1] / aspect - 1))
    scale = max(size[0] / width, size[1] / height)
    corner = round((width * scale - size[0]) / 2), round((height * scale - size[1]) / 2)
    return Crop(picture, size, corner)


def sizes(side: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield the sizes of about `side` × `side` pixels, and not more, the square first."""
    yield side, side
    for width in range(multiple, 2 * side, multiple):
        height = side * side // width // multiple * multiple
        if height and max(width / height, height / width) <= MOST_ASPECT:
            yield width, height
