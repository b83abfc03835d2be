"""The synthetic world: random scenes, rendered to pictures with exact subject masks and segmentation maps.

A scene is data and rendering is a pure function, so a scene determines its picture.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from sdcli.training import layout, shading
from sdcli.training.layout import Placement, What
from sdcli.training.places import BACKGROUNDS, CLASS_NAMES, PLACES, TIMED_PLACES, TIMES, mixed, paint, parts_of
from sdcli.training.sprites import TINTS, tinted_sprites
from sdcli.training.subjects import BY_NAME, SUBJECTS

SIZE = 256  # width and height in pixels
HELD_OUT = Path(__file__).with_name("held_out.txt")
ARCTIC = ("fox", "fox", "fox", "wolf", "owl", "bear")
"""The subjects that are called "arctic" if they are white in the snow; repeated ones are more frequent."""

SHOWN = {("astronaut", "beach"), ("horse", "beach"), ("t-rex", "city"), ("t-rex", "night")}
"""Combinations used in the documentation: never held out."""

Sprites = Mapping[tuple[str, str], Image.Image]
Triple = tuple[str, str, str]
Backdrop = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Vocabulary:
    """The subjects, colours (`natural` first) and places of scenes, and the share of each kind of scene."""

    subjects: tuple[str, ...]
    colours: tuple[str, ...] = tuple(TINTS)
    places: tuple[str, ...] = tuple(PLACES)
    natural: float = 0.5
    """The share of subjects in their natural colour, of those that can be tinted."""
    background: float = 0.08
    other_time: float = 0.22
    """The share of scenes at night or at sunset, in places with times of day."""
    mixed: float = 0.0
    """The share of scenes with a mixed place."""
    arctic: float = 0.02
    pairs: float = 0.16
    on: float = 0.09
    riding: float = 0.08
    counts: float = 0.12
    next: float = 0.04
    threes: float = 0.03
    """The shares of scenes by relation.

    In order: one white subject in the snow, two subjects, one on another, one riding another, two to four alike, some
    alike next to another, three subjects. All other scenes have one subject.
    """
    sized: float = 0.16
    mirrored: float = 0.1
    """The shares of scenes of one subject in which it is big or small, or (animals, vehicles) faces right."""


KIT = Vocabulary(tuple(subject.name for subject in SUBJECTS))
KIT_MIXED = replace(KIT, mixed=0.5)
KIT_ROWS = replace(KIT, pairs=0.34, on=0.15, riding=0.14, next=0.08, threes=0.05)
FEW = Vocabulary(
    ("fox", "horse", "car", "castle", "astronaut"),
    ("natural", "white", "red", "blue"),
    ("snow", "beach", "city", "meadow"),
)
VOCABULARIES: Mapping[str, Vocabulary] = {"kit": KIT, "kit-mixed": KIT_MIXED, "kit-rows": KIT_ROWS, "few": FEW}
"""`few` is for trials: five subjects are learned quickly."""


def sprites_of(source: Path, vocabulary: Vocabulary = KIT) -> Sprites:
    """Load the sprites of a vocabulary from a folder or an archive. Raises InputError if one cannot be read."""
    return tinted_sprites(source, [BY_NAME[name] for name in vocabulary.subjects])


@dataclass(frozen=True)
class Scene:
    """A place, the subjects in it from back to front, the seed of the place's details, and the time of day.

    `relation` of the subjects: "" for one subject; "row" for different ones from left to right; "count" for several
    alike; "next" for several alike and, last, another next to them; "on" for one and, last, the one that stands on it;
    "riding" for a rider and, last, its mount.
    """

    place: str
    placements: tuple[Placement, ...]
    seed: int
    time: str = "day"
    relation: str = ""


@dataclass(frozen=True)
class Rendering:
    """A rendered scene.

    image: uint8 (256, 256, 3); masks: bool (subjects, 256, 256), the visible part of each subject; segmentation: uint8
    (256, 256), the index of each pixel's class in `places.CLASSES`.
    """

    image: np.ndarray
    masks: np.ndarray
    segmentation: np.ndarray


# Held-out combinations.


def choose_held_out() -> list[tuple[str, str]]:
    """Return one place for each subject, and one colour if it can be tinted, chosen by its name.

    Never white or snow, which "arctic" needs, nor a subject's natural colour.
    """
    pairs = []
    for subject in SUBJECTS:
        rng = np.random.default_rng(list(subject.name.encode()))
        colours = [colour for colour in TINTS if colour not in ("natural", "white", subject.own)]
        if subject.tinted:
            pairs.append((subject.name, colours[rng.integers(len(colours))]))
        places = [place for place in PLACES if place != "snow" and (subject.name, place) not in SHOWN]
        pairs.append((subject.name, places[rng.integers(len(places))]))
    return pairs


def write_held_out(file: Path = HELD_OUT) -> None:
    """Write the file of held-out combinations. Training reads the file, so that later changes keep the choice."""
    head = "# Combinations of a subject with a colour or a place that no training scene holds; they serve to measure.\n"
    file.write_text(head + "".join(f"{one}\t{other}\n" for one, other in choose_held_out()), encoding="utf-8")


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Return the held-out pairs (subject, colour) and (subject, place) listed in HELD_OUT."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    found = (line.split("\t") for line in lines if line[:1] != "#")
    return frozenset((one, other) for one, other in found)


def is_held_out(subject: str, colour: str, place: str, time: str = "day") -> bool:
    """Return whether a combination is excluded from training, to measure the composition of learned concepts."""
    pairs = held_out_pairs()
    return any((subject, other) in pairs for other in (colour, time, *parts_of(place)))


def exists(subject: str, colour: str, place: str) -> bool:
    """Return whether a combination makes sense.

    Some subjects have no other colours, a subject's own colour is its natural look, and a subject is invisible on a
    background of its colour.
    """
    row = BY_NAME[subject]
    tintable = colour == "natural" or (row.tinted and colour != row.own)
    worn = row.own if colour == "natural" else colour
    return tintable and (place != f"{worn} background" or (colour == "natural" and worn == "white"))


def place_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the places of a vocabulary and the plain backgrounds. Mixed places have no name."""
    return (*vocabulary.places, *BACKGROUNDS)


