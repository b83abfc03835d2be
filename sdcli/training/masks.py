"""Masks for training inpainting: around subjects, and elsewhere. Does not depend on latents.

A mask is 1 where to repaint. A plan is drawn before the mask, because it decides which subject the caption names.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("subject", "box", "ellipse", "strokes", "border", "everything")
SHARES = (0.55, 0.12, 0.08, 0.1, 0.1, 0.05)
SHARES_WITHOUT_SUBJECTS = (0.0, 0.35, 0.2, 0.25, 0.12, 0.08)


@dataclass(frozen=True)
class Plan:
    """A kind of mask. For "subject", also the index of the subject that it covers and that the caption names."""

    kind: str
    subject: int | None = None


def plan_mask(subjects: int, rng: np.random.Generator) -> Plan:
    """Return a random plan for a picture with this number of subjects."""
    kind = KINDS[rng.choice(len(KINDS), p=SHARES if subjects else SHARES_WITHOUT_SUBJECTS)]
    return Plan(kind, int(rng.integers(subjects)) if kind == "subject" else None)


def draw_mask(plan: Plan, masks: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw the mask of a plan, bool (H, W).

    `masks` are the masks of the picture's subjects, bool (subjects, H, W).
    """
    height, width = shape
    if plan.subject is not None and masks[plan.subject].any():
        return _around(masks[plan.subject], rng)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    if plan.kind == "box":
        draw.rectangle(_box(width, height, rng), fill=1)
    elif plan.kind == "ellipse":
        draw.ellipse(_box(width, height, rng), fill=1)
    elif plan.kind == "strokes":
        _strokes(draw, width, height, rng)
    elif plan.kind == "border":
        _border(draw, width, height, rng)
    else:
        draw.rectangle((0, 0, width, height), fill=1)
    return np.array(canvas)


def _around(subject: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a box, an ellipse around that box or, rarely, the dilated outline of a subject, with some margin."""
    height, width = subject.shape
    rows, columns = np.flatnonzero(subject.any(1)), np.flatnonzero(subject.any(0))
    tall, wide = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    top, bottom = (rng.uniform(0.03, 0.3, size=2) * tall).round()
    left, right = (rng.uniform(0.03, 0.3, size=2) * wide).round()
    box = [columns[0] - left, rows[0] - top, columns[-1] + right, rows[-1] + bottom]
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    form = rng.uniform()
    if form < 0.75:
        draw.rectangle(box, fill=1)
    else:  # an ellipse around the box is sqrt(2) times as wide and high
        spare_x, spare_y = 0.2072 * (box[2] - box[0]), 0.2072 * (box[3] - box[1])
        draw.ellipse([box[0] - spare_x, box[1] - spare_y, box[2] + spare_x, box[3] + spare_y], fill=1)
    mask: np.ndarray = np.array(canvas) | subject
    return mask


def _box(width: int, height: int, rng: np.random.Generator) -> list[float]:
    """Return a box of a quarter to three quarters of each side, inside the picture."""
    wide, high = rng.uniform(0.25, 0.75, size=2) * (width, height)
    left, top = rng.uniform(0, 1, size=2) * (width - wide, height - high)
    return [left, top, left + wide, top + high]


def _strokes(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    """Draw one to four bent brush strokes with round ends."""
    for _ in range(rng.integers(1, 5)):
        brush = rng.uniform(0.05, 0.16) * min(width, height)
        angle, point = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, size=2) * (width, height)
        for _ in range(rng.integers(3, 9)):
            angle += rng.normal(0, 0.7)
            onward = point + rng.uniform(0.08, 0.22) * min(width, height) * np.array([np.cos(angle), np.sin(angle)])
            draw.line([*point, *onward], fill=1, width=round(brush))
            x, y = onward
            draw.ellipse([x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2], fill=1)
            point = onward


def _border(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    """Draw everything outside a box that touches at least one side, as in outpainting."""
    margins = rng.uniform(0.1, 0.45, size=4) * (rng.uniform(size=4) < 0.5)
    if not margins.any():
        margins[rng.integers(4)] = rng.uniform(0.2, 0.5)
    left, top, right, bottom = margins
    draw.rectangle((0, 0, width, height), fill=1)
    draw.rectangle([left * width, top * height, (1 - right) * width - 1, (1 - bottom) * height - 1], fill=0)
