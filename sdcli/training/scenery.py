"""Things that several places have: suns, clouds, trees, houses, grass. Does not depend on the places."""

from collections.abc import Sequence

import numpy as np

from sdcli.training.clay import Canvas, Colour, Stops, dimmed

Rng = np.random.Generator
MOON: Stops = ((255, 250, 222), (238, 226, 186))
SUN: Stops = ((255, 242, 150), (255, 214, 76))
LOW_SUN: Stops = ((255, 246, 190), (255, 208, 110))
WHITE: Colour = (252, 253, 255)


def aside(rng: Rng, spread: float = 0.06) -> float:
    """Return a random x near the left or the right edge."""
    return float(0.16 + 0.68 * rng.integers(2) + rng.uniform(-spread, spread))


def wave(canvas: Canvas, rng: Rng, y: float, height: float, waves: float = 0.9) -> np.ndarray:
    """Return a smooth line around `y`, with a value for each column."""
    x = (np.arange(canvas.size, dtype=np.float32) + 0.5) / canvas.size
    one, two = rng.uniform(0, 2 * np.pi, 2)
    swing = np.sin(2 * np.pi * waves * x + one) + 0.4 * np.sin(2 * np.pi * 2.3 * waves * x + two)
    line: np.ndarray = (y - height * swing / 1.2).astype(np.float32)
    return line


def nothing(canvas: Canvas, rng: Rng) -> None:
    """Paint an empty sky."""


def cloud(canvas: Canvas, x: float, y: float, scale: float) -> None:
    """Paint soft white balls in a row."""
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
        canvas.cone(x, top, half, bottom, stops, "tree", bevel=0.22 * height, rounding=0.07 * height, far=far)


def round_tree(canvas: Canvas, x: float, foot: float, height: float, stops: Stops, far: float = 0.0) -> None:
    """A crown of balls on a trunk."""
    trunk = ((134, 94, 66), (104, 72, 52))
    canvas.block(x - 0.05 * height, foot - 0.5 * height, x + 0.05 * height, foot, trunk, "tree", far=far)
    for dx, dy, radius in ((-0.18, 0.5, 0.2), (0.18, 0.5, 0.2), (0.0, 0.68, 0.28)):
        canvas.ball(x + dx * height, foot - dy * height, radius * height, stops, "tree", far=far, depth=0.48)


def peak(canvas: Canvas, x: float, top: float, half: float, foot: float, rock: Stops, cap: Stops, far: float) -> None:
    """A mountain with a round white cap."""
    canvas.cone(x, top, half, foot, rock, "mountain", bevel=0.12, rounding=0.04, far=far, depth=0.75)
    snow = 0.36 * (foot - top)
    canvas.cone(x, top - 0.004, half * 0.37, top + snow, cap, "mountain", bevel=0.08, rounding=0.06, far=far, depth=0.4)


def house(canvas: Canvas, x: float, foot: float, wide: float, wall: Colour, roof: Colour, far: float) -> None:
    """A small house with a roof, a door and a window."""
    high = 0.8 * wide
    canvas.block(x - wide / 2, foot - high, x + wide / 2, foot, (wall, dimmed(wall, 0.86)), "building", far=far)
    canvas.cone(
        x,
        foot - 1.75 * high,
        0.68 * wide,
        foot - 0.82 * high,
        (roof, dimmed(roof, 0.74)),
        "building",
        bevel=0.05,
        rounding=0.02,
        far=far,
    )
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
        colour = colours[int(rng.integers(len(colours)))]
        radius = size * near
        canvas.egg(x, y, radius, flat * radius, (colour, dimmed(colour, 0.86)), "")