def only(scene: "Scene", subject: int) -> "Scene":
    """Return the scene with only one of its subjects, for a caption of that subject."""
    return replace(scene, placements=(scene.placements[subject],), relation="")


def combinations(held_out: bool, vocabulary: Vocabulary = KIT) -> list[Triple]:
    """Return all (subject, colour, place) that are, or are not, held out, without plain backgrounds."""
    triples = product(vocabulary.subjects, vocabulary.colours, vocabulary.places)
    return [triple for triple in triples if exists(*triple) and is_held_out(*triple) is held_out]


# Random scenes.


@dataclass(frozen=True)
class Draw:
    """The random generator, the vocabulary, the place and the time of a scene."""

    rng: np.random.Generator
    vocabulary: Vocabulary
    place: str
    time: str

    def fits(self, subject: str, colour: str) -> bool:
        """Return whether training may use this subject and colour here."""
        return exists(subject, colour, self.place) and not is_held_out(subject, colour, self.place, self.time)

    def one_of(self, names: tuple[str, ...], others: tuple[What, ...] = ()) -> What | None:
        """Return a random subject of `names`, not in `others`, with a colour; None if none is found in 60 tries."""
        rng, colours = self.rng, self.vocabulary.colours
        for _ in range(60):
            subject = names[rng.integers(len(names))]
            natural = not BY_NAME[subject].tinted or rng.uniform() < self.vocabulary.natural
            colour = "natural" if natural or len(colours) == 1 else colours[rng.integers(1, len(colours))]
            if self.fits(subject, colour) and subject not in [other for other, _ in others]:
                return subject, colour
        return None

    def scene(self, placements: tuple[Placement, ...], relation: str = "") -> Scene:
        """Return the scene with these placements."""
        return Scene(self.place, placements, int(self.rng.integers(2**32)), self.time, relation)


