"""Places: backgrounds painted from a random generator, each a different view of the same kind of place.

Knows nothing of subjects or captions. A painter draws at twice the size; `paint` halves it, which smooths edges.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Painter = Callable[[np.random.Generator, int], Image.Image]


def gradient(size: int, stops: Sequence[Colour]) -> Image.Image:
    """A size×size RGB image running from the first colour at the top to the last at the bottom."""
    rows = np.linspace(0, len(stops) - 1, size)
    column = np.stack([np.interp(rows, range(len(stops)), channel) for channel in zip(*stops, strict=True)], 1)
    return Image.fromarray(np.broadcast_to(column[:, None], (size, size, 3)).round().astype(np.uint8))


def hill(image: Image.Image, rng: np.random.Generator, top: float, height: float, waves: float, fill: Colour) -> None:
    """Fill below a sine line around `top` (fractions of the image) with a random phase."""
    size = image.width
    x = np.linspace(0, 1, 48)
    y = top - height * np.sin(2 * np.pi * (waves * x + rng.uniform()))
    line = [(float(px) * size, float(py) * size) for px, py in zip(x, y, strict=True)]
    ImageDraw.Draw(image).polygon([(0, size), *line, (size, size)], fill=fill)


def disc(image: Image.Image, x: float, y: float, radius: float, fill: Colour) -> None:
    """A filled circle; centre and radius are fractions of the image."""
    size = image.width
    box = [(x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size]
    ImageDraw.Draw(image).ellipse(box, fill=fill)


def fir(image: Image.Image, x: float, foot: float, height: float, fill: Colour) -> None:
    """A fir of three stacked triangles standing at (x, foot)."""
    size = image.width
    for tier in range(3):
        top, bottom, half = foot - height * (1 - 0.24 * tier), foot - height * (0.5 - 0.25 * tier), 0.13 + 0.05 * tier
        points = [(x, top), (x - half * height, bottom), (x + half * height, bottom)]
        ImageDraw.Draw(image).polygon([(px * size, py * size) for px, py in points], fill=fill)


def snow(rng: np.random.Generator, size: int) -> Image.Image:
    """Pale sky, blue peaks with white caps, white ground."""
    image = gradient(size, [(118, 168, 216), (176, 208, 236), (214, 230, 244)])
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)):
        peak, half = rng.uniform(0.22, 0.34), rng.uniform(0.3, 0.38)
        slope = (0.75 - peak) / half
        for depth, fill in ((0.75 - peak, (132, 164, 200)), (0.14, (246, 250, 255))):
            points = [(x, peak), (x - depth / slope, peak + depth), (x + depth / slope, peak + depth)]
            ImageDraw.Draw(image).polygon([(px * size, py * size) for px, py in points], fill=fill)
    hill(image, rng, 0.66, 0.03, 0.8, (206, 222, 240))
    hill(image, rng, 0.76, 0.025, 0.6, (232, 240, 250))
    return image


def night(rng: np.random.Generator, size: int) -> Image.Image:
    """Dark sky, moon, a few stars, dark hills."""
    image = gradient(size, [(10, 14, 44), (26, 34, 84), (58, 62, 120)])
    side = rng.choice([0.0, 1.0])
    moon = (0.14 + 0.72 * side + rng.uniform(-0.04, 0.04), rng.uniform(0.13, 0.18))
    disc(image, *moon, 0.085, (250, 240, 196))
    for _ in range(7):
        disc(image, rng.uniform(0.04, 0.96), rng.uniform(0.03, 0.5), 0.009, (236, 236, 250))
    hill(image, rng, 0.68, 0.04, 0.9, (24, 30, 66))
    hill(image, rng, 0.78, 0.025, 0.6, (15, 20, 46))
    return image


def beach(rng: np.random.Generator, size: int) -> Image.Image:
    """Blue sky with a sun, sea, foam, sand."""
    image = gradient(size, [(84, 178, 240), (150, 212, 246), (214, 238, 248)])
    disc(image, rng.uniform(0.1, 0.18) + 0.7 * rng.choice([0.0, 1.0]), rng.uniform(0.12, 0.17), 0.075, (255, 228, 92))
    ImageDraw.Draw(image).rectangle([0, round(0.56 * size), size, size], fill=(30, 138, 190))
    hill(image, rng, 0.65, 0.006, 2.0, (52, 172, 206))
    hill(image, rng, 0.735, 0.012, 1.2, (236, 248, 248))
    hill(image, rng, 0.76, 0.012, 1.0, (240, 214, 154))
    return image


def forest(rng: np.random.Generator, size: int) -> Image.Image:
    """Misty green sky, two rows of firs, green ground."""
    image = gradient(size, [(168, 214, 190), (204, 232, 204), (222, 240, 212)])
    for x in np.linspace(0.06, 0.94, 6):
        fir(image, x + rng.uniform(-0.03, 0.03), 0.74, rng.uniform(0.42, 0.5), (98, 160, 122))
    for x in (0.03, 0.17, 0.83, 0.97):
        fir(image, x + rng.uniform(-0.02, 0.02), 0.82, rng.uniform(0.56, 0.68), (36, 100, 68))
    hill(image, rng, 0.75, 0.015, 0.7, (92, 146, 70))
    hill(image, rng, 0.84, 0.015, 0.6, (74, 126, 58))
    return image


def desert(rng: np.random.Generator, size: int) -> Image.Image:
    """Sunset sky from violet to orange, a low sun, dunes."""
    image = gradient(size, [(150, 84, 148), (240, 128, 104), (255, 190, 104), (255, 214, 140)])
    disc(image, 0.5 + rng.choice([-0.36, 0.36]) + rng.uniform(-0.03, 0.03), 0.5, 0.11, (255, 240, 176))
    hill(image, rng, 0.64, 0.035, 0.9, (222, 142, 84))
    hill(image, rng, 0.74, 0.03, 0.7, (204, 116, 66))
    return image


def meadow(rng: np.random.Generator, size: int) -> Image.Image:
    """Blue sky, a cloud on each side, green hills, flowers in front."""
    image = gradient(size, [(96, 176, 244), (160, 212, 250), (212, 236, 250)])
    for x in (rng.uniform(0.08, 0.22), rng.uniform(0.78, 0.92)):
        y = rng.uniform(0.12, 0.3)
        for dx, dy, radius in ((-0.07, 0.015, 0.045), (0.0, 0.0, 0.06), (0.07, 0.015, 0.045)):
            disc(image, x + dx, y + dy, radius, (250, 252, 255))
    hill(image, rng, 0.66, 0.04, 0.9, (142, 200, 92))
    hill(image, rng, 0.76, 0.025, 0.7, (112, 182, 70))
    for x in np.linspace(0.07, 0.93, 7):
        flower = ((255, 236, 110), (250, 250, 250), (244, 126, 160))[rng.integers(3)]
        disc(image, x + rng.uniform(-0.04, 0.04), rng.uniform(0.9, 0.97), 0.016, flower)
    return image


PLACES: Mapping[str, Painter] = {
    "snow": snow,
    "night": night,
    "beach": beach,
    "forest": forest,
    "desert": desert,
    "meadow": meadow,
}


def paint(place: str, rng: np.random.Generator, size: int) -> Image.Image:
    """A size×size RGB view of a place of `PLACES`."""
    return PLACES[place](rng, 2 * size).reduce(2)
