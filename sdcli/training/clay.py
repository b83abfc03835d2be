"""A canvas for soft miniature landscapes: shapes with rounded, shaded edges, hills that fade into haze, skies.

Each shape is also drawn into a segmentation map, as its class. Lengths are fractions of the picture's side; y increases
downwards. Does not depend on the places.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypedDict, Unpack

import numpy as np
from PIL import Image

Colour = tuple[float, float, float]
Stops = Sequence[Colour]
"""Colours from top to bottom."""
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A signed distance: how far points (x, y) are inside a shape; negative outside."""

# The classes of segmentation maps, in the order of their indices, with their colours.
CLASSES: Mapping[str, tuple[int, int, int]] = {
    "sky": (135, 206, 235),
    "sun or moon": (255, 215, 0),
    "cloud": (245, 245, 245),
    "mountain": (112, 128, 144),
    "snow": (200, 220, 255),
    "sand": (237, 201, 130),
    "grass": (124, 200, 60),
    "ground": (139, 111, 78),
    "water": (30, 100, 200),
    "tree": (0, 100, 0),
    "building": (178, 34, 34),
    "wall": (200, 160, 220),
    "animal": (255, 105, 0),
    "person": (255, 190, 150),
    "vehicle": (60, 60, 60),
    "food": (255, 60, 90),
    "plant": (0, 200, 150),
    "object": (150, 0, 150),
}
CLASS_NAMES = tuple(CLASSES)
NUMBERS = {name: number for number, name in enumerate(CLASS_NAMES)}
TOWARDS_LIGHT = np.array([-0.45, -0.75], dtype=np.float32)  # from the upper left


@cache
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the x and y coordinates of pixel centres, (size, size) each."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.broadcast_to(line, (size, size)), np.broadcast_to(line[:, None], (size, size))
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def ramp(stops: Stops, at: np.ndarray) -> np.ndarray:
    """Return the colours (..., 3) at positions 0 … 1 between evenly spaced stops."""
    where = np.linspace(0, 1, len(stops))
    channels = [np.interp(at, where, [stop[channel] for stop in stops]) for channel in range(3)]
    return np.stack(channels, -1).astype(np.float32)


