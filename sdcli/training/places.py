"""Places: backgrounds painted from a random generator, each a different view of the same kind of place.

A place is a sky, what stands far away, and the near ground; `paint` puts them together, of one place or of several.
Knows nothing of subjects or captions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdcli.training.clay import CLASS_NAMES, CLASSES, Canvas, Colour

__all__ = ["BACKGROUNDS", "CLASSES", "CLASS_NAMES", "PLACES", "TIMED_PLACES", "TIMES", "mixed", "paint", "parts_of"]

Stops = Sequence[Colour]
Rng = np.random.Generator
TIMES = ("day", "night", "sunset")
LIGHTS: Mapping[str, Colour] = {"day": (1, 1, 1), "night": (0.34, 0.41, 0.68), "sunset": (1.0, 0.74, 0.64)}
NIGHT_SKY: Stops = ((9, 12, 44), (22, 29, 82), (48, 54, 118), (84, 84, 150))
SUNSET_SKY: Stops = ((88, 62, 140), (206, 92, 122), (255, 152, 96), (255, 214, 150))
MOON: Stops = ((255, 250, 222), (238, 226, 186))
SUN: Stops = ((255, 242, 150), (255, 214, 76))
LOW_SUN: Stops = ((255, 246, 190), (255, 208, 110))
WHITE: Colour = (252, 253, 255)


@dataclass(frozen=True)
class Place:
    """What a place is made of: `sky` by day from top to horizon, then painters of what is far and of the ground.

    `air` adds to the sky by day; `timed`: whether it has other times of day than its own, `time`.
    """

    sky: Stops
    air: Callable[[Canvas, Rng], None]
    far: Callable[[Canvas, Rng], None]
    ground: Callable[[Canvas, Rng], None]
    timed: bool = True
    time: str = "day"
    above: str = "sky"
    """The class of the sky."""


def aside(rng: Rng, spread: float = 0.06) -> float:
    """Somewhere near the left or the right edge."""
    return float(0.16 + 0.68 * rng.integers(2) + rng.uniform(-spread, spread))


def wave(canvas: Canvas, rng: Rng, y: float, height: float, waves: float = 0.9) -> np.ndarray:
    """A soft line about `y`, a value for each column."""
    x = (np.arange(canvas.size, dtype=np.float32) + 0.5) / canvas.size
    one, two = rng.uniform(0, 2 * np.pi, 2)
    swing = np.sin(2 * np.pi * waves * x + one) + 0.4 * np.sin(2 * np.pi * 2.3 * waves * x + two)
    line: np.ndarray = (y - height * swing / 1.2).astype(np.float32)
    return line


# What several places have.


def nothing(canvas: Canvas, rng: Rng) -> None:
    """An empty sky."""


def cloud(canvas: Canvas, x: float, y: float, scale: float) -> None:
    """Soft white balls in a row."""
    stops = ((255, 255, 255), (222, 232, 246))
    for dx, dy, radius in ((-0.075, 0.018, 0.042), (0.075, 0.02, 0.038), (-0.01, 0, 0.062), (0.045, 0.008, 0.048)):
        canvas.ball(x + scale * dx, y + scale * dy, scale * radius, stops, "cloud", depth=0.25)


def clouds(canvas: Canvas, rng: Rng) -> None:
    """One to three clouds."""
    for x in ((0.16, 0.84), (0.2,), (0.8,), (0.12, 0.52, 0.9))[rng.integers(4)]:
        cloud(canvas, x + rng.uniform(-0.06, 0.06), rng.uniform(0.1, 0.26), rng.uniform(0.8, 1.25))


def sun(canvas: Canvas, rng: Rng) -> None:
    """A sun at one side."""
    x, y = aside(rng), rng.uniform(0.12, 0.18)
    canvas.glow(x, y, 0.2, (255, 246, 206), 0.6)
    canvas.ball(x, y, 0.07, SUN, "sun or moon", shine=True, depth=0.12)


def sun_and_clouds(canvas: Canvas, rng: Rng) -> None:
    """A sun, and often a cloud."""
    sun(canvas, rng)
    if rng.uniform() < 0.6:
        cloud(canvas, rng.uniform(0.4, 0.6), rng.uniform(0.12, 0.24), rng.uniform(0.7, 1.0))


def stars(canvas: Canvas, rng: Rng, count: int, lowest: float) -> None:
    """Dots of light in the sky."""
    for _ in range(count):
        x, y, radius = rng.uniform(0.02, 0.98), rng.uniform(0.02, lowest), rng.uniform(0.003, 0.0075)
        canvas.ball(x, y, radius, ((255, 255, 255), (226, 230, 255)), "", shine=True, depth=0.0)


def moonlit(canvas: Canvas, rng: Rng) -> None:
    """Stars and a moon."""
    stars(canvas, rng, 14, 0.5)
    x, y = aside(rng, 0.04), rng.uniform(0.13, 0.19)
    canvas.glow(x, y, 0.18, (150, 160, 220), 0.45)
    canvas.ball(x, y, 0.075, MOON, "sun or moon", shine=True, depth=0.2)
    for dx, dy, radius in ((-0.02, -0.015, 0.014), (0.025, 0.02, 0.018), (0.01, -0.035, 0.009)):
        canvas.ball(x + dx, y + dy, radius, ((228, 216, 176), (236, 226, 190)), "", shine=True, depth=0.0)


def low_sun(canvas: Canvas, rng: Rng) -> None:
    """A big sun near the horizon."""
    x, y = rng.uniform(0.18, 0.82), rng.uniform(0.46, 0.54)
    canvas.bright = x
    canvas.glow(x, y, 0.34, (255, 226, 150), 0.7)
    canvas.ball(x, y, 0.1, LOW_SUN, "sun or moon", shine=True, depth=0.1)


def fir(canvas: Canvas, x: float, foot: float, height: float, stops: Stops, far: float = 0.0) -> None:
    """A fir of three stacked cones on a trunk."""
    trunk = ((120, 84, 60), (96, 66, 48))
    canvas.block(x - 0.028 * height, foot - 0.2 * height, x + 0.028 * height, foot, trunk, "tree", far=far)
    for tier in (2, 1, 0):
        half, top = (0.17 + 0.055 * tier) * height, foot - height * (1 - 0.23 * tier)
        bottom = foot - height * (0.56 - 0.225 * tier)
        canvas.cone(x, top, half, bottom, stops, "tree", bevel=0.22 * height, round=0.07 * height, far=far)


def round_tree(canvas: Canvas, x: float, foot: float, height: float, stops: Stops, far: float = 0.0) -> None:
    """A crown of balls on a trunk."""
    trunk = ((134, 94, 66), (104, 72, 52))
    canvas.block(x - 0.05 * height, foot - 0.5 * height, x + 0.05 * height, foot, trunk, "tree", far=far)
    for dx, dy, radius in ((-0.18, 0.5, 0.2), (0.18, 0.5, 0.2), (0.0, 0.68, 0.28)):
        canvas.ball(x + dx * height, foot - dy * height, radius * height, stops, "tree", far=far, depth=0.48)


def peak(canvas: Canvas, x: float, top: float, half: float, foot: float, rock: Stops, cap: Stops, far: float) -> None:
    """A mountain with a round white cap."""
    canvas.cone(x, top, half, foot, rock, "mountain", bevel=0.12, round=0.04, far=far, depth=0.75)
    snow = 0.36 * (foot - top)
    canvas.cone(x, top - 0.004, half * 0.37, top + snow, cap, "mountain", bevel=0.08, round=0.06, far=far, depth=0.4)


def house(canvas: Canvas, x: float, foot: float, wide: float, wall: Colour, roof: Colour, far: float) -> None:
    """A small house with a roof, a door and a window."""
    high = 0.8 * wide
    side = tuple(0.86 * channel for channel in wall)
    canvas.block(x - wide / 2, foot - high, x + wide / 2, foot, (wall, side), "building", far=far)  # type: ignore[arg-type]
    dark = tuple(0.74 * channel for channel in roof)
    canvas.cone(x, foot - 1.75 * high, 0.68 * wide, foot - 0.82 * high, (roof, dark), "building", bevel=0.05,
                round=0.02, far=far)  # type: ignore[arg-type] # fmt: skip
    canvas.block(x - 0.32 * wide, foot - 0.5 * high, x - 0.08 * wide, foot, ((140, 92, 66), (120, 78, 56)), "building",
                 far=far)  # fmt: skip
    lit = canvas.light[0] < 0.5
    pane: Stops = ((255, 226, 130), (255, 206, 96)) if lit else ((178, 222, 246), (140, 196, 236))
    canvas.block(x + 0.1 * wide, foot - 0.6 * high, x + 0.34 * wide, foot - 0.28 * high, pane, "building", shine=lit,
                 far=far, depth=0.2)  # fmt: skip


def grass(canvas: Canvas, rng: Rng, y: float, stops: Stops = ((150, 206, 92), (104, 172, 66), (84, 150, 58))) -> None:
    """Near grass with soft blotches."""
    canvas.hill(wave(canvas, rng, y, 0.016, 0.7), stops, "grass")
    canvas.mottle(rng, "grass", 0.05)


def scatter(
    canvas: Canvas, rng: Rng, count: int, colours: Sequence[Colour], size: float, top: float = 0.8, flat: float = 1.0
) -> None:
    """Small things on the ground, the nearer the bigger."""
    for y in np.sort(rng.uniform(top, 0.985, count)):
        x, near = rng.uniform(0.02, 0.98), 0.55 + 0.9 * (y - 0.75) / 0.25
        colour = colours[rng.integers(len(colours))]
        radius = size * near
        canvas.egg(x, y, radius, flat * radius, (colour, tuple(0.86 * c for c in colour)), "")  # type: ignore[arg-type]


# The places.


def snow_far(canvas: Canvas, rng: Rng) -> None:
    """Blue peaks, and firs under snow."""
    rock, cap = ((150, 178, 212), (176, 202, 230)), ((250, 252, 255), (232, 242, 252))
    for x in (rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.98), rng.uniform(0.4, 0.6)):
        peak(canvas, x, rng.uniform(0.24, 0.4), rng.uniform(0.26, 0.34), 0.76, rock, cap, 0.25)
    canvas.hill(wave(canvas, rng, 0.66, 0.03), ((228, 238, 250), (196, 216, 240)), "snow", far=0.2)
    for x in (0.05, 0.16, 0.86, 0.96):
        if rng.uniform() < 0.7:
            stops = ((244, 248, 252), (120, 164, 160), (84, 134, 132))
            fir(canvas, x + rng.uniform(-0.03, 0.03), 0.73 + rng.uniform(-0.01, 0.02), rng.uniform(0.2, 0.28), stops)


def snow_ground(canvas: Canvas, rng: Rng) -> None:
    """White ground, a few flakes in the air."""
    canvas.hill(wave(canvas, rng, 0.74, 0.02, 0.7), ((250, 252, 255), (226, 236, 250), (206, 222, 244)), "snow")
    canvas.mottle(rng, "snow", 0.02)
    for _ in range(10):
        canvas.ball(rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.004, 0.009), (WHITE, WHITE), "", depth=0.0)


def beach_far(canvas: Canvas, rng: Rng) -> None:
    """The sea, calm, with light on its waves."""
    flat = np.full(canvas.size, 0.56 + rng.uniform(-0.02, 0.02), np.float32)
    canvas.hill(flat, ((60, 148, 214), (46, 166, 214), (86, 206, 216)), "water", reach=0.24)
    for _ in range(9):
        x, y = rng.uniform(), rng.uniform(0.59, 0.7)
        wide = rng.uniform(0.03, 0.08) * (y - 0.5) * 5
        canvas.egg(x, y, wide, 0.004, ((150, 220, 238), (150, 220, 238)), "", depth=0.0)


def beach_ground(canvas: Canvas, rng: Rng) -> None:
    """Foam, wet sand, dry sand, some shells."""
    line = wave(canvas, rng, 0.735, 0.012, 1.1)
    canvas.hill(line - 0.018, ((244, 252, 252), (226, 246, 248)), "water")
    canvas.hill(line, ((214, 180, 128), (226, 192, 138)), "sand", reach=0.04)
    canvas.hill(line + 0.03, ((250, 224, 166), (240, 206, 142), (226, 188, 122)), "sand")
    canvas.mottle(rng, "sand", 0.04)
    scatter(canvas, rng, 5, ((252, 240, 226), (244, 172, 150), (250, 220, 190)), 0.012, 0.84, 0.7)


def forest_far(canvas: Canvas, rng: Rng) -> None:
    """Two rows of firs, one in the mist."""
    canvas.hill(wave(canvas, rng, 0.68, 0.02), ((132, 182, 110), (112, 164, 92)), "grass", far=0.4)
    for x in np.linspace(0.03, 0.97, 7):
        fir(canvas, x + rng.uniform(-0.03, 0.03), 0.73, rng.uniform(0.36, 0.5), ((110, 176, 120), (66, 132, 92)), 0.5)
    for x in (0.02, 0.15, 0.85, 0.98):
        fir(canvas, x + rng.uniform(-0.03, 0.03), 0.79, rng.uniform(0.5, 0.66), ((88, 170, 96), (34, 104, 66)))


def forest_ground(canvas: Canvas, rng: Rng) -> None:
    """Moss, bushes at the sides."""
    grass(canvas, rng, 0.755, ((124, 178, 80), (88, 146, 62), (68, 122, 54)))
    for x in (rng.uniform(-0.02, 0.08), rng.uniform(0.92, 1.02)):
        for dx, radius in ((-0.05, 0.05), (0.05, 0.045), (0, 0.062)):
            canvas.ball(x + dx, 0.8, radius, ((110, 184, 90), (54, 122, 62)), "plant", depth=0.6)
    scatter(canvas, rng, 4, ((216, 74, 66), (240, 226, 200)), 0.012, 0.86, 0.7)


def desert_far(canvas: Canvas, rng: Rng) -> None:
    """Flat-topped rocks and dunes."""
    for x in (rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)):
        wide, top = rng.uniform(0.08, 0.14), rng.uniform(0.42, 0.52)
        canvas.block(x - wide, top, x + wide, 0.75, ((222, 126, 84), (196, 104, 72)), "mountain", radius=0.035,
                     bevel=0.05, far=0.3)  # fmt: skip
    canvas.hill(wave(canvas, rng, 0.63, 0.035), ((248, 200, 130), (226, 162, 98)), "sand", far=0.15, reach=0.2)


def desert_ground(canvas: Canvas, rng: Rng) -> None:
    """A dune, a cactus at one side."""
    canvas.hill(wave(canvas, rng, 0.73, 0.026, 0.7), ((250, 196, 118), (234, 166, 92), (214, 142, 76)), "sand")
    canvas.mottle(rng, "sand", 0.04)
    for x in (0.07, 0.93):
        if rng.uniform() < 0.6:
            cactus(canvas, x + rng.uniform(-0.03, 0.03), 0.8, rng.uniform(0.2, 0.3))
    scatter(canvas, rng, 4, ((200, 150, 110), (180, 130, 96)), 0.016, 0.84, 0.7)


def cactus(canvas: Canvas, x: float, foot: float, height: float) -> None:
    """A stem with two arms."""
    stops = ((120, 190, 104), (66, 142, 84))
    thick = 0.11 * height
    for side, low in ((-1, 0.34), (1, 0.44)):
        elbow, tip = x + side * 0.3 * height, foot - (low + 0.36) * height
        left, right = min(x, elbow), max(x, elbow)
        level = foot - low * height
        canvas.block(left - thick / 2, level - 0.8 * thick, right + thick / 2, level + 0.8 * thick, stops, "plant",
                     radius=0.05, bevel=0.03)  # fmt: skip
        canvas.block(elbow - 0.8 * thick, tip, elbow + 0.8 * thick, level + 0.8 * thick, stops, "plant", radius=0.05,
                     bevel=0.03)  # fmt: skip
    canvas.block(x - thick, foot - height, x + thick, foot, stops, "plant", radius=0.06, bevel=0.04)


def meadow_far(canvas: Canvas, rng: Rng) -> None:
    """Green hills with small round trees."""
    canvas.hill(wave(canvas, rng, 0.6, 0.04), ((170, 214, 130), (140, 196, 104)), "grass", far=0.35)
    for x in (rng.uniform(0.04, 0.3), rng.uniform(0.7, 0.96)):
        round_tree(canvas, x, 0.66, rng.uniform(0.14, 0.2), ((130, 196, 92), (70, 142, 66)), 0.25)
    canvas.hill(wave(canvas, rng, 0.68, 0.03), ((164, 216, 104), (124, 190, 78)), "grass", far=0.1)


def meadow_ground(canvas: Canvas, rng: Rng) -> None:
    """Grass with flowers."""
    grass(canvas, rng, 0.75)
    scatter(canvas, rng, 16, ((255, 226, 92), (252, 252, 252), (250, 134, 170), (178, 130, 240)), 0.014, 0.79)


def city_far(canvas: Canvas, rng: Rng) -> None:
    """Towers in the haze, and houses with windows before them."""
    for x in np.linspace(0.0, 1.0, 8):
        wide, top = rng.uniform(0.055, 0.08), rng.uniform(0.2, 0.46)
        canvas.block(x - wide, top, x + wide, 0.8, ((176, 190, 214), (164, 178, 206)), "building", radius=0.02,
                     bevel=0.03, far=0.45)  # fmt: skip
    walls = ((244, 160, 122), (120, 150, 214), (246, 206, 128), (156, 196, 168), (214, 132, 150), (230, 224, 216))
    start, x = int(rng.integers(6)), -0.02 - rng.uniform(0, 0.05)
    while x < 1:
        wide, top = rng.uniform(0.14, 0.2), rng.uniform(0.36, 0.56)
        tower(canvas, x, top, x + wide - 0.008, walls[start % 6])
        start, x = start + 1, x + wide


def tower(canvas: Canvas, left: float, top: float, right: float, wall: Colour) -> None:
    """A house of flats with three windows a floor."""
    dark = tuple(0.8 * channel for channel in wall)
    canvas.block(left, top, right, 0.8, (wall, dark), "building", radius=0.016, bevel=0.03)  # type: ignore[arg-type]
    lit = canvas.light[0] < 0.5
    pane: Stops = ((255, 230, 140), (255, 208, 104)) if lit else ((190, 226, 246), (150, 196, 230))
    step = (right - left) / 3.4
    for level in np.arange(top + 0.04, 0.7, 0.075):
        for column in range(3):
            x = left + step * (0.45 + column)
            canvas.block(x, level, x + 0.6 * step, level + 0.04, pane, "", radius=0.006, shine=lit, depth=0.15)


def city_ground(canvas: Canvas, rng: Rng) -> None:
    """A pavement, and a street with a broken line."""
    edge = np.full(canvas.size, 0.755, np.float32)
    canvas.hill(edge, ((216, 214, 218), (198, 198, 206)), "ground", reach=0.05)
    canvas.hill(edge + 0.045, ((150, 152, 166), (122, 124, 140), (104, 106, 122)), "ground")
    canvas.mottle(rng, "ground", 0.03)
    shift = rng.uniform(0, 0.25)
    for x in np.arange(-0.2 + shift, 1.1, 0.25):
        canvas.block(x, 0.93, x + 0.13, 0.95, ((250, 246, 232), (240, 236, 222)), "", depth=0.1)


def underwater_air(canvas: Canvas, rng: Rng) -> None:
    """Shafts of light."""
    xs, ys = np.meshgrid(*(2 * [(np.arange(canvas.size) + 0.5) / canvas.size]))
    for x in (rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.6), rng.uniform(0.65, 0.95)):
        beam = np.exp(-(((xs - x + 0.25 * ys) / (0.03 + 0.06 * ys)) ** 2)) * (1 - ys).clip(0, 1)
        canvas.image += (46 * beam)[..., None].astype(np.float32)


def underwater_far(canvas: Canvas, rng: Rng) -> None:
    """Rocks in the blue."""
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)):
        canvas.egg(x, 0.8, rng.uniform(0.14, 0.22), rng.uniform(0.14, 0.3), ((60, 140, 190), (30, 96, 158)), "mountain",
                   far=0.5)  # fmt: skip


def underwater_ground(canvas: Canvas, rng: Rng) -> None:
    """A sandy floor with weed and coral, bubbles."""
    canvas.hill(wave(canvas, rng, 0.77, 0.02, 0.7), ((246, 226, 170), (214, 196, 148), (176, 170, 140)), "sand")
    canvas.mottle(rng, "sand", 0.05)
    for x in (0.05, 0.13, 0.88, 0.96):
        weed(canvas, rng, x + rng.uniform(-0.03, 0.03), 0.84 + rng.uniform(-0.02, 0.03), rng.uniform(0.2, 0.42))
    colours = (((255, 150, 140), (230, 96, 116)), ((255, 190, 110), (240, 140, 80)), ((200, 140, 240), (150, 96, 210)))
    for x in (0.2, 0.8):
        if rng.uniform() < 0.6:
            stops, foot = colours[rng.integers(3)], rng.uniform(0.8, 0.85)
            for dx, high in ((-0.03, 0.07), (0.0, 0.11), (0.03, 0.08)):
                canvas.block(x + dx - 0.013, foot - high, x + dx + 0.013, foot, stops, "plant", radius=0.02)
    for _ in range(8):
        canvas.ball(rng.uniform(0.04, 0.96), rng.uniform(0.05, 0.7), rng.uniform(0.007, 0.018),
                    ((222, 246, 252), (150, 214, 240)), "", depth=0.3)  # fmt: skip


def weed(canvas: Canvas, rng: Rng, x: float, foot: float, height: float) -> None:
    """A waving blade."""
    turn, thick = rng.uniform(0, 6.28), 0.016

    def inside(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        up = ((foot - ys) / height).clip(0, 1)
        middle = x + 0.025 * np.sin(2 * np.pi * up + turn) * up
        return np.minimum(thick * (1 - 0.75 * up) - np.abs(xs - middle), ys - foot + height)

    stops = ((110, 214, 130), (32, 142, 110))
    canvas.shape((x - 0.05, foot - height, x + 0.05, foot), inside, stops, "plant", bevel=0.016)


def mountains_far(canvas: Canvas, rng: Rng) -> None:
    """A chain of peaks with white caps over dark woods."""
    cap = ((255, 255, 255), (228, 238, 250))
    for x, far in ((0.36, 0.45), (0.68, 0.45), (0.1, 0.1), (0.9, 0.1)):
        rock = ((142, 144, 170), (116, 122, 150))
        peak(
            canvas, x + rng.uniform(-0.06, 0.06), rng.uniform(0.12, 0.3), rng.uniform(0.26, 0.36), 0.74, rock, cap, far
        )
    canvas.hill(wave(canvas, rng, 0.68, 0.025), ((124, 182, 104), (100, 158, 88)), "grass", far=0.2)
    for x in rng.uniform(0, 1, 6):
        fir(canvas, x, 0.74, rng.uniform(0.1, 0.15), ((84, 154, 96), (44, 108, 76)), 0.15)


def mountains_ground(canvas: Canvas, rng: Rng) -> None:
    """An alp with stones."""
    grass(canvas, rng, 0.75, ((146, 196, 96), (104, 160, 74), (80, 134, 62)))
    scatter(canvas, rng, 6, ((168, 168, 180), (190, 190, 198)), 0.018, 0.82, 0.7)


def space_air(canvas: Canvas, rng: Rng) -> None:
    """Stars, a nebula, a planet with a ring."""
    canvas.glow(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.5), 0.3, (110, 60, 170), 0.5)
    stars(canvas, rng, 34, 0.74)
    x, y = aside(rng), rng.uniform(0.16, 0.26)
    planets = (((255, 190, 120), (206, 104, 84)), ((150, 210, 250), (76, 110, 210)), ((250, 170, 200), (176, 88, 170)))
    tilt = rng.uniform(0.15, 0.4)

    def ring(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        along, across = xs - x + tilt * (ys - y), (ys - y - tilt * (xs - x)) * 4.2
        return 0.018 - np.abs(np.hypot(along, across) - 0.15)

    def front(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        return np.minimum(ring(xs, ys), 0.3 * (ys - y - tilt * (xs - x)))

    box = (x - 0.19, y - 0.12, x + 0.19, y + 0.12)
    gold: Stops = ((246, 222, 170), (222, 186, 140))
    canvas.shape(box, ring, gold, "sun or moon", shine=True, depth=0.1)
    canvas.ball(x, y, 0.092, planets[rng.integers(3)], "sun or moon", shine=True, depth=0.7)
    canvas.shape(box, front, gold, "sun or moon", shine=True, depth=0.1)


def space_far(canvas: Canvas, rng: Rng) -> None:
    """Hills of the moon."""
    canvas.hill(wave(canvas, rng, 0.68, 0.03, 0.8), ((140, 142, 164), (110, 112, 138)), "ground", far=0.25)


def space_ground(canvas: Canvas, rng: Rng) -> None:
    """Grey dust with craters."""
    canvas.hill(wave(canvas, rng, 0.75, 0.015, 0.6), ((206, 206, 218), (168, 168, 186), (138, 138, 160)), "ground")
    canvas.mottle(rng, "ground", 0.05)
    for y in np.sort(rng.uniform(0.79, 0.97, 6)):
        x, radius = rng.uniform(0.03, 0.97), 0.018 + 0.12 * (y - 0.75)
        canvas.egg(x, y, 1.16 * radius, 0.5 * radius, ((216, 216, 228), (196, 196, 212)), "", depth=0.2)
        canvas.egg(x, y + 0.1 * radius, radius, 0.38 * radius, ((112, 112, 134), (150, 150, 170)), "", depth=0.0)


def autumn_far(canvas: Canvas, rng: Rng) -> None:
    """Round trees in red, orange and gold."""
    leaves = (((255, 150, 70), (206, 84, 36)), ((255, 204, 84), (228, 146, 40)), ((236, 104, 74), (168, 46, 42)))
    canvas.hill(wave(canvas, rng, 0.67, 0.02), ((226, 190, 110), (206, 164, 88)), "ground", far=0.3)
    for x in np.linspace(0.1, 0.9, 5):
        round_tree(canvas, x + rng.uniform(-0.05, 0.05), 0.73, rng.uniform(0.32, 0.42), leaves[rng.integers(3)], 0.4)
    for x in (0.04, 0.2, 0.8, 0.96):
        round_tree(canvas, x + rng.uniform(-0.04, 0.04), 0.79, rng.uniform(0.46, 0.58), leaves[rng.integers(3)])


def autumn_ground(canvas: Canvas, rng: Rng) -> None:
    """A floor of fallen leaves."""
    canvas.hill(wave(canvas, rng, 0.76, 0.014, 0.7), ((238, 190, 104), (212, 156, 78), (184, 128, 62)), "ground")
    canvas.mottle(rng, "ground", 0.06)
    scatter(canvas, rng, 22, ((226, 92, 44), (252, 188, 70), (196, 58, 44), (244, 138, 56)), 0.015, 0.79, 0.6)


def night_far(canvas: Canvas, rng: Rng) -> None:
    """Blue hills with a few dark firs."""
    canvas.hill(wave(canvas, rng, 0.64, 0.04), ((66, 78, 150), (46, 56, 122)), "grass", far=0.2)
    for x in (rng.uniform(0.02, 0.25), rng.uniform(0.75, 0.98)):
        fir(canvas, x, 0.74, rng.uniform(0.14, 0.22), ((52, 66, 134), (28, 38, 92)), 0.1)


def night_ground(canvas: Canvas, rng: Rng) -> None:
    """Dark grass."""
    grass(canvas, rng, 0.74, ((58, 74, 138), (36, 48, 104), (26, 34, 84)))


def sunset_far(canvas: Canvas, rng: Rng) -> None:
    """The sun going down behind the sea, and its glitter."""
    flat = np.full(canvas.size, 0.56, np.float32)
    canvas.hill(flat, ((236, 128, 110), (176, 84, 122), (110, 62, 116)), "water", reach=0.24)
    for row in range(6):
        y = 0.58 + 0.026 * row
        wide = (0.09 - 0.009 * row) * rng.uniform(0.7, 1.2)
        canvas.egg(
            canvas.bright + rng.uniform(-0.02, 0.02), y, wide, 0.006, ((255, 214, 140), (255, 200, 120)), "", depth=0.0
        )


def sunset_ground(canvas: Canvas, rng: Rng) -> None:
    """A dark shore."""
    canvas.hill(wave(canvas, rng, 0.75, 0.018, 0.8), ((150, 92, 108), (106, 62, 90), (74, 44, 76)), "sand")
    canvas.mottle(rng, "sand", 0.04)


def room_air(canvas: Canvas, rng: Rng) -> None:
    """A wall with a window at one side and a picture at the other."""
    papers = ((250, 226, 200), (206, 226, 232), (226, 214, 240), (216, 232, 206), (250, 214, 208))
    wall = papers[rng.integers(5)]
    canvas.fill((tuple(min(255, 1.04 * c) for c in wall), tuple(0.9 * c for c in wall)), "wall", 0.74)  # type: ignore[arg-type]
    side = int(rng.integers(2))
    x, y = 0.2 + 0.6 * side + rng.uniform(-0.03, 0.03), 0.3
    canvas.block(x - 0.14, y - 0.18, x + 0.14, y + 0.18, (WHITE, (232, 230, 228)), "wall", radius=0.02)
    canvas.block(x - 0.115, y - 0.155, x + 0.115, y + 0.155, ((150, 208, 250), (222, 240, 250)), "", depth=0.0)
    canvas.block(x - 0.008, y - 0.16, x + 0.008, y + 0.16, (WHITE, WHITE), "", depth=0.2)
    canvas.block(x - 0.12, y - 0.012, x + 0.12, y + 0.012, (WHITE, WHITE), "", depth=0.2)
    x = 1 - x
    canvas.block(x - 0.1, y - 0.1, x + 0.1, y + 0.08, ((196, 146, 96), (170, 120, 78)), "object", radius=0.012)
    canvas.block(x - 0.08, y - 0.08, x + 0.08, y + 0.06, ((252, 248, 240), (240, 236, 226)), "object", depth=0.0)
    spots = ((250, 150, 130), (120, 180, 220), (250, 206, 110), (140, 196, 140))
    canvas.ball(x, y - 0.01, 0.04, 2 * (spots[rng.integers(4)],), "object", depth=0.0)


def room_ground(canvas: Canvas, rng: Rng) -> None:
    """A skirting board, wooden boards, a round rug."""
    edge = np.full(canvas.size, 0.72, np.float32)
    canvas.hill(edge, ((252, 250, 246), (230, 226, 222)), "wall", reach=0.03)
    canvas.hill(edge + 0.03, ((216, 166, 116), (196, 144, 96), (176, 126, 84)), "ground")
    xs, ys = np.meshgrid(*(2 * [(np.arange(canvas.size) + 0.5) / canvas.size]))
    boards = np.abs((((xs - 0.5) / (ys - 0.42).clip(0.1)) * 4.5 + rng.uniform()) % 1 - 0.5)
    floor = canvas.map == CLASS_NAMES.index("ground")
    canvas.image *= np.where(floor & (boards > 0.47), 0.9, 1.0)[..., None].astype(np.float32)
    rugs = ((120, 150, 214), (230, 120, 120), (120, 184, 160), (240, 190, 110), (176, 140, 214))
    rug = rugs[rng.integers(5)]
    pale = tuple(0.6 * channel + 100 for channel in rug)
    canvas.egg(0.5, 0.885, 0.46, 0.085, (rug, rug), "ground", bevel=0.012, depth=0.4)
    canvas.egg(0.5, 0.885, 0.4, 0.068, (pale, pale), "", bevel=0.01, depth=0.1)  # type: ignore[arg-type]
    canvas.egg(0.5, 0.885, 0.36, 0.058, (rug, rug), "", bevel=0.01, depth=0.1)


def village_far(canvas: Canvas, rng: Rng) -> None:
    """Small houses on green hills."""
    canvas.hill(wave(canvas, rng, 0.58, 0.03), ((166, 206, 140), (140, 186, 116)), "grass", far=0.4)
    walls, roofs = ((252, 238, 214), (250, 222, 190), (236, 240, 240)), ((226, 96, 76), (206, 120, 80), (110, 140, 190))
    for x, foot, wide, far in (
        (0.34, 0.66, 0.1, 0.35),
        (0.64, 0.66, 0.1, 0.35),
        (0.12, 0.74, 0.2, 0),
        (0.88, 0.74, 0.2, 0),
    ):
        if far == 0 and x < 0.2:
            canvas.hill(wave(canvas, rng, 0.68, 0.015), ((160, 208, 110), (128, 184, 88)), "grass", far=0.1)
        x, wide = x + rng.uniform(-0.05, 0.05), wide * rng.uniform(0.85, 1.2)
        house(canvas, x, foot + rng.uniform(-0.01, 0.01), wide, walls[rng.integers(3)], roofs[rng.integers(3)], far)


def village_ground(canvas: Canvas, rng: Rng) -> None:
    """Grass and a sandy path."""
    grass(canvas, rng, 0.735)
    bend = rng.uniform(-0.15, 0.15)

    def path(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        down = (ys - 0.74).clip(0) / 0.26
        return 0.06 + 0.34 * down - np.abs(xs - 0.5 - bend * (1 - down) ** 2)

    canvas.shape((0, 0.765, 1, 1), path, ((240, 218, 172), (222, 192, 142)), "ground", bevel=0.02, depth=0.15)


def farm_far(canvas: Canvas, rng: Rng) -> None:
    """Fields, a red barn at one side, bales of hay at the other."""
    canvas.hill(wave(canvas, rng, 0.58, 0.025), ((236, 214, 124), (216, 190, 98)), "plant", far=0.35)
    canvas.hill(wave(canvas, rng, 0.65, 0.015), ((170, 206, 110), (140, 184, 90)), "grass", far=0.15)
    side = 1 - 2 * int(rng.integers(2))
    x = 0.5 - side * rng.uniform(0.3, 0.36)
    wide = rng.uniform(0.26, 0.3)
    canvas.block(x - wide / 2, 0.5, x + wide / 2, 0.74, ((226, 84, 70), (186, 58, 54)), "building", radius=0.015)
    canvas.cone(x, 0.32, 0.66 * wide, 0.53, ((140, 96, 90), (112, 76, 76)), "building", bevel=0.05, round=0.04)
    canvas.block(x - 0.055, 0.6, x + 0.055, 0.74, ((250, 244, 236), (232, 224, 216)), "building", depth=0.3)
    canvas.block(x - 0.04, 0.615, x + 0.04, 0.74, ((176, 60, 54), (150, 48, 46)), "building", depth=0.2)
    for dx in (0.0, 0.13):
        canvas.ball(0.5 + side * (0.26 + dx), 0.715, 0.055, ((250, 216, 120), (216, 168, 74)), "plant", depth=0.6)


def farm_ground(canvas: Canvas, rng: Rng) -> None:
    """A fence at the edge of a meadow."""
    grass(canvas, rng, 0.75)
    wood = ((226, 190, 142), (190, 148, 104))
    for y in (0.725, 0.765):
        canvas.block(-0.02, y - 0.011, 1.02, y + 0.011, wood, "object", radius=0.008)
    for x in np.arange(rng.uniform(0, 0.12), 1.02, 0.17):
        canvas.block(x - 0.014, 0.69, x + 0.014, 0.805, wood, "object", radius=0.014)


BLUE_SKY: Stops = ((74, 158, 242), (132, 198, 250), (206, 234, 252))
PLACES: Mapping[str, Place] = {
    "snow": Place(((112, 172, 228), (176, 212, 242), (226, 238, 250)), nothing, snow_far, snow_ground),
    "beach": Place(((66, 164, 244), (138, 208, 250), (220, 242, 250)), sun_and_clouds, beach_far, beach_ground),
    "forest": Place(((150, 214, 196), (196, 232, 206), (226, 244, 216)), nothing, forest_far, forest_ground),
    "desert": Place(((116, 186, 236), (206, 222, 222), (255, 226, 178)), sun, desert_far, desert_ground),
    "meadow": Place(BLUE_SKY, clouds, meadow_far, meadow_ground),
    "city": Place(((126, 186, 240), (196, 222, 244), (248, 236, 222)), clouds, city_far, city_ground),
    "underwater": Place(
        ((120, 224, 240), (40, 156, 214), (14, 92, 172), (10, 66, 138)),
        underwater_air,
        underwater_far,
        underwater_ground,
        timed=False,
        above="water",
    ),  # fmt: skip
    "mountains": Place(((58, 136, 230), (124, 186, 246), (206, 230, 250)), clouds, mountains_far, mountains_ground),
    "space": Place(((8, 6, 28), (24, 14, 60), (54, 30, 104)), space_air, space_far, space_ground, timed=False),
    "autumn": Place(((176, 212, 238), (230, 230, 218), (252, 236, 202)), nothing, autumn_far, autumn_ground),
    "night": Place(NIGHT_SKY, moonlit, night_far, night_ground, timed=False),
    "sunset": Place(SUNSET_SKY, low_sun, sunset_far, sunset_ground, timed=False),
    "room": Place(((250, 226, 200), (226, 204, 180)), room_air, nothing, room_ground, timed=False, above="wall"),
    "village": Place(BLUE_SKY, clouds, village_far, village_ground),
    "farm": Place(((104, 178, 246), (166, 214, 250), (240, 240, 224)), sun_and_clouds, farm_far, farm_ground),
}
TIMED_PLACES = tuple(name for name, place in PLACES.items() if place.timed)
"""Where another time of day makes sense: the others have theirs, or none."""
BACKGROUNDS: Mapping[str, Stops] = {
    "white background": ((250, 250, 252), (255, 255, 255), (236, 236, 242)),
    "grey background": ((150, 154, 164), (176, 180, 188), (146, 150, 160)),
    "black background": ((26, 27, 34), (46, 48, 58), (30, 31, 40)),
    "red background": ((206, 40, 50), (232, 66, 70), (196, 36, 48)),
    "blue background": ((70, 136, 228), (108, 172, 250), (76, 142, 230)),
    "green background": ((70, 164, 96), (112, 200, 128), (72, 162, 98)),
    "yellow background": ((250, 204, 70), (255, 226, 118), (244, 196, 66)),
    "orange background": ((244, 138, 52), (255, 172, 92), (236, 130, 50)),
    "pink background": ((248, 158, 194), (255, 192, 216), (240, 150, 188)),
    "purple background": ((134, 92, 206), (168, 128, 236), (128, 88, 200)),
}


def mixed(sky: str, far: str, ground: str) -> str:
    """The name of a place made of the parts of three."""
    return f"{sky}/{far}/{ground}"


def parts_of(place: str) -> tuple[str, str, str]:
    """The places whose sky, distance and ground a place has."""
    sky, *others = place.split("/")
    far, ground = others or (sky, sky)
    return sky, far, ground


def studio(canvas: Canvas, stops: Stops) -> None:
    """A backdrop of one colour, rounded where wall and floor meet, with a pool of light."""
    canvas.fill((stops[0], stops[1], stops[1], stops[2]), "wall")
    canvas.glow(0.5, 0.45, 0.4, tuple(min(255.0, 1.06 * c) for c in stops[1]), 0.7)  # type: ignore[arg-type]


def paint_sky(canvas: Canvas, place: Place, rng: Rng, time: str) -> None:
    """The sky of a place at a time of day, down to the horizon."""
    air = {"day": place.air, "night": moonlit, "sunset": low_sun}[time]
    stops = {"day": place.sky, "night": NIGHT_SKY, "sunset": SUNSET_SKY}[time]
    canvas.haze = np.array(stops[-1], np.float32)
    canvas.fill(stops, place.above, 1.0 if place.above == "water" else 0.68)
    air(canvas, rng)


def paint(place: str, rng: Rng, size: int, time: str = "day") -> tuple[np.ndarray, np.ndarray]:
    """A view of a place of `PLACES` or `BACKGROUNDS`, or of a `mixed` one: RGB uint8 (size, size, 3), and its map, uint8
    (size, size) of classes.
    """
    canvas = Canvas(size, LIGHTS[time])
    if place in BACKGROUNDS:
        studio(canvas, BACKGROUNDS[place])
    else:
        sky, far, ground = (PLACES[part] for part in parts_of(place))
        paint_sky(canvas, sky, rng, time)
        far.far(canvas, rng)
        ground.ground(canvas, rng)
    canvas.stage()
    return canvas.result()
