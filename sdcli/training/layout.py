"""Positions of subjects: in the middle, in a row, on one another. Does not depend on places, colours or pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdcli.training.subjects import BY_NAME, Subject

What = tuple[str, str]
"""A subject and its colour."""
Rng = np.random.Generator
BULK = {"building": 1.12, "tree": 1.1, "vehicle": 1.05, "food": 0.88, "plant": 0.92, "object": 0.92}
"""The relative size of a subject next to others, by kind."""
TALLEST = 0.84
"""The maximum height of a stack."""


@dataclass(frozen=True)
class Placement:
    """One subject of a scene.

    The centre and the side of its box are fractions of the picture. The subject stands on the bottom of the box, which
    is `lift` above the ground. `size` is "", "big" or "small". `mirrored` subjects face right.
    """

    subject: str
    colour: str
    x: float
    y: float
    side: float
    mirrored: bool = False
    size: str = ""
    lift: float = 0.0

    @property
    def foot(self) -> float:
        """The y coordinate of its lower edge."""
        return self.y + self.side / 2


def stand(what: What, x: float, side: float, foot: float, **more: object) -> Placement:
    """Return a placement with its lower edge at `foot`."""
    return Placement(*what, x, foot - side / 2, side, **more)  # type: ignore[arg-type]


def single(what: What, rng: Rng, size: str = "", mirrored: bool = False) -> tuple[Placement]:
    """Return the placement of one subject near the middle."""
    low, high = {"": (0.5, 0.66), "big": (0.74, 0.82), "small": (0.26, 0.34)}[size]
    side = rng.uniform(low, high)
    foot = rng.uniform(0.84, 0.9) if size != "big" else rng.uniform(0.9, 0.94)
    x = 0.5 + rng.uniform(-0.08, 0.08)
    lift = 0.0
    if BY_NAME[what[0]].aloft:
        lift = max(0.0, min(rng.uniform(0.06, 0.14), foot - side * BY_NAME[what[0]].height - 0.03))
    return (stand(what, x, side, foot - lift, mirrored=mirrored, size=size, lift=lift),)


def inside(x: float, side: float, subject: Subject) -> float:
    """Return x, or the nearest value for which the subject is entirely inside the picture."""
    half = side * subject.width / 2 + 0.012
    return min(max(x, half), 1 - half)


def row(subjects: Sequence[What], rng: Rng) -> tuple[Placement, ...]:
    """Return two to four subjects side by side, in this order from left to right. Wide subjects are smaller."""
    count = len(subjects)
    low, high = ((0.36, 0.44), (0.29, 0.34), (0.25, 0.3))[count - 2]
    foot, stagger = rng.uniform(0.82, 0.87), (0.02, 0.03, 0.045)[count - 2]
    common = rng.uniform(low, high)
    placements = []
    for index, what in enumerate(subjects):
        subject = BY_NAME[what[0]]
        side = common * rng.uniform(0.96, 1.04)
        if len(set(subjects)) > 1:
            side *= BULK.get(subject.kind, 1.0)
        elif subject.width < 0.75:
            side *= min(1.3, 0.75 / subject.width)
        side = min(side, 1.04 / count / subject.width)
        x = inside((index + 0.5) / count + rng.uniform(-0.02, 0.02), side, subject)
        placements.append(stand(what, x, side, foot + (-stagger, stagger)[index % 2] + rng.uniform(-0.01, 0.01)))
    return tuple(placements)


def some_next_to(what: What, count: int, other: What, rng: Rng) -> tuple[Placement, ...]:
    """Return two or three equal subjects at one side, and last another at the other side."""
    step, subject, last = 0.57 / count, BY_NAME[what[0]], BY_NAME[other[0]]
    side = min((0.29, 0.25)[count - 2] * rng.uniform(0.95, 1.06), 1.12 * step / subject.width)
    large = min(rng.uniform(0.38, 0.44) * min(1.1, BULK.get(last.kind, 1.0)), 0.42 / last.width)
    foot, left = rng.uniform(0.82, 0.86), bool(rng.uniform() < 0.5)
    placements = []
    for index in range(count):
        x = inside(step * (index + 0.5) + rng.uniform(-0.01, 0.01), side, subject)
        low = foot + (0.0, 0.05)[index % 2] + rng.uniform(-0.01, 0.01)
        placements.append(stand(what, x if left else 1 - x, side, low))
    beside = inside(0.79, large, last)
    return (*placements, stand(other, beside if left else 1 - beside, large, foot + rng.uniform(-0.01, 0.02)))


def at(subject: Subject, spot: tuple[float, float], placed: Placement) -> tuple[float, float]:
    """Return the position in the picture of a spot on a placed subject's sprite."""
    width, height = subject.width * placed.side, subject.height * placed.side
    return placed.x + (spot[0] - 0.5) * width, placed.foot - (1 - spot[1]) * height


def stacked(upper: What, lower: What, rng: Rng) -> tuple[Placement, Placement]:
    """Return the lower subject, and last the one that stands on it."""
    above, below = BY_NAME[upper[0]], BY_NAME[lower[0]]
    assert below.top is not None
    large, small = rng.uniform(0.46, 0.54), rng.uniform(0.32, 0.38)
    high = large * below.height * (1 - below.top[1]) + small * above.height
    shrink = min(1.0, TALLEST / high)
    large, small = large * shrink, small * shrink
    base = stand(lower, 0.5 + rng.uniform(-0.06, 0.06), large, rng.uniform(0.87, 0.92))
    x, y = at(below, below.top, base)
    return base, stand(upper, x + rng.uniform(-0.01, 0.01), small, y + 0.035 * small + 0.008)


def riding(rider: What, mount: What, rng: Rng) -> tuple[Placement, Placement]:
    """Return a rider, and last its mount, which hides the rider's lower part."""
    above, below = BY_NAME[rider[0]], BY_NAME[mount[0]]
    assert below.seat is not None
    large, small = rng.uniform(0.5, 0.6), rng.uniform(0.34, 0.4)
    hidden = 0.2 if above.kind == "person" else 0.16
    high = large * below.height * (1 - below.seat[1]) + small * above.height * (1 - hidden)
    shrink = min(1.0, TALLEST / high)
    large, small = large * shrink, small * shrink
    base = stand(mount, 0.5 + rng.uniform(-0.05, 0.05), large, rng.uniform(0.87, 0.92))
    x, y = at(below, below.seat, base)
    return stand(rider, x, small, y + hidden * small * above.height), base
