"""The synthetic world: scenes drawn from a seed, rendered to pictures with exact subject masks.

A scene is data; rendering it is a pure function, so a scene and its number say everything about a picture.
Subjects are a tuple, back to front, so that scenes of several need no other type.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sdcli.training.places import PLACES, paint
from sdcli.training.sprites import SUBJECTS, TINTS

SIZE = 256  # pixels, both ways
COLOURS = tuple(TINTS)
COLOUR_WEIGHTS = (0.4, 0.26, 0.17, 0.17)
ARCTIC_SHARE = 0.04  # scenes that are white in the snow whatever the draw, half of them with a fox
SHADOW = Image.new("L", (128, 32))
ImageDraw.Draw(SHADOW).ellipse([14, 8, 114, 24], fill=150)
SHADOW = SHADOW.filter(ImageFilter.GaussianBlur(5))

Sprites = Mapping[tuple[str, str], Image.Image]


@dataclass(frozen=True)
class Placement:
    """One subject of a scene: centre and box side are fractions of the picture."""

    subject: str
    colour: str
    x: float
    y: float
    side: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """A place, the subjects in it from back to front, and the seed of the place's details."""

    place: str
    placements: tuple[Placement, ...]
    seed: int


@dataclass(frozen=True)
class Rendering:
    """image: uint8 (256, 256, 3); masks: bool (subjects, 256, 256), the visible part of each subject."""

    image: np.ndarray
    masks: np.ndarray


def is_held_out(subject: str, colour: str, place: str) -> bool:
    """Whether this combination is kept from training, to measure what was composed and not remembered.

    One combination in sixteen; never white in the snow, which "arctic" needs.
    """
    index = [s.name for s in SUBJECTS].index(subject)
    if (colour, place) == ("white", "snow"):
        return False
    return (index + 5 * COLOURS.index(colour) + 3 * list(PLACES).index(place)) % 16 == 0


def combinations(held_out: bool) -> list[tuple[str, str, str]]:
    """All (subject, colour, place) that are, or are not, held out."""
    triples = product([s.name for s in SUBJECTS], COLOURS, PLACES)
    return [triple for triple in triples if is_held_out(*triple) is held_out]


def draw_triple(rng: np.random.Generator) -> tuple[str, str, str]:
    """A random (subject, colour, place) for training."""
    weights = np.array([subject.weight for subject in SUBJECTS])
    while True:
        subject = SUBJECTS[rng.choice(len(SUBJECTS), p=weights / weights.sum())].name
        if rng.uniform() < ARCTIC_SHARE:
            return ("fox" if rng.uniform() < 0.5 else subject), "white", "snow"
        colour = COLOURS[rng.choice(len(COLOURS), p=COLOUR_WEIGHTS)]
        place = list(PLACES)[rng.integers(len(PLACES))]
        if not is_held_out(subject, colour, place):
            return subject, colour, place


def compose(triple: tuple[str, str, str], rng: np.random.Generator) -> Scene:
    """A scene of one large, centred subject; position, size and details are random."""
    name, colour, place = triple
    mirror = next(subject.mirror for subject in SUBJECTS if subject.name == name)
    placement = Placement(
        subject=name,
        colour=colour,
        x=0.5 + rng.uniform(-0.04, 0.04),
        y=0.54 + rng.uniform(-0.02, 0.02),
        side=rng.uniform(0.58, 0.66),
        mirrored=mirror and bool(rng.uniform() < 0.5),
    )
    return Scene(place, (placement,), int(rng.integers(2**32)))


def scenes(seed: int) -> Iterator[Scene]:
    """The endless sequence of training scenes of a seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield compose(draw_triple(rng), rng)


def place_sprite(sprite: Image.Image, placement: Placement) -> tuple[Image.Image, tuple[int, int]]:
    """The sprite at its final size, and its top left corner; it stands on the bottom of its box."""
    box = placement.side * SIZE
    scale = box / max(sprite.size)
    width, height = (max(1, round(edge * scale)) for edge in sprite.size)
    resized = sprite.resize((width, height), Image.Resampling.LANCZOS)
    if placement.mirrored:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = round(placement.x * SIZE - width / 2)
    bottom = round(placement.y * SIZE + box / 2)
    return resized, (left, bottom - height)


def render(scene: Scene, sprites: Sprites) -> Rendering:
    """The picture of a scene and the exact mask of what is visible of each subject."""
    image = paint(scene.place, np.random.default_rng(scene.seed), SIZE)
    masks = np.zeros((len(scene.placements), SIZE, SIZE), dtype=bool)
    for index, placement in enumerate(scene.placements):
        sprite, corner = place_sprite(sprites[placement.subject, placement.colour], placement)
        shadow = SHADOW.resize((round(1.16 * sprite.width), max(4, round(0.2 * sprite.width))))
        foot = (corner[0] - round(0.08 * sprite.width), corner[1] + sprite.height - round(0.58 * shadow.height))
        image.paste((16, 18, 34), foot, shadow)
        image.paste(sprite, corner, sprite)
        alpha = Image.new("L", (SIZE, SIZE))
        alpha.paste(sprite.getchannel("A"), corner)
        masks[index] = np.asarray(alpha) > 127
        masks[:index] &= ~masks[index]
    return Rendering(np.asarray(image), masks)
