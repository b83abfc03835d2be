"""The largest pictures, by area. Knows nothing of files."""

from __future__ import annotations

from sdcli.errors import InvalidRecipe

MAX_PIXELS = 4096 * 4096
"""The largest working size: what one evaluation of a model can take."""
MAX_IMAGE_PIXELS = 89_478_485
"""The largest image that is read, extended or written; above it, Pillow suspects a decompression bomb."""


def check_area(
    width: int, height: int, most: int = MAX_PIXELS, *, what: str = "the size", field: str = "width"
) -> None:
    """Raise InvalidRecipe, with the area in its message, if `width` × `height` is more than `most` pixels."""
    if width * height > most:
        side = int(most**0.5)
        raise InvalidRecipe(
            f"{what} is {width}×{height}, {megapixels(width * height)}",
            f"the limit is {megapixels(most)}, such as {side}×{side}",
            field,
        )


def megapixels(pixels: int) -> str:
    """Format an area."""
    return f"{pixels / 1e6:.1f}".removesuffix(".0") + " megapixels"
