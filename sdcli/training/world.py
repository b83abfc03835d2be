"""The synthetic world: scenes drawn from a seed, rendered to pictures with exact subject masks and segmentation maps.

A scene is data; rendering it is a pure function, so a scene says everything about a picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sdcli.training.places import BACKGROUNDS, CLASS_NAMES, PLACES, TIMED_PLACES, TIMES, paint
from sdcli.training.sprites import BY_NAME, SUBJECTS, TINTS, tinted_sprites

SIZE = 256  # pixels, both ways
HELD_OUT = Path(__file__).with_name("held_out.txt")
SHADOW = Image.new("L", (128, 32))
ImageDraw.Draw(SHADOW).ellipse([14, 8, 114, 24], fill=150)
SHADOW = SHADOW.filter(ImageFilter.GaussianBlur(5))

Sprites = Mapping[tuple[str, str], Image.Image]
Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Vocabulary:
    """The subjects, colours (`natural` first) and places that scenes are drawn from, and how often they hold what."""

    subjects: tuple[str, ...]
    colours: tuple[str, ...]
    places: tuple[str, ...]
    natural: float = 0.34
    """Of subjects, those that keep their own colours."""
    arctic: float = 0.03
    """Of scenes, those of one white subject in the snow whatever the draw, half of them with a fox."""
    background: float = 0.06
    other_time: float = 0.1
    """Of scenes in a place that has times of day, those at night or at sunset."""
    pairs: float = 0.24
    counts: float = 0.1
    threes: float = 0.03
    """Of scenes, those of two subjects, of two or three alike, and of three subjects."""
    sized: float = 0.16
    """Of scenes of one subject, those where it is big or small."""


KIT = Vocabulary(tuple(s.name for s in SUBJECTS[:24]), tuple(TINTS)[:7], tuple(PLACES)[:10])
WHOLE = Vocabulary(tuple(s.name for s in SUBJECTS), tuple(TINTS), tuple(PLACES))
KIT_ROWS = replace(KIT, pairs=0.5, threes=0.05, sized=0.12)
VOCABULARIES: Mapping[str, Vocabulary] = {"kit": KIT, "kit-rows": KIT_ROWS, "whole": WHOLE}


def sprites_of(source: Path, vocabulary: Vocabulary = KIT) -> Sprites:
    """The sprites a vocabulary needs, of an emoji font or a folder; raises what `load_sprites` raises."""
    return tinted_sprites(source, [BY_NAME[name] for name in vocabulary.subjects])


@dataclass(frozen=True)
class Placement:
    """One subject of a scene: centre and box side are fractions of the picture; `size`: "", "big" or "small"."""

    subject: str
    colour: str
    x: float
    y: float
    side: float
    mirrored: bool
    size: str = ""


@dataclass(frozen=True)
class Scene:
    """A place, the subjects in it from back to front, the seed of the place's details, and the time of day."""

    place: str
    placements: tuple[Placement, ...]
    seed: int
    time: str = "day"


@dataclass(frozen=True)
class Rendering:
    """image: uint8 (256, 256, 3); masks: bool (subjects, 256, 256), the visible part of each subject;
    segmentation: uint8 (256, 256), the number of each pixel's class in `places.CLASSES`.
    """

    image: np.ndarray
    masks: np.ndarray
    segmentation: np.ndarray


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The (subject, colour) and (subject, place) that are kept from training for good, as HELD_OUT lists them."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    return frozenset((line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line[:1] != "#")


def is_held_out(subject: str, colour: str, place: str) -> bool:
    """Whether this combination is kept from training, to measure what was composed and not remembered."""
    pairs = held_out_pairs()
    return (subject, colour) in pairs or (subject, place) in pairs


def exists(subject: str, colour: str, place: str) -> bool:
    """Whether the combination can be told from others: a subject's own colour is its natural look, and a colour is
    lost on a background of the same.
    """
    return BY_NAME[subject].own != colour and place != f"{colour} background"


def combinations(held_out: bool, vocabulary: Vocabulary = KIT) -> list[Triple]:
    """All (subject, colour, place) that are, or are not, held out; places without the plain backgrounds."""
    triples = product(vocabulary.subjects, vocabulary.colours, vocabulary.places)
    return [triple for triple in triples if exists(*triple) and is_held_out(*triple) is held_out]


def draw_place(rng: np.random.Generator, vocabulary: Vocabulary) -> str:
    """A place, now and then a plain background."""
    names = tuple(BACKGROUNDS) if rng.uniform() < vocabulary.background else vocabulary.places
    return names[rng.integers(len(names))]


def draw_subject(rng: np.random.Generator, vocabulary: Vocabulary, place: str) -> tuple[str, str]:
    """A (subject, colour) that is not held out in this place."""
    while True:
        subject = vocabulary.subjects[rng.integers(len(vocabulary.subjects))]
        colour = "natural"
        if rng.uniform() >= vocabulary.natural:
            colour = vocabulary.colours[rng.integers(1, len(vocabulary.colours))]
        if exists(subject, colour, place) and not is_held_out(subject, colour, place):
            return subject, colour


