"""The light on sprites and the shadows that they cast."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Corner = tuple[int, int]
Light = tuple[float, float, float]
DARK = (18, 20, 44)
LIGHTS: dict[str, Light] = {
    "night": (0.84, 0.87, 1.0),
    "sunset": (1.0, 0.94, 0.88),
    "underwater": (0.9, 0.98, 1.0),
    "day": (1.0, 1.0, 1.0),
}
FOOT = 0.1
"""The share of a sprite's height, from the bottom, whose width determines the width of its shadow."""


def soft_ellipse(blur: float, strength: int) -> Image.Image:
    """Return a blurred ellipse, 128×32."""
    spot = Image.new("L", (128, 32))
    ImageDraw.Draw(spot).ellipse([14, 7, 114, 25], fill=strength)
    return spot.filter(ImageFilter.GaussianBlur(blur))


WIDE, CLOSE = soft_ellipse(5, 105), soft_ellipse(3, 150)


def light_of(place: str, time: str) -> Light:
    """Return the light on subjects: that of the place if it has its own, else that of the time of day."""
    return LIGHTS.get(place, LIGHTS[time])


@cache
def curves(light: Light) -> list[int]:
    """Return the light as a lookup table for each channel."""
    return [round(level * share) for share in light for level in range(256)]


def lit(sprite: Image.Image, light: Light) -> Image.Image:
    """Return the sprite's colours in a light."""
    rgb = sprite.convert("RGB")
    return rgb if light == LIGHTS["day"] else rgb.point(curves(light))


def footprint(sprite: Image.Image) -> tuple[int, int]:
    """Return the first and the last column of the part that touches the ground."""
    alpha = np.asarray(sprite.getchannel("A"))
    low = max(2, round(FOOT * alpha.shape[0]))
    columns = np.flatnonzero((alpha[-low:] > 100).any(0))
    return (int(columns[0]), int(columns[-1])) if len(columns) else (0, sprite.width - 1)


def cast(image: Image.Image, sprite: Image.Image, corner: Corner, lift: int = 0) -> None:
    """Darken the ground under a sprite that is `lift` pixels above it."""
    first, last = footprint(sprite)
    middle = corner[0] + (first + last) / 2
    wide = max(last - first + 1, 0.34 * sprite.width)
    if lift:
        wide = 0.6 * sprite.width
    floor = corner[1] + sprite.height + lift
    for spot, scale, flat in ((WIDE, 1.5, 0.2), (CLOSE, 1.2, 0.12)):
        if lift and spot is CLOSE:
            continue
        size = round(scale * wide), max(5, round(flat * wide + 0.02 * sprite.height))
        shadow = spot.resize(size, Image.Resampling.BILINEAR)
        image.paste(DARK, (round(middle - size[0] / 2), round(floor - 0.6 * size[1])), shadow)


def touch(image: Image.Image, sprite: Image.Image, corner: Corner, below: np.ndarray) -> None:
    """Darken the surface under a sprite's feet, inside the mask `below`."""
    first, last = footprint(sprite)
    size = round(1.25 * max(last - first + 1, 0.3 * sprite.width)), max(6, round(0.16 * sprite.width))
    place = round(corner[0] + (first + last) / 2 - size[0] / 2), corner[1] + sprite.height - round(0.6 * size[1])
    spot = Image.new("L", image.size)
    spot.paste(CLOSE.resize(size, Image.Resampling.BILINEAR), place)
    image.paste(DARK, mask=Image.fromarray(np.where(below, np.asarray(spot), 0).astype(np.uint8)))
