"""Captions: a scene in words, in one of many phrasings. Knows nothing of pixels."""

import numpy as np

from sdcli.training.places import BACKGROUNDS
from sdcli.training.sprites import BY_NAME
from sdcli.training.world import Placement, Scene

PLACE_PHRASES = {
    "snow": (
        "in the snow",
        "in the snow",
        "in snow",
        "in a snowy landscape",
        "in winter",
        "in front of snowy mountains",
    ),
    "night": ("at night", "at night", "in the night", "under the moon", "by night", "under the stars"),
    "beach": ("on the beach", "at the beach", "on a beach", "by the sea", "at the seaside"),
    "forest": ("in the forest", "in the forest", "in a forest", "in the woods", "among trees"),
    "desert": ("in the desert", "in the desert", "in a desert", "on a dune", "in the sand"),
    "meadow": ("in a meadow", "in the meadow", "in a field", "on the grass", "among flowers"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening", "in front of a sunset", "in the setting sun"),
    "city": ("in the city", "in the city", "in a city", "in town", "on the street", "in front of a skyline"),
    "underwater": ("under water", "underwater", "under water", "in the sea", "at the bottom of the sea"),
    "mountains": ("in the mountains", "in the mountains", "in a valley", "in front of mountains"),
    "autumn": ("in autumn", "in autumn", "in fall", "in an autumn forest", "among autumn leaves"),
    "space": ("in space", "in space", "in outer space", "on the moon", "on another planet"),
    **{name: (f"on a {name}", f"on a {name}", f"on a plain {name}", f"on {name.split()[0]}") for name in BACKGROUNDS},
}
TIME_PHRASES = {"night": ("at night", "by night", "under the stars"), "sunset": ("at sunset", "at dusk")}
COLOUR_WORDS = {"red": ("red", "red", "red", "crimson"), "purple": ("purple", "purple", "purple", "violet")}
SIZE_WORDS = {"big": ("big", "big", "large", "huge"), "small": ("small", "small", "little", "tiny")}
PLURALS = {"fox": "foxes", "wolf": "wolves", "mouse": "mice", "sheep": "sheep", "deer": "deer", "fish": "fish"}
OPENINGS = ("", "", "", "", "", "", "a picture of ", "a drawing of ", "an illustration of ")


def pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the choices."""
    return choices[rng.integers(len(choices))]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeio' or noun.startswith('umbrella') else 'a'} {noun}"


def plural(noun: str) -> str:
    """More than one of it; the last word takes the ending."""
    *before, last = noun.split()
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("s", "ch", "sh", "x")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


def noun_of(placement: Placement, place: str, rng: np.random.Generator) -> str:
    """The subject with its size and colour; white in the snow may be called arctic."""
    subject = BY_NAME[placement.subject]
    noun = subject.name
    if subject.synonyms and rng.uniform() < 0.12:
        noun = pick(subject.synonyms, rng)
    if (placement.colour, place) == ("white", "snow") and rng.uniform() < 0.6:
        noun = f"arctic {noun}"
    elif placement.colour != "natural":
        noun = f"{pick(COLOUR_WORDS.get(placement.colour, (placement.colour,)), rng)} {noun}"
    elif subject.own and rng.uniform() < 0.25:
        noun = f"{subject.own} {noun}"
    if placement.size and rng.uniform() < 0.8:
        noun = f"{pick(SIZE_WORDS[placement.size], rng)} {noun}"
    return noun


def subjects_of(scene: Scene, rng: np.random.Generator) -> str:
    """The subjects in words, with how many there are and where they are to each other."""
    placements = scene.placements
    nouns = [noun_of(placement, scene.place, rng) for placement in placements]
    if len(placements) == 1:
        return (nouns[0], article(nouns[0]), article(nouns[0]), f"the {nouns[0]}")[rng.integers(4)]
    if len({placement.subject for placement in placements}) == 1:
        return f"{('two', 'three')[len(placements) - 2]} {plural(nouns[0])}"
    bare = rng.uniform() < 0.2
    left, *middle, right = nouns if bare else [article(noun) for noun in nouns]
    if middle:
        between = f"{middle[0]} between {left} and {right}"
        return f"{left}, {middle[0]} and {right}" if rng.uniform() < 0.8 else between
    one, other = (left, right) if rng.uniform() < 0.5 else (right, left)
    return pick(
        (
            f"{left} left of {right}",
            f"{left} to the left of {right}",
            f"{right} right of {left}",
            f"{right} to the right of {left}",
            f"{left} and {right}",
            f"{one} next to {other}",
            f"{one} beside {other}",
        ),
        rng,
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many captions of a scene, as a user might type it."""
    subjects = subjects_of(scene, rng)
    opening = pick(OPENINGS, rng)
    phrase = pick(PLACE_PHRASES[scene.place], rng)
    if scene.time != "day":
        phrase = f"{phrase} {pick(TIME_PHRASES[scene.time], rng)}"
    form = rng.uniform()
    if scene.time == "day" and form < (0.4 if "arctic" in subjects else 0.1):  # the place is the model's to choose
        return f"{opening}{subjects}"
    if form > 0.95 and scene.place not in BACKGROUNDS:
        return f"{subjects}, {scene.place}" if scene.time == "day" else f"{subjects}, {scene.place}, {scene.time}"
    return f"{opening}{subjects} {phrase}"