def stand(
    what: tuple[str, str], x: float, side: float, foot: float, rng: np.random.Generator, size: str = ""
) -> Placement:
    """A placement whose lower edge is at `foot`."""
    subject, colour = what
    mirrored = BY_NAME[subject].mirror and bool(rng.uniform() < 0.5)
    return Placement(subject, colour, x, foot - side / 2, side, mirrored, size)


def compose(triple: Triple, rng: np.random.Generator, size: str = "", time: str = "day") -> Scene:
    """A scene of one subject near the middle; position, size and details are random."""
    subject, colour, place = triple
    low, high = {"": (0.5, 0.66), "big": (0.74, 0.82), "small": (0.26, 0.34)}[size]
    side = rng.uniform(low, high)
    foot = rng.uniform(0.84, 0.9) if size != "big" else rng.uniform(0.9, 0.94)
    placement = stand((subject, colour), 0.5 + rng.uniform(-0.08, 0.08), side, foot, rng, size)
    return Scene(place, (placement,), int(rng.integers(2**32)), time)


def compose_row(subjects: Sequence[tuple[str, str]], place: str, rng: np.random.Generator, time: str = "day") -> Scene:
    """A scene of two or three subjects side by side, in this order from left to right."""
    count = len(subjects)
    low, high = ((0.38, 0.46), (0.28, 0.32))[count - 2]
    foot = rng.uniform(0.8, 0.88)
    placements = []
    for index, what in enumerate(subjects):
        x = (index + 0.5) / count + rng.uniform(-0.02, 0.02)
        placements.append(stand(what, x, rng.uniform(low, high), foot + rng.uniform(-0.02, 0.02), rng))
    return Scene(place, tuple(placements), int(rng.integers(2**32)), time)


def draw_scene(rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """One scene for training."""
    if rng.uniform() < vocabulary.arctic:
        subject = vocabulary.subjects[rng.integers(len(vocabulary.subjects))]
        if rng.uniform() < 0.5 or is_held_out(subject, "white", "snow") or not exists(subject, "white", "snow"):
            subject = "fox"
        return compose((subject, "white", "snow"), rng)
    place = draw_place(rng, vocabulary)
    time = TIMES[0]
    if place in TIMED_PLACES and rng.uniform() < vocabulary.other_time:
        time = TIMES[rng.integers(1, len(TIMES))]
    first = draw_subject(rng, vocabulary, place)
    kind = rng.uniform()
    if kind < vocabulary.pairs:
        return compose_row([first, another(rng, vocabulary, place, [first])], place, rng, time)
    if kind < vocabulary.pairs + vocabulary.counts:
        return compose_row([first] * int(rng.integers(2, 4)), place, rng, time)
    if kind < vocabulary.pairs + vocabulary.counts + vocabulary.threes:
        second = another(rng, vocabulary, place, [first])
        return compose_row([first, second, another(rng, vocabulary, place, [first, second])], place, rng, time)
    size = ("big", "small")[rng.integers(2)] if rng.uniform() < vocabulary.sized else ""
    return compose((*first, place), rng, size, time)


def another(
    rng: np.random.Generator, vocabulary: Vocabulary, place: str, others: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """A subject that is none of the others."""
    while True:
        drawn = draw_subject(rng, vocabulary, place)
        if drawn[0] not in [subject for subject, _ in others]:
            return drawn


def scenes(seed: int, vocabulary: Vocabulary = KIT, *, held_out: bool = False) -> Iterator[Scene]:
    """The endless sequence of scenes of a seed; those of training hold nothing that is held out, others may."""
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng, vocabulary)
        yield with_all(scene, rng, vocabulary) if held_out else scene


def with_all(scene: Scene, rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """The scene with each subject in a colour drawn anew from all, and the place from all, held out or not."""
    place = draw_place(rng, vocabulary)
    recoloured = []
    for placement in scene.placements:
        colour = vocabulary.colours[rng.integers(len(vocabulary.colours))]
        fits = exists(placement.subject, colour, place)
        recoloured.append(replace(placement, colour=colour if fits else "natural"))
    time = scene.time if place in TIMED_PLACES else TIMES[0]
    return replace(scene, place=place, placements=tuple(recoloured), time=time)


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
    """The picture of a scene, the exact mask of what is visible of each subject, and the map of classes."""
    image, segmentation = paint(scene.place, np.random.default_rng(scene.seed), SIZE, scene.time)
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
        segmentation[masks[index]] = CLASS_NAMES.index(BY_NAME[placement.subject].kind)
    return Rendering(np.asarray(image), masks, segmentation)
