"""A chart of noise levels against timesteps, as SVG. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 14, 40
_POINTS = 120


def chart(
    levels: Sequence[float], used: Sequence[tuple[float, float]], value: Callable[[float], float], name: str
) -> str:
    """Draw `value` of the noise levels, on a logarithmic axis, and those at the timesteps that were `used`."""
    count = len(levels)
    places = sorted({round(index * (count - 1) / _POINTS) for index in range(_POINTS + 1)})
    curve = [(float(place), math.log10(max(value(levels[place]), 1e-6))) for place in places]
    points = [(timestep, math.log10(max(value(sigma), 1e-6))) for timestep, sigma in used]
    low = math.floor(min(y for _, y in (*curve, *points)))
    high = max(math.ceil(max(y for _, y in (*curve, *points))), low + 1)

    def place_of(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / max(count - 1, 1) * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(low, high, count, name, place_of)]
    path = " ".join("{:.1f},{:.1f}".format(*place_of(*each)) for each in curve)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for number, each in enumerate(points):
        x, y = place_of(*each)
        parts.append(f'<circle class="used" data-evaluation="{number + 1}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    first, last = (formatted(10 ** each[1]) for each in (curve[0], curve[-1]))
    label = f"{name} against t: from {first} at t = 0 to {last} at t = {count}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(low: int, high: int, count: int, name: str, place_of: Callable[[float, float], tuple[float, float]]) -> str:
    parts = []
    step = max(1, math.ceil((high - low) / 6))
    for power in range(low, high + 1, step):
        x, y = place_of(0, power)
        parts.append(f'<line class="grid" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{formatted(10.0**power)}</text>')
    for part in (0, 0.25, 0.5, 0.75, 1):
        x, y = place_of(part * (count - 1), low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{round(part * count)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">timestep t</text>')
    parts.append(f'<text class="name" x="{_LEFT + 8}" y="{_TOP + 14}">{name}</text>')
    return "".join(parts)


def formatted(value: float) -> str:
    """Format a number in three digits, or as a power of 10 if it is very small or large."""
    if 0.001 <= value < 10_000:
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    power = math.floor(math.log10(value))
    factor = f"{value / 10**power:.2g}"
    return ("" if factor == "1" else f"{factor}·") + "10" + str(power).translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