def dimmed(colour: Colour, share: float) -> Colour:
    """Return a colour multiplied by `share`."""
    red, green, blue = (min(255.0, share * channel) for channel in colour)
    return red, green, blue


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """Return a mix of two colours; `share` is the weight of `other`."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(one, other, strict=True))
    return red, green, blue


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return smooth noise (size, size), about -1 … 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


class Finish(TypedDict, total=False):
    """How a shape is shaded.

    The edge is rounded over `bevel` and shaded by `depth`; `far` fades the shape into haze; a shape that shines is not
    affected by the scene's light.
    """

    bevel: float
    depth: float
    far: float
    shine: bool


class Canvas:
    """A square picture and its segmentation map.

    `light` multiplies the colours of everything that does not shine; `haze` is the colour that distant shapes fade
    into; `bright` is the x coordinate of the light source.
    """

    def __init__(self, size: int, light: Colour = (1, 1, 1), haze: Colour = (220, 235, 250)) -> None:
        self.size = size
        self.light, self.haze = np.array(light, np.float32), np.array(haze, np.float32)
        self.bright = 0.5
        self.image = np.zeros((size, size, 3), np.float32)
        self.map = np.zeros((size, size), np.uint8)

    def seen(self, colour: Sequence[float] | np.ndarray, far: float = 0.0) -> np.ndarray:
        """Return a colour in this light, faded by distance."""
        lit: np.ndarray = np.asarray(colour, np.float32) * self.light
        faded: np.ndarray = lit + far * (self.haze - lit)
        return faded

    def fill(self, stops: Stops, kind: str, bottom: float = 1.0) -> None:
        """Fill the picture with a gradient from the top to `bottom`, unaffected by light."""
        rows = ((np.arange(self.size) + 0.5) / self.size / bottom).clip(0, 1)
        self.image[:] = ramp(stops, rows)[:, None]
        self.map[:] = NUMBERS[kind]

    def glow(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        """Add light around a point. The segmentation map does not change."""
        xs, ys = grid(self.size)
        near = strength * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / radius**2)[..., None]
        self.image += near * (np.array(colour, np.float32) - self.image)

    def shape(
        self,
        box: tuple[float, float, float, float],
        inside: Distance,
        stops: Stops,
        kind: str,
        **how: Unpack[Finish],
    ) -> None:
        """What lies inside a signed distance, within a box (left, top, right, bottom), coloured from top to bottom.

        Without a kind it is a detail that keeps what is mapped there.
        """
        size = self.size
        left, top = (max(0, int(edge * size) - 1) for edge in box[:2])
        right, bottom = (min(size, int(edge * size) + 2) for edge in box[2:])
        if left + 1 >= right or top + 1 >= bottom:
            return
        xs, ys = (axis[top:bottom, left:right] for axis in grid(size))
        distance = inside(xs, ys)
        cover = (distance * size + 0.5).clip(0, 1)
        colours = ramp(stops, ((ys[:, 0] - box[1]) / (box[3] - box[1])).clip(0, 1))[:, None]
        body = self.shaded(colours, distance, **how)
        part = self.image[top:bottom, left:right]
        part += cover[..., None] * (body - part)
        if kind:
            self.map[top:bottom, left:right][cover > 0.5] = NUMBERS[kind]

    def shaded(
        self,
        colours: np.ndarray,
        distance: np.ndarray,
        *,
        bevel: float = 0.03,
        depth: float = 0.5,
        far: float = 0.0,
        shine: bool = False,
    ) -> np.ndarray:
        """The colours with light on the edges that face it, and shadow on the others."""
        body: np.ndarray = colours if shine else self.seen(colours, far)
        if not depth:
            return body
        slope = (1 - distance / bevel).clip(0, 1)
        slope = slope * slope * (3 - 2 * slope)
        down, across = np.gradient(distance, 1 / self.size)
        facing = -(across * TOWARDS_LIGHT[0] + down * TOWARDS_LIGHT[1]) * slope
        shade = depth * (1 - 0.7 * far) * facing
        body = body * (1 + 0.75 * shade.clip(-1, 0) + 0.2 * shade.clip(0, 1))[..., None]
        lit: np.ndarray = body + (60 * shade.clip(0, 1))[..., None] * (1 if shine else self.light)
        return lit

    def hill(self, line: np.ndarray, stops: Stops, kind: str, *, far: float = 0.0, reach: float = 0.3) -> None:
        """Fill everything below a line, given as a y per column: a bright rim, then a gradient over `reach`."""
        ys = grid(self.size)[1]
        below = ys - line
        cover = (below * self.size + 0.5).clip(0, 1)
        top = max(0, int(line.min() * self.size) - 1)
        below, cover = below[top:], cover[top:]
        body = self.seen(ramp(stops, (below / reach).clip(0, 1)), far)
        rim = np.exp(-((below / 0.018) ** 2)) * (1 - 0.6 * far) * 22
        body = body + rim[..., None] * self.light
        part = self.image[top:]
        part += cover[..., None] * (body - part)
        self.map[top:][cover > 0.5] = NUMBERS[kind]

    def mottle(self, rng: np.random.Generator, kind: str, amount: float, cells: int = 9) -> None:
        """Vary the brightness of all pixels of one class with smooth noise."""
        noise = (1 + amount * smooth_noise(rng, self.size, cells))[..., None]
        self.image = np.where((self.map == NUMBERS[kind])[..., None], self.image * noise, self.image)

    def stage(self, strength: float = 0.12) -> None:
        """Brighten the near ground, where the subjects stand, and darken the corners."""
        xs, ys = grid(self.size)
        pool = np.exp(-(((xs - 0.5) / 0.42) ** 2 + ((ys - 0.86) / 0.16) ** 2))
        corners = ((xs - 0.5) ** 2 + (ys - 0.5) ** 2).clip(0.18, 1) - 0.18
        self.image *= (1 + strength * pool - 0.22 * corners)[..., None]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture, uint8 (size, size, 3), and the map, uint8 (size, size)."""
        return self.image.clip(0, 255).round().astype(np.uint8), self.map

    # Specific shapes.

    def ball(self, x: float, y: float, radius: float, stops: Stops, kind: str, **how: Unpack[Finish]) -> None:
        """Draw a sphere."""
        how.setdefault("bevel", radius)
        box = (x - radius, y - radius, x + radius, y + radius)
        self.shape(box, lambda xs, ys: radius - np.hypot(xs - x, ys - y), stops, kind, **how)

    def egg(self, x: float, y: float, wide: float, high: float, stops: Stops, kind: str, **how: Unpack[Finish]) -> None:
        """Draw an ellipse with half axes `wide` and `high`."""
        how.setdefault("bevel", min(wide, high))

        def inside(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
            from_middle = np.hypot((xs - x) / wide, (ys - y) / high)
            distance: np.ndarray = (1 - from_middle) * min(wide, high)
            return distance

        self.shape((x - wide, y - high, x + wide, y + high), inside, stops, kind, **how)

    def block(
        self, left: float, top: float, right: float, bottom: float, stops: Stops, kind: str,
        *, radius: float = 0.012, **how: Unpack[Finish],
    ) -> None:  # fmt: skip
        """A rectangle with round corners."""
        x, y, wide, high = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        radius = min(radius, wide, high)

        def inside(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
            dx, dy = np.abs(xs - x) - wide + radius, np.abs(ys - y) - high + radius
            outside = np.hypot(dx.clip(0), dy.clip(0)) + np.minimum(np.maximum(dx, dy), 0)
            distance: np.ndarray = radius - outside
            return distance

        self.shape((left, top, right, bottom), inside, stops, kind, **how)

    def cone(
        self, x: float, top: float, half: float, foot: float, stops: Stops, kind: str,
        *, rounding: float = 0.02, **how: Unpack[Finish],
    ) -> None:  # fmt: skip
        """A triangle with a round top and round lower corners."""
        high = foot - top
        across, along = high / np.hypot(high, half), half / np.hypot(high, half)

        def inside(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
            flank = along * (ys - top) - across * np.abs(xs - x)
            floor = foot - ys
            return soft_least(flank, floor, rounding)

        self.shape((x - half, top, x + half, foot), inside, stops, kind, **how)


def soft_least(one: np.ndarray, other: np.ndarray, radius: float) -> np.ndarray:
    """Return the smaller of two distances, with the corner between them rounded."""
    near = (0.5 + 0.5 * (other - one) / radius).clip(0, 1)
    least: np.ndarray = other + near * (one - other) - radius * near * (1 - near)
    return least
