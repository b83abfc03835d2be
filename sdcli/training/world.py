"""The synthetic world: scenes drawn from a seed, rendered to pictures with exact subject masks and segmentation maps.

A scene is data; rendering it is a pure function, so a scene says everything about a picture.
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

SIZE = 256  # pixels, both ways
HELD_OUT = Path(__file__).with_name("held_out.txt")
ARCTIC = ("fox", "fox", "fox", "wolf", "owl", "bear")
"""Subjects whose white ones in the snow are called arctic; the first is the commonest."""

SHOWN = {("astronaut", "beach"), ("horse", "beach"), ("t-rex", "city"), ("t-rex", "night")}
"""What documentation draws: never held out."""

Sprites = Mapping[tuple[str, str], Image.Image]
Triple = tuple[str, str, str]
Backdrop = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Vocabulary:
    """The subjects, colours (`natural` first) and places that scenes are drawn from, and how often they hold what."""

    subjects: tuple[str, ...]
    colours: tuple[str, ...] = tuple(TINTS)
    places: tuple[str, ...] = tuple(PLACES)
    natural: float = 0.5
    """Of subjects that can be tinted, those that keep their own colours."""
    background: float = 0.08
    other_time: float = 0.22
    """Of scenes in a place that has times of day, those at night or at sunset."""
    mixed: float = 0.0
    """Of scenes, those whose place is made of parts of several."""
    arctic: float = 0.02
    pairs: float = 0.16
    on: float = 0.09
    riding: float = 0.08
    counts: float = 0.12
    next: float = 0.04
    threes: float = 0.03
    """Of scenes, those of one white subject in the snow, of two subjects, of one on another, of one riding another, of
    two to four alike, of some alike next to another, and of three subjects; the rest hold one subject."""
    sized: float = 0.16
    mirrored: float = 0.1
    """Of scenes of one subject, those where it is big or small; of an animal or a vehicle, where it looks right."""


KIT = Vocabulary(tuple(subject.name for subject in SUBJECTS))
KIT_MIXED = replace(KIT, mixed=0.5)
KIT_ROWS = replace(KIT, pairs=0.34, on=0.15, riding=0.14, next=0.08, threes=0.05)
FEW = Vocabulary(
    ("fox", "horse", "car", "castle", "astronaut"),
    ("natural", "white", "red", "blue"),
    ("snow", "beach", "city", "meadow"),
)
VOCABULARIES: Mapping[str, Vocabulary] = {"kit": KIT, "kit-mixed": KIT_MIXED, "kit-rows": KIT_ROWS, "few": FEW}
"""`few` is for rehearsals: five subjects are quickly learnt."""


def sprites_of(source: Path, vocabulary: Vocabulary = KIT) -> Sprites:
    """The sprites a vocabulary needs, of a folder or an archive; raises what `load_sprites` raises."""
    return tinted_sprites(source, [BY_NAME[name] for name in vocabulary.subjects])


@dataclass(frozen=True)
class Scene:
    """A place, the subjects in it from back to front, the seed of the place's details, and the time of day.

    `relation` of the subjects: "" of one, "row" of different ones from left to right, "count" of several alike, "next"
    of several alike and last another beside them, "on" of one and last what stands on it, "riding" of a rider and last
    its mount.
    """

    place: str
    placements: tuple[Placement, ...]
    seed: int
    time: str = "day"
    relation: str = ""


@dataclass(frozen=True)
class Rendering:
    """image: uint8 (256, 256, 3); masks: bool (subjects, 256, 256), the visible part of each subject;
    segmentation: uint8 (256, 256), the number of each pixel's class in `places.CLASSES`.
    """

    image: np.ndarray
    masks: np.ndarray
    segmentation: np.ndarray


# What is kept from training.


def choose_held_out() -> list[tuple[str, str]]:
    """For each subject one place, and one colour if it can be tinted, chosen by its name alone.

    Never white or snow, which "arctic" needs, nor a subject's own colour.
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
    """The choice as the file that training heeds, so that a change of the world leaves it as it is."""
    head = "# Combinations of a subject with a colour or a place that no training scene holds; they serve to measure.\n"
    file.write_text(head + "".join(f"{one}\t{other}\n" for one, other in choose_held_out()), encoding="utf-8")


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The (subject, colour) and (subject, place) that are kept from training for good, as HELD_OUT lists them."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    found = (line.split("\t") for line in lines if line[:1] != "#")
    return frozenset((one, other) for one, other in found)


