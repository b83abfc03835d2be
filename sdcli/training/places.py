"""Places: backgrounds painted from a random generator, each a different view of the same kind of place.

Every brush stroke leaves its class in a segmentation map too. Knows nothing of subjects or captions. A painter draws at
twice the size; `paint` halves it, which smooths edges.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

# What a segmentation map tells apart: the name and the colour of each class, in the order of their numbers.
CLASSES: Mapping[str, Colour] = {
    "sky": (135, 206, 235),
    "sun or moon": (255, 215, 0),
    "cloud": (245, 245, 245),
    "mountain": (112, 128, 144),
    "snow": (200, 220, 255),
    "sand": (237, 201, 130),
    "grass": (124, 200, 60),
    "water": (30, 100, 200),
    "tree": (0, 100, 0),
    "building": (178, 34, 34),
    "wall": (200, 160, 220),
    "animal": (255, 105, 0),
    "object": (150, 0, 150),
}
CLASS_NAMES = tuple(CLASSES)


class Canvas:
    """A square picture in the making, and beside it the map of what each stroke is; places are fractions of a side."""

    def __init__(self, image: Image.Image, kind: str) -> None:
        self.image, self.size = image, image.width
        self.map = Image.new("L", image.size, CLASS_NAMES.index(kind))

    @classmethod
    def gradient(cls, size: int, stops: Sequence[Colour], kind: str = "sky") -> "Canvas":
        """All of `kind`, running from the first colour at the top to the last at the bottom."""
        return cls(gradient(size, stops), kind)

    def polygon(self, points: Sequence[Point], fill: Colour, kind: str) -> None:
        """A filled polygon."""
        scaled = [(x * self.size, y * self.size) for x, y in points]
        ImageDraw.Draw(self.image).polygon(scaled, fill=fill)
        ImageDraw.Draw(self.map).polygon(scaled, fill=CLASS_NAMES.index(kind))

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour, kind: str) -> None:
        """A filled rectangle."""
        box = [round(edge * self.size) for edge in (left, top, right, bottom)]
        ImageDraw.Draw(self.image).rectangle(box, fill=fill)
        ImageDraw.Draw(self.map).rectangle(box, fill=CLASS_NAMES.index(kind))

    def hill(self, rng: np.random.Generator, top: float, height: float, waves: float, fill: Colour, kind: str) -> None:
        """Fill below a sine line around `top` with a random phase."""
        x = np.linspace(0, 1, 48)
        y = top - height * np.sin(2 * np.pi * (waves * x + rng.uniform()))
        line = [(float(px), float(py)) for px, py in zip(x, y, strict=True)]
        self.polygon([(0, 1), *line, (1, 1)], fill, kind)

    def disc(self, x: float, y: float, radius: float, fill: Colour, kind: str = "") -> None:
        """A filled circle; without a kind, a detail that is no class of its own."""
        box = [(x - radius) * self.size, (y - radius) * self.size, (x + radius) * self.size, (y + radius) * self.size]
        ImageDraw.Draw(self.image).ellipse(box, fill=fill)
        if kind:
            ImageDraw.Draw(self.map).ellipse(box, fill=CLASS_NAMES.index(kind))

    def fir(self, x: float, foot: float, height: float, fill: Colour) -> None:
        """A fir of three stacked triangles standing at (x, foot)."""
        for tier in range(3):
            half = 0.13 + 0.05 * tier
            top, bottom = foot - height * (1 - 0.24 * tier), foot - height * (0.5 - 0.25 * tier)
            self.polygon([(x, top), (x - half * height, bottom), (x + half * height, bottom)], fill, "tree")

    def peak(self, x: float, top: float, half: float, foot: float, rock: Colour, cap: Colour) -> None:
        """A mountain with a white cap."""
        slope = (foot - top) / half
        for depth, fill in ((foot - top, rock), (0.14, cap)):
            points = [(x, top), (x - depth / slope, top + depth), (x + depth / slope, top + depth)]
            self.polygon(points, fill, "mountain")

    def cloud(self, x: float, y: float) -> None:
        """Three white discs in a row."""
        for dx, dy, radius in ((-0.07, 0.015, 0.045), (0.0, 0.0, 0.06), (0.07, 0.015, 0.045)):
            self.disc(x + dx, y + dy, radius, (250, 252, 255), "cloud")


Painter = Callable[[np.random.Generator, int], Canvas]


def gradient(size: int, stops: Sequence[Colour]) -> Image.Image:
    """A size×size RGB image running from the first colour at the top to the last at the bottom."""
    rows = np.linspace(0, len(stops) - 1, size)
    column = np.stack([np.interp(rows, range(len(stops)), channel) for channel in zip(*stops, strict=True)], 1)
    return Image.fromarray(np.broadcast_to(column[:, None], (size, size, 3)).round().astype(np.uint8))


def snow(rng: np.random.Generator, size: int) -> Canvas:
    """Pale sky, blue peaks with white caps, white ground."""
    canvas = Canvas.gradient(size, [(118, 168, 216), (176, 208, 236), (214, 230, 244)])
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)):
        canvas.peak(x, rng.uniform(0.22, 0.34), rng.uniform(0.3, 0.38), 0.75, (132, 164, 200), (246, 250, 255))
    canvas.hill(rng, 0.66, 0.03, 0.8, (206, 222, 240), "snow")
    canvas.hill(rng, 0.76, 0.025, 0.6, (232, 240, 250), "snow")
    return canvas


def night(rng: np.random.Generator, size: int) -> Canvas:
    """Dark sky, moon, a few stars, dark hills."""
    canvas = Canvas.gradient(size, NIGHT_SKY)
    side = rng.choice([0.0, 1.0])
    moon = (0.14 + 0.72 * side + rng.uniform(-0.04, 0.04), rng.uniform(0.13, 0.18))
    canvas.disc(*moon, 0.085, MOON, "sun or moon")
    for _ in range(7):
        canvas.disc(rng.uniform(0.04, 0.96), rng.uniform(0.03, 0.5), 0.009, STAR)
    canvas.hill(rng, 0.68, 0.04, 0.9, (24, 30, 66), "grass")
    canvas.hill(rng, 0.78, 0.025, 0.6, (15, 20, 46), "grass")
    return canvas


def beach(rng: np.random.Generator, size: int) -> Canvas:
    """Blue sky with a sun, sea, foam, sand."""
    canvas = Canvas.gradient(size, [(84, 178, 240), (150, 212, 246), (214, 238, 248)])
    x, y = rng.uniform(0.1, 0.18) + 0.7 * rng.choice([0.0, 1.0]), rng.uniform(0.12, 0.17)
    canvas.disc(x, y, 0.075, (255, 228, 92), "sun or moon")
    canvas.rectangle(0, 0.56, 1, 1, (30, 138, 190), "water")
    canvas.hill(rng, 0.65, 0.006, 2.0, (52, 172, 206), "water")
    canvas.hill(rng, 0.735, 0.012, 1.2, (236, 248, 248), "water")
    canvas.hill(rng, 0.76, 0.012, 1.0, (240, 214, 154), "sand")
    return canvas


def forest(rng: np.random.Generator, size: int) -> Canvas:
    """Misty green sky, two rows of firs, green ground."""
    canvas = Canvas.gradient(size, [(168, 214, 190), (204, 232, 204), (222, 240, 212)])
    for x in np.linspace(0.06, 0.94, 6):
        canvas.fir(x + rng.uniform(-0.03, 0.03), 0.74, rng.uniform(0.42, 0.5), (98, 160, 122))
    for x in (0.03, 0.17, 0.83, 0.97):
        canvas.fir(x + rng.uniform(-0.02, 0.02), 0.82, rng.uniform(0.56, 0.68), (36, 100, 68))
    canvas.hill(rng, 0.75, 0.015, 0.7, (92, 146, 70), "grass")
    canvas.hill(rng, 0.84, 0.015, 0.6, (74, 126, 58), "grass")
    return canvas


def desert(rng: np.random.Generator, size: int) -> Canvas:
    """Sky from violet to orange, a low sun, dunes."""
    canvas = Canvas.gradient(size, [(150, 84, 148), (240, 128, 104), (255, 190, 104), (255, 214, 140)])
    x = 0.5 + rng.choice([-0.36, 0.36]) + rng.uniform(-0.03, 0.03)
    canvas.disc(x, 0.5, 0.11, (255, 240, 176), "sun or moon")
    canvas.hill(rng, 0.64, 0.035, 0.9, (222, 142, 84), "sand")
    canvas.hill(rng, 0.74, 0.03, 0.7, (204, 116, 66), "sand")
    return canvas


def meadow(rng: np.random.Generator, size: int) -> Canvas:
    """Blue sky, a cloud on each side, green hills, flowers in front."""
    canvas = Canvas.gradient(size, [(96, 176, 244), (160, 212, 250), (212, 236, 250)])
    for x in (rng.uniform(0.08, 0.22), rng.uniform(0.78, 0.92)):
        canvas.cloud(x, rng.uniform(0.12, 0.3))
    canvas.hill(rng, 0.66, 0.04, 0.9, (142, 200, 92), "grass")
    canvas.hill(rng, 0.76, 0.025, 0.7, (112, 182, 70), "grass")
    for x in np.linspace(0.07, 0.93, 7):
        flower = ((255, 236, 110), (250, 250, 250), (244, 126, 160))[rng.integers(3)]
        canvas.disc(x + rng.uniform(-0.04, 0.04), rng.uniform(0.9, 0.97), 0.016, flower)
    return canvas


def sunset(rng: np.random.Generator, size: int) -> Canvas:
    """A big sun going down behind the sea, its glitter on the water, a dark shore."""
    canvas = Canvas.gradient(size, [(70, 44, 110), (196, 70, 104), (255, 142, 78), (255, 204, 112)])
    x = rng.uniform(0.2, 0.8)
    canvas.disc(x, 0.56, 0.15, (255, 238, 150), "sun or moon")
    canvas.rectangle(0, 0.58, 1, 1, (142, 58, 96), "water")
    for row in range(4):
        half = 0.12 - 0.02 * row + rng.uniform(-0.02, 0.02)
        canvas.rectangle(x - half, 0.6 + 0.035 * row, x + half, 0.612 + 0.035 * row, (255, 190, 110), "water")
    canvas.hill(rng, 0.78, 0.02, 0.8, (66, 34, 62), "sand")
    return canvas


def city(rng: np.random.Generator, size: int) -> Canvas:
    """Two rows of houses with lit windows before a pale sky, a grey street."""
    canvas = Canvas.gradient(size, [(140, 190, 232), (206, 222, 236), (244, 232, 214)])
    for x in np.linspace(0, 0.9, 7):
        canvas.rectangle(x, rng.uniform(0.2, 0.42), x + 0.14, 0.78, (164, 182, 208), "building")
    for x, fill in zip(np.linspace(-0.06, 0.86, 6), ((92, 106, 140), (124, 88, 104)) * 3, strict=True):
        top = rng.uniform(0.34, 0.56)
        canvas.rectangle(x, top, x + 0.17, 0.78, fill, "building")
        for column in (0.035, 0.105):
            for level in np.arange(top + 0.05, 0.7, 0.1):
                canvas.rectangle(x + column, level, x + column + 0.03, level + 0.045, (255, 226, 140), "building")
    canvas.rectangle(0, 0.76, 1, 1, (116, 120, 130), "wall")
    canvas.rectangle(0, 0.76, 1, 0.79, (180, 182, 188), "wall")
    for x in np.linspace(0.02, 0.82, 4):
        canvas.rectangle(x, 0.905, x + 0.12, 0.925, (236, 236, 230), "wall")
    return canvas


def underwater(rng: np.random.Generator, size: int) -> Canvas:
    """Blue water, shafts of light, bubbles, weed on a sandy floor."""
    canvas = Canvas.gradient(size, [(96, 214, 232), (28, 140, 196), (10, 70, 138)], "water")
    for x in (rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.85)):
        canvas.polygon([(x, 0), (x + 0.1, 0), (x + 0.02, 0.8), (x - 0.16, 0.8)], (72, 180, 216), "water")
    canvas.hill(rng, 0.8, 0.02, 0.7, (214, 188, 132), "sand")
    for x in (0.06, 0.14, 0.88, 0.95):
        height, lean = rng.uniform(0.25, 0.5), rng.uniform(-0.05, 0.05)
        canvas.polygon([(x - 0.022, 0.88), (x + lean, 0.88 - height), (x + 0.022, 0.88)], (22, 128, 96), "tree")
    for _ in range(8):
        canvas.disc(rng.uniform(0.04, 0.96), rng.uniform(0.05, 0.7), rng.uniform(0.008, 0.018), (190, 238, 248))
    return canvas


def mountains(rng: np.random.Generator, size: int) -> Canvas:
    """Clear sky, a chain of grey peaks with white caps, green valley."""
    canvas = Canvas.gradient(size, [(70, 140, 224), (138, 190, 240), (206, 228, 246)])
    for x, shade in ((0.12, 0), (0.88, 0), (0.36, 18), (0.66, 18)):
        rock = (106 + shade, 104 + shade, 122 + shade)
        canvas.peak(x + rng.uniform(-0.05, 0.05), rng.uniform(0.1, 0.3), rng.uniform(0.26, 0.34), 0.75, rock,
                    (246, 248, 252))  # fmt: skip
    canvas.hill(rng, 0.72, 0.02, 0.8, (110, 158, 92), "grass")
    canvas.hill(rng, 0.8, 0.02, 0.6, (86, 134, 74), "grass")
    return canvas


def autumn(rng: np.random.Generator, size: int) -> Canvas:
    """Round trees in red, orange and gold, fallen leaves."""
    canvas = Canvas.gradient(size, [(196, 216, 232), (232, 230, 216), (250, 236, 204)])
    leaves = ((214, 92, 36), (238, 160, 44), (186, 52, 40))
    for x in (0.06, 0.22, 0.5, 0.78, 0.94):
        x = x + rng.uniform(-0.03, 0.03)
        canvas.rectangle(x - 0.015, 0.45, x + 0.015, 0.8, (96, 66, 48), "tree")
        canvas.disc(x, rng.uniform(0.3, 0.42), rng.uniform(0.11, 0.14), leaves[rng.integers(3)], "tree")
    canvas.hill(rng, 0.76, 0.015, 0.7, (196, 150, 76), "grass")
    for _ in range(14):
        canvas.disc(rng.uniform(0.02, 0.98), rng.uniform(0.82, 0.98), 0.012, leaves[rng.integers(3)])
    return canvas


def space(rng: np.random.Generator, size: int) -> Canvas:
    """Black sky full of stars, a ringed planet, grey ground with craters."""
    canvas = Canvas.gradient(size, [(6, 4, 18), (18, 10, 44), (40, 20, 76)])
    for _ in range(24):
        canvas.disc(rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.7), rng.uniform(0.004, 0.009), STAR)
    x, y = 0.16 + 0.68 * rng.choice([0.0, 1.0]), rng.uniform(0.16, 0.24)
    canvas.polygon([(x - 0.17, y + 0.05), (x + 0.17, y - 0.05), (x + 0.16, y - 0.02), (x - 0.16, y + 0.07)],
                   (206, 184, 140), "sun or moon")  # fmt: skip
    canvas.disc(x, y, 0.095, (224, 130, 84), "sun or moon")
    canvas.hill(rng, 0.76, 0.02, 0.6, (150, 150, 160), "sand")
    for crater in np.linspace(0.1, 0.9, 5):
        canvas.disc(crater + rng.uniform(-0.05, 0.05), rng.uniform(0.86, 0.96), 0.03, (120, 120, 132))
    return canvas


NIGHT_SKY: Sequence[Colour] = ((10, 14, 44), (26, 34, 84), (58, 62, 120))
SUNSET_SKY: Sequence[Colour] = ((92, 60, 132), (222, 104, 106), (255, 176, 96), (255, 214, 140))
MOON: Colour = (250, 240, 196)
STAR: Colour = (236, 236, 250)

# The first 10 are those of kit as it is shipped.
PLACES: Mapping[str, Painter] = {
    "snow": snow,
    "night": night,
    "beach": beach,
    "forest": forest,
    "desert": desert,
    "meadow": meadow,
    "sunset": sunset,
    "city": city,
    "underwater": underwater,
    "mountains": mountains,
    "autumn": autumn,
    "space": space,
}
BACKGROUNDS: Mapping[str, tuple[Colour, Colour]] = {
    "white background": ((252, 252, 252), (232, 232, 236)),
    "blue background": ((96, 160, 236), (70, 128, 206)),
    "yellow background": ((255, 226, 120), (244, 204, 84)),
    "pink background": ((255, 186, 206), (244, 156, 184)),
    "grey background": ((160, 164, 172), (128, 132, 140)),
}
TIMES = ("day", "night", "sunset")
TIMED_PLACES = ("snow", "beach", "forest", "meadow", "city", "mountains")
"""Where another time of day makes sense: the others have theirs, or none."""


def paint(place: str, rng: np.random.Generator, size: int, time: str = "day") -> tuple[Image.Image, np.ndarray]:
    """A view of a place of `PLACES` or `BACKGROUNDS`: RGB size×size, and its map, uint8 (size, size) of classes."""
    if place in BACKGROUNDS:
        canvas = Canvas.gradient(2 * size, BACKGROUNDS[place], "wall")
    else:
        canvas = PLACES[place](rng, 2 * size)
    image, kinds = canvas.image.reduce(2), np.asarray(canvas.map)[::2, ::2].copy()
    if time != "day":
        image = at_time(image, kinds, time, rng)
    return image, kinds


def at_time(image: Image.Image, kinds: np.ndarray, time: str, rng: np.random.Generator) -> Image.Image:
    """The place at night or at sunset: another sky, and the light of it on all else."""
    size = image.width
    light, sky = {
        "night": (np.array([0.30, 0.34, 0.58]), Canvas.gradient(size, NIGHT_SKY)),
        "sunset": (np.array([0.98, 0.68, 0.60]), Canvas.gradient(size, SUNSET_SKY)),
    }[time]
    if time == "night":
        for _ in range(9):
            sky.disc(rng.uniform(0.03, 0.97), rng.uniform(0.03, 0.5), 0.009, STAR)
    lit = np.asarray(image) * light
    above, disc = (kinds == CLASS_NAMES.index(kind) for kind in ("sky", "sun or moon"))
    lit[above] = np.asarray(sky.image)[above]
    lit[disc] = MOON if time == "night" else (255, 232, 150)
    return Image.fromarray(lit.round().astype(np.uint8))