@cache
def groups(subjects: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return the subjects that can ride, be ridden, carry others, and stand on others."""
    rows = [BY_NAME[name] for name in subjects]
    small = ("animal", "food", "plant", "object")
    return {
        "riders": tuple(row.name for row in rows if row.rider),
        "mounts": tuple(row.name for row in rows if row.seat),
        "carriers": tuple(row.name for row in rows if row.top),
        "carried": tuple(row.name for row in rows if (row.kind in small or row.rider) and not row.aloft),
    }


def draw_place(rng: np.random.Generator, vocabulary: Vocabulary) -> tuple[str, str]:
    """Return a random place, sometimes a plain background or a mixed one, and a time of day."""
    if rng.uniform() < vocabulary.background:
        return tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], TIMES[0]
    places = vocabulary.places
    place = places[rng.integers(len(places))]
    if rng.uniform() < vocabulary.mixed:
        place = mixed(place, *(places[rng.integers(len(places))] for _ in range(2)))
    timed = all(part in TIMED_PLACES for part in parts_of(place))
    if timed and rng.uniform() < vocabulary.other_time:
        return place, TIMES[rng.integers(1, len(TIMES))]
    return place, TIMES[0]


def draw_scene(rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """Return a random scene for training."""
    shares = [getattr(vocabulary, name) for name in DRAWERS]
    number = int(rng.choice(len(DRAWERS) + 1, p=[*shares, 1 - sum(shares)]))
    drawer = [*DRAWERS.values(), draw_single][number]
    for attempt in range(100):
        draw = Draw(rng, vocabulary, *draw_place(rng, vocabulary))
        scene = (drawer if attempt < 20 else draw_single)(draw)  # a small vocabulary may have no riders
        if scene is not None:
            return scene
    raise ValueError("all scenes of this vocabulary are held out")


def draw_arctic(draw: Draw) -> Scene | None:
    """Return a scene of one white subject in the snow."""
    known = [name for name in ARCTIC if name in draw.vocabulary.subjects]
    if not known or "white" not in draw.vocabulary.colours:
        return None
    what = known[draw.rng.integers(len(known))], "white"
    return replace(draw, place="snow", time="day").scene(layout.single(what, draw.rng))


def draw_single(draw: Draw) -> Scene | None:
    """Return a scene of one subject, sometimes big, small or facing right."""
    what = draw.one_of(draw.vocabulary.subjects)
    if what is None:
        return None
    size = ("big", "small")[draw.rng.integers(2)] if draw.rng.uniform() < draw.vocabulary.sized else ""
    turns = BY_NAME[what[0]].kind in ("animal", "vehicle")
    mirrored = turns and bool(draw.rng.uniform() < draw.vocabulary.mirrored)
    return draw.scene(layout.single(what, draw.rng, size, mirrored))


def draw_row(draw: Draw, count: int) -> Scene | None:
    """Return a scene of different subjects side by side."""
    found: tuple[What, ...] = ()
    for _ in range(count):
        what = draw.one_of(draw.vocabulary.subjects, found)
        if what is None:
            return None
        found = (*found, what)
    return draw.scene(layout.row(found, draw.rng), "row")


def draw_count(draw: Draw) -> Scene | None:
    """Return a scene of two, three or four equal subjects."""
    what = draw.one_of(draw.vocabulary.subjects)
    return what and draw.scene(layout.row([what] * int(draw.rng.integers(2, 5)), draw.rng), "count")


def draw_next(draw: Draw) -> Scene | None:
    """Return a scene of two or three equal subjects with another next to them."""
    what = draw.one_of(draw.vocabulary.subjects)
    other = what and draw.one_of(draw.vocabulary.subjects, (what,))
    if what is None or other is None:
        return None
    return draw.scene(layout.some_next_to(what, int(draw.rng.integers(2, 4)), other, draw.rng), "next")


def draw_on(draw: Draw) -> Scene | None:
    """Return a scene of one subject standing on another."""
    known = groups(draw.vocabulary.subjects)
    lower = draw.one_of(known["carriers"]) if known["carriers"] else None
    upper = lower and draw.one_of(known["carried"], (lower,))
    return draw.scene(layout.stacked(upper, lower, draw.rng), "on") if upper and lower else None


def draw_riding(draw: Draw) -> Scene | None:
    """Return a scene of one subject riding another. Half of the riders are people."""
    known = groups(draw.vocabulary.subjects)
    people = tuple(name for name in known["riders"] if BY_NAME[name].kind == "person")
    riders = people if people and draw.rng.uniform() < 0.5 else known["riders"]
    mount = draw.one_of(known["mounts"]) if known["mounts"] else None
    rider = draw.one_of(riders, (mount,)) if mount and riders else None
    return draw.scene(layout.riding(rider, mount, draw.rng), "riding") if rider and mount else None


DRAWERS: Mapping[str, Callable[[Draw], Scene | None]] = {
    "arctic": draw_arctic,
    "pairs": lambda draw: draw_row(draw, 2),
    "on": draw_on,
    "riding": draw_riding,
    "counts": draw_count,
    "next": draw_next,
    "threes": lambda draw: draw_row(draw, 3),
}


def compose(triple: Triple, rng: np.random.Generator, size: str = "", time: str = "day") -> Scene:
    """Return a scene of one subject near the middle, with random position and details."""
    subject, colour, place = triple
    return Scene(place, layout.single((subject, colour), rng, size), int(rng.integers(2**32)), time)


def scenes(seed: int, vocabulary: Vocabulary = KIT, *, held_out: bool = False) -> Iterator[Scene]:
    """Yield the scenes of a seed without end.

    Without `held_out`, no scene has a held-out combination; with it, some do.
    """
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng, vocabulary)
        yield with_all(scene, rng, vocabulary) if held_out else scene


def with_all(scene: Scene, rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """Return the scene with a new place and new colours, chosen from all combinations, held out or not."""
    names = {placement.subject for placement in scene.placements}
    place, time = draw_place(rng, vocabulary)
    while not all(exists(name, "natural", place) for name in names):
        place, time = draw_place(rng, vocabulary)
    colours = {}
    for name in sorted(names):
        colour = vocabulary.colours[rng.integers(len(vocabulary.colours))]
        natural = rng.uniform() < vocabulary.natural or not exists(name, colour, place)
        colours[name] = "natural" if natural else colour
    placements = tuple(replace(each, colour=colours[each.subject]) for each in scene.placements)
    return replace(scene, place=place, placements=placements, time=time)


# Rendering.


def place_sprite(sprite: Image.Image, placement: Placement) -> tuple[Image.Image, tuple[int, int]]:
    """Return the sprite at its final size, and its top left corner; it stands on the bottom of its box."""
    box = placement.side * SIZE
    scale = box / max(sprite.size)
    width, height = (max(1, round(edge * scale)) for edge in sprite.size)
    resized = sprite.resize((width, height), Image.Resampling.LANCZOS)
    if placement.mirrored:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = round(placement.x * SIZE - width / 2)
    bottom = round(placement.y * SIZE + box / 2)
    return resized, (left, bottom - height)


def render(scene: Scene, sprites: Sprites, backdrop: Backdrop | None = None) -> Rendering:
    """Render a scene: the picture, the mask of the visible part of each subject, and the segmentation map.

    `backdrop` is a painted view of the scene's place; None paints one with the scene's seed.
    """
    if backdrop is None:
        backdrop = paint(scene.place, np.random.default_rng(scene.seed), SIZE, scene.time)
    image, segmentation = Image.fromarray(backdrop[0]), backdrop[1].copy()
    masks = np.zeros((len(scene.placements), SIZE, SIZE), dtype=bool)
    light = shading.light_of(parts_of(scene.place)[-1], scene.time)
    for index, placement in enumerate(scene.placements):
        sprite, corner = place_sprite(sprites[placement.subject, placement.colour], placement)
        if scene.relation == "on" and index == 1:
            shading.touch(image, sprite, corner, masks[0])
        elif scene.relation != "riding" or index == 1:
            shading.cast(image, sprite, corner, round(placement.lift * SIZE))
        image.paste(shading.lit(sprite, light), corner, sprite)
        alpha = Image.new("L", (SIZE, SIZE))
        alpha.paste(sprite.getchannel("A"), corner)
        masks[index] = np.asarray(alpha) > 127
        masks[:index] &= ~masks[index]
        segmentation[masks[index]] = CLASS_NAMES.index(BY_NAME[placement.subject].kind)
    return Rendering(np.asarray(image), masks, segmentation)