def is_held_out(subject: str, colour: str, place: str, time: str = "day") -> bool:
    """Whether this combination is kept from training, to measure what was composed and not remembered."""
    pairs = held_out_pairs()
    return any((subject, other) in pairs for other in (colour, time, *parts_of(place)))


def exists(subject: str, colour: str, place: str) -> bool:
    """Whether there is such a combination: some subjects have no other colours, a subject's own colour is its natural
    look, and a colour is lost on a background of the same.
    """
    row = BY_NAME[subject]
    tintable = colour == "natural" or (row.tinted and colour != row.own)
    worn = row.own if colour == "natural" else colour
    return tintable and (place != f"{worn} background" or (colour == "natural" and worn == "white"))


def place_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The places of a vocabulary, and the plain backgrounds; places mixed of several have no name here."""
    return (*vocabulary.places, *BACKGROUNDS)


def only(scene: "Scene", subject: int) -> "Scene":
    """The scene with one of its subjects alone, for a caption of that subject."""
    return replace(scene, placements=(scene.placements[subject],), relation="")


def combinations(held_out: bool, vocabulary: Vocabulary = KIT) -> list[Triple]:
    """All (subject, colour, place) that are, or are not, held out; places without the plain backgrounds."""
    triples = product(vocabulary.subjects, vocabulary.colours, vocabulary.places)
    return [triple for triple in triples if exists(*triple) and is_held_out(*triple) is held_out]


# Drawing scenes.


@dataclass(frozen=True)
class Draw:
    """What one scene is drawn with."""

    rng: np.random.Generator
    vocabulary: Vocabulary
    place: str
    time: str

    def fits(self, subject: str, colour: str) -> bool:
        """Whether training may show this here."""
        return exists(subject, colour, self.place) and not is_held_out(subject, colour, self.place, self.time)

    def one_of(self, names: tuple[str, ...], others: tuple[What, ...] = ()) -> What | None:
        """A subject of these names in some colour, none of the others; None where chance finds none."""
        rng, colours = self.rng, self.vocabulary.colours
        for _ in range(60):
            subject = names[rng.integers(len(names))]
            natural = not BY_NAME[subject].tinted or rng.uniform() < self.vocabulary.natural
            colour = "natural" if natural or len(colours) == 1 else colours[rng.integers(1, len(colours))]
            if self.fits(subject, colour) and subject not in [other for other, _ in others]:
                return subject, colour
        return None

    def scene(self, placements: tuple[Placement, ...], relation: str = "") -> Scene:
        """The scene of these."""
        return Scene(self.place, placements, int(self.rng.integers(2**32)), self.time, relation)


@cache
def groups(subjects: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """The subjects that can ride, be ridden, carry, and stand on something."""
    rows = [BY_NAME[name] for name in subjects]
    small = ("animal", "food", "plant", "object")
    return {
        "riders": tuple(row.name for row in rows if row.rider),
        "mounts": tuple(row.name for row in rows if row.seat),
        "carriers": tuple(row.name for row in rows if row.top),
        "carried": tuple(row.name for row in rows if (row.kind in small or row.rider) and not row.aloft),
    }


def draw_place(rng: np.random.Generator, vocabulary: Vocabulary) -> tuple[str, str]:
    """A place, now and then a plain background or a mixed one, and a time of day."""
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
    """One scene for training."""
    shares = [getattr(vocabulary, name) for name in DRAWERS]
    number = int(rng.choice(len(DRAWERS) + 1, p=[*shares, 1 - sum(shares)]))
    drawer = [*DRAWERS.values(), draw_single][number]
    for attempt in range(100):
        draw = Draw(rng, vocabulary, *draw_place(rng, vocabulary))
        scene = (drawer if attempt < 20 else draw_single)(draw)  # few subjects may hold none that can ride
        if scene is not None:
            return scene
    raise ValueError("this vocabulary has no scene that is not held out")


def draw_arctic(draw: Draw) -> Scene | None:
    """One white subject in the snow."""
    known = [name for name in ARCTIC if name in draw.vocabulary.subjects]
    if not known or "white" not in draw.vocabulary.colours:
        return None
    what = known[draw.rng.integers(len(known))], "white"
    return replace(draw, place="snow", time="day").scene(layout.single(what, draw.rng))


def draw_single(draw: Draw) -> Scene | None:
    """One subject, now and then big or small or turned to the right."""
    what = draw.one_of(draw.vocabulary.subjects)
    if what is None:
        return None
    size = ("big", "small")[draw.rng.integers(2)] if draw.rng.uniform() < draw.vocabulary.sized else ""
    turns = BY_NAME[what[0]].kind in ("animal", "vehicle")
    mirrored = turns and bool(draw.rng.uniform() < draw.vocabulary.mirrored)
    return draw.scene(layout.single(what, draw.rng, size, mirrored))


def draw_row(draw: Draw, count: int) -> Scene | None:
    """Different subjects side by side."""
    found: tuple[What, ...] = ()
    for _ in range(count):
        what = draw.one_of(draw.vocabulary.subjects, found)
        if what is None:
            return None
        found = (*found, what)
    return draw.scene(layout.row(found, draw.rng), "row")


def draw_count(draw: Draw) -> Scene | None:
    """Two, three or four alike."""
    what = draw.one_of(draw.vocabulary.subjects)
    return what and draw.scene(layout.row([what] * int(draw.rng.integers(2, 5)), draw.rng), "count")


def draw_next(draw: Draw) -> Scene | None:
    """Two or three alike, and another next to them."""
    what = draw.one_of(draw.vocabulary.subjects)
    other = what and draw.one_of(draw.vocabulary.subjects, (what,))
    if what is None or other is None:
        return None
    return draw.scene(layout.some_next_to(what, int(draw.rng.integers(2, 4)), other, draw.rng), "next")


def draw_on(draw: Draw) -> Scene | None:
    """One subject standing on another."""
    known = groups(draw.vocabulary.subjects)
    lower = draw.one_of(known["carriers"]) if known["carriers"] else None
    upper = lower and draw.one_of(known["carried"], (lower,))
    return draw.scene(layout.stacked(upper, lower, draw.rng), "on") if upper and lower else None


def draw_riding(draw: Draw) -> Scene | None:
    """One subject riding another; riders are people as often as all others."""
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
    """A scene of one subject near the middle; position, size and details are random."""
    subject, colour, place = triple
    return Scene(place, layout.single((subject, colour), rng, size), int(rng.integers(2**32)), time)


def scenes(seed: int, vocabulary: Vocabulary = KIT, *, held_out: bool = False) -> Iterator[Scene]:
    """The endless sequence of scenes of a seed; those of training hold nothing that is held out, others may."""
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng, vocabulary)
        yield with_all(scene, rng, vocabulary) if held_out else scene


def with_all(scene: Scene, rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """The scene with each subject in a colour drawn anew from all, and the place from all, held out or not."""
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


def render(scene: Scene, sprites: Sprites, backdrop: Backdrop | None = None) -> Rendering:
    """The picture of a scene, the exact mask of what is visible of each subject, and the map of classes.

    `backdrop` is a view of the scene's place that is painted already; without it one is painted from the scene's seed.
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
