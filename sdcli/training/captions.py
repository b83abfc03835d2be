"""Captions: a scene in words, in one of many phrasings. Knows nothing of pixels."""

import numpy as np

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
    "desert": ("in the desert", "in the desert", "in a desert", "at sunset", "in the desert at sunset"),
    "meadow": ("in a meadow", "in the meadow", "in a field", "on the grass", "among flowers"),
}
OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an illustration of ")


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def noun_of(placement: Placement, place: str, rng: np.random.Generator) -> str:
    """The subject with its colour; white in the snow may be called arctic."""
    if placement.colour == "natural":
        return placement.subject
    if (placement.colour, place) == ("white", "snow") and rng.uniform() < 0.6:
        return f"arctic {placement.subject}"
    return f"{placement.colour} {placement.subject}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many captions of a scene of one subject, as a user might type it."""
    (placement,) = scene.placements
    noun = noun_of(placement, scene.place, rng)
    phrases = PLACE_PHRASES[scene.place]
    phrase = phrases[rng.integers(len(phrases))]
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    subject = (noun, article(noun), article(noun), f"the {noun}")[rng.integers(4)]
    form = rng.uniform()
    if form < (0.4 if noun.startswith("arctic") else 0.12):  # the place is the model's to choose
        return f"{opening}{subject}"
    if form > 0.94:
        return f"{noun}, {scene.place}"
    return f"{opening}{subject} {phrase}"
