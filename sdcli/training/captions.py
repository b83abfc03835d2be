"""Captions: descriptions of scenes in many phrasings. Does not depend on pixels."""

from collections.abc import Mapping, Sequence

import numpy as np

from sdcli.training.layout import Placement
from sdcli.training.places import BACKGROUNDS, PLACES, TIMED_PLACES, TIMES, parts_of
from sdcli.training.sprites import TINTS
from sdcli.training.subjects import BY_NAME, SUBJECTS
from sdcli.training.world import Scene

Rng = np.random.Generator
MANY = {
    "cherries", "grapes", "french fries", "fries", "pancakes", "noodles", "sushi", "ramen", "spaghetti", "pasta",
    "bread", "popcorn", "corn", "broccoli", "luggage", "coral", "santa claus", "santa", "boba", "father christmas",
    "dracula", "earth", "saturn",
}  # fmt: skip
"""Nouns without "a"."""
LONG_U = ("unicorn", "ufo")
"""Words that start with a vowel but take "a"."""


def article(noun: str) -> str:
    """Return the noun with its indefinite article, if it takes one."""
    if any(noun == bare or noun.endswith(f" {bare}") for bare in MANY):
        return noun
    vowel = noun[0] in "aeiou" and not noun.startswith(LONG_U)
    return f"{'an' if vowel else 'a'} {noun}"


def background_phrases(name: str) -> tuple[str, ...]:
    """Return phrases for a plain background."""
    colour = name.split()[0]
    return (
        f"on {article(name)}",
        f"on {article(name)}",
        f"on a plain {name}",
        f"on {colour}",
        f"against {article(name)}",
    )


PLACE_PHRASES: Mapping[str, tuple[str, ...]] = {
    "snow": ("in the snow", "in the snow", "in snow", "in a snowy landscape", "in winter", "on snow"),
    "beach": ("on the beach", "on the beach", "at the beach", "on a beach", "by the sea", "by the ocean"),
    "forest": ("in the forest", "in the forest", "in a forest", "in the woods", "among trees", "in the jungle"),
    "desert": ("in the desert", "in the desert", "in a desert", "among dunes", "on a dune"),
    "meadow": ("in a meadow", "in the meadow", "in a field", "on the grass", "in the park", "in a garden"),
    "city": ("in the city", "in the city", "in a city", "in town", "on the street", "before a skyline", "downtown"),
    "underwater": ("under water", "underwater", "underwater", "in the sea", "at the bottom of the sea", "in the ocean"),
    "mountains": ("in the mountains", "in the mountains", "in a valley", "in front of mountains", "in the alps"),
    "space": ("in space", "in space", "in outer space", "on the moon", "on another planet", "on mars"),
    "autumn": ("in autumn", "in autumn", "in fall", "in an autumn forest", "among autumn leaves", "in the autumn"),
    "night": ("at night", "at night", "in the night", "under the moon", "by night", "in the moonlight"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening", "in front of a sunset", "in the setting sun"),
    "room": ("in a room", "in a living room", "in the living room", "at home", "indoors", "inside", "in the house"),
    "village": ("in a village", "in the village", "in a small town", "on a village path", "in the countryside"),
    "farm": ("on a farm", "on the farm", "at the farm", "in front of a barn", "by a fence"),
    **{name: background_phrases(name) for name in BACKGROUNDS},
}  # fmt: skip
TIME_PHRASES: Mapping[str, tuple[str, ...]] = {
    "day": ("by day", "during the day", "on a sunny day", "in daylight"),
    "night": ("at night", "at night", "by night", "under the stars", "in the dark"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
}
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    **{colour: (colour,) for colour in TINTS if colour != "natural"},
    "red": ("red", "red", "red", "red", "crimson"),
    "purple": ("purple", "purple", "purple", "violet"),
    "grey": ("grey", "grey", "gray"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "big": ("big", "big", "large", "huge", "giant"),
    "small": ("small", "small", "little", "tiny"),
}
COUNT_WORDS = {
    2: ("two", "two", "two", "2", "a pair of"),
    3: ("three", "three", "three", "3"),
    4: ("four", "four", "4"),
}
PLURALS = {
    "wolf": "wolves", "mouse": "mice", "goose": "geese", "ox": "oxen", "leaf": "leaves", "loaf": "loaves",
    "elf": "elves", "man": "men", "woman": "women", "fireman": "firemen", "policeman": "policemen",
    "spaceman": "spacemen", "tomato": "tomatoes", "hero": "heroes", "superhero": "superheroes",
    "bread": "loaves of bread", "snowman": "snowmen", "cactus": "cacti",
    **{word: word for word in (
        "sheep", "deer", "reindeer", "fish", "bison", "buffalo", "moose", "elk", "squid", "sushi", "ramen", "spaghetti",
        "pasta", "popcorn", "corn", "broccoli", "cherries", "grapes", "fries", "pancakes", "noodles", "luggage",
        "coral", "boba",
    )},
}  # fmt: skip
OPENINGS = (
    "a photo of ", "a photo of ", "photo of ", "a picture of ", "a picture of ", "picture of ", "an image of ",
    "a 3d render of ", "3d render of ", "a drawing of ", "an illustration of ", "a painting of ", "an icon of ",
)  # fmt: skip
ADJECTIVES = ("cute", "cute", "cute", "beautiful", "lovely", "nice", "adorable", "happy", "funny")
ENDINGS = (", 3d", ", 3d render", ", cute", ", high quality", ", detailed", ", digital art", ", soft light", ", 4k")
RIGHTWARDS = ("facing right", "looking right", "looking to the right", "facing to the right")
LEFTWARDS = ("facing left", "looking left", "looking to the left")
ROW_PHRASES = (
    "{left} left of {right}", "{left} to the left of {right}", "{right} right of {left}",
    "{right} to the right of {left}", "{left} on the left and {right} on the right", "{one} and {other}",
    "{one} next to {other}", "{one} beside {other}", "{one} with {other}", "{one} near {other}",
)  # fmt: skip
THREE_PHRASES = (
    "{left}, {middle} and {right}", "{left}, {middle}, and {right}", "{middle} between {left} and {right}",
)  # fmt: skip
ON_PHRASES = (
    "{upper} on {lower}", "{upper} on {lower}", "{upper} on top of {lower}", "{upper} standing on {lower}",
    "{upper} sitting on {lower}", "{lower} with {upper} on top", "{lower} under {upper}",
)  # fmt: skip
RIDING_PHRASES = (
    "{upper} riding {lower}", "{upper} riding {lower}", "{upper} riding {lower}", "{upper} rides {lower}",
    "{upper} riding on {lower}", "{upper} on the back of {lower}", "{lower} with {upper} on its back",
    "{upper} on {lower}",
)  # fmt: skip


def pick(choices: Sequence[str], rng: Rng) -> str:
    """Return a random item of `choices`."""
    return choices[int(rng.integers(len(choices)))]


def plural(noun: str) -> str:
    """Return the plural of a noun. The last word is inflected, or the first one in "cup of tea"."""
    head, of, rest = noun.partition(" of ")
    *before, last = head.split(" ")
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("s", "ch", "sh", "x")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last]) + of + rest


def noun_of(placement: Placement, place: str, rng: Rng) -> str:
    """Return the noun phrase of a subject with its size and colour. White in the snow may be "arctic"."""
    subject = BY_NAME[placement.subject]
    noun = subject.name
    if subject.synonyms and rng.uniform() < 0.15:
        noun = pick(subject.synonyms, rng)
    if (placement.colour, place, subject.kind) == ("white", "snow", "animal") and rng.uniform() < 0.6:
        noun = f"arctic {noun}"
    elif placement.colour != "natural":
        noun = f"{pick(COLOUR_WORDS[placement.colour], rng)} {noun}"
    elif subject.own and rng.uniform() < 0.2:
        noun = f"{pick(COLOUR_WORDS.get(subject.own, (subject.own,)), rng)} {noun}"
    if placement.size and rng.uniform() < 0.85:
        noun = f"{pick(SIZE_WORDS[placement.size], rng)} {noun}"
    return f"{pick(ADJECTIVES, rng)} {noun}" if rng.uniform() < 0.05 else noun


def counted(count: int, noun: str, rng: Rng) -> str:
    """Return a number of subjects in words."""
    return f"{pick(COUNT_WORDS[count], rng)} {plural(noun)}"


def related(phrases: Sequence[str], bare: bool, rng: Rng, **nouns: str) -> str:
    """Return a phrase with nouns inserted, with articles unless `bare`."""
    return pick(phrases, rng).format(**{role: noun if bare else article(noun) for role, noun in nouns.items()})


def one_subject(placement: Placement, noun: str, rng: Rng) -> str:
    """Return the phrase for one subject, with the side that it faces if the scene mirrors it."""
    phrase = pick((noun, article(noun), article(noun), article(noun), f"the {noun}"), rng)
    if placement.mirrored:
        return f"{phrase} {pick(RIGHTWARDS, rng)}"
    if BY_NAME[placement.subject].kind in ("animal", "vehicle") and rng.uniform() < 0.04:
        return f"{phrase} {pick(LEFTWARDS, rng)}"
    return phrase


def subjects_of(scene: Scene, rng: Rng) -> str:
    """Return the phrase for all subjects of a scene, with their number and relation."""
    placements, bare = scene.placements, rng.uniform() < 0.18
    nouns = [noun_of(placement, scene.place, rng) for placement in placements]
    if len(nouns) == 1:
        return one_subject(placements[0], nouns[0], rng)
    if scene.relation == "count":
        return counted(len(nouns), nouns[0], rng)
    if scene.relation == "next":
        some, other = counted(len(nouns) - 1, nouns[0], rng), nouns[-1] if bare else article(nouns[-1])
        between = (" next to ", " next to ", " beside ", " and ", " near ")
        return some + pick(between, rng) + other if rng.uniform() < 0.75 else other + pick(between, rng) + some
    if scene.relation == "on":
        return related(ON_PHRASES, bare, rng, lower=nouns[0], upper=nouns[1])
    if scene.relation == "riding":
        return related(RIDING_PHRASES, bare, rng, upper=nouns[0], lower=nouns[1])
    if len(nouns) == 2:
        one, other = nouns if rng.uniform() < 0.5 else reversed(nouns)
        return related(ROW_PHRASES, bare, rng, left=nouns[0], right=nouns[1], one=one, other=other)
    return related(THREE_PHRASES, bare, rng, left=nouns[0], middle=nouns[1], right=nouns[2])


def place_of(scene: Scene, rng: Rng) -> str:
    """Return the name of the place, or "" for none. A mixed place is mostly named after its ground."""
    sky, far, ground = parts_of(scene.place)
    if sky == far == ground:
        return ground
    return pick((ground, ground, far, sky, ""), rng)


def setting(scene: Scene, rng: Rng) -> str:
    """Return the phrase for place and time."""
    place = place_of(scene, rng)
    words = [pick(PLACE_PHRASES[place], rng)] if place else []
    if scene.time != TIMES[0]:
        words.append(pick(TIME_PHRASES[scene.time], rng))
        if rng.uniform() < 0.1:
            words.reverse()
    elif place in TIMED_PLACES and rng.uniform() < 0.03:
        words.append(pick(TIME_PHRASES["day"], rng))
    return " ".join(words)


def caption(scene: Scene, rng: Rng) -> str:
    """Return one of the many captions of a scene, worded as a user might type it."""
    subjects, form = subjects_of(scene, rng), rng.uniform()
    opening = pick(OPENINGS, rng) if rng.uniform() < 0.3 and " rides " not in subjects else ""
    ending = pick(ENDINGS, rng) if rng.uniform() < 0.06 else ""
    if scene.time == TIMES[0] and form < (0.4 if "arctic" in subjects else 0.07):  # leaves the place to the model
        return f"{opening}{subjects}{ending}"
    place = place_of(scene, rng)
    if form > 0.94 and place:
        return ", ".join([subjects, place, *([] if scene.time == TIMES[0] else [scene.time])]) + ending
    where = setting(scene, rng)
    comma = ", " if form > 0.9 else " "
    return f"{opening}{subjects}{comma if where else ''}{where}{ending}"


def vocabulary() -> dict[str, dict[str, list[str]]]:
    """Return all words of captions: for each group, the meanings and the phrases for each."""

    def table(phrases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        return {name: list(dict.fromkeys(ways)) for name, ways in phrases.items()}

    colours = {subject.own: (subject.own,) for subject in SUBJECTS if subject.own} | dict(COLOUR_WORDS)
    fill = dict.fromkeys(("left", "middle", "right", "one", "other", "upper", "lower"), "")
    return {
        "subjects": table({subject.name: subject.words for subject in SUBJECTS}),
        "colours": table({colour: words for colour, words in colours.items() if colour in TINTS}),
        "natural colours": table({colour: words for colour, words in colours.items() if colour not in TINTS}),
        "places": table({name: PLACE_PHRASES[name] for name in PLACES}),
        "backgrounds": table({name: PLACE_PHRASES[name] for name in BACKGROUNDS}),
        "times": table(TIME_PHRASES),
        "sizes": table(SIZE_WORDS),
        "counts": table({str(count): words for count, words in COUNT_WORDS.items()}),
        "relations": table(
            {
                name: [" ".join(phrase.format(**fill).split()) for phrase in phrases]
                for name, phrases in (
                    ("row", ROW_PHRASES),
                    ("three", THREE_PHRASES),
                    ("on", ON_PHRASES),
                    ("riding", RIDING_PHRASES),
                )
            }
        ),
        "other": table(
            {"looks": (*ADJECTIVES, "arctic"), "styles": (*OPENINGS, *ENDINGS), "sides": (*RIGHTWARDS, *LEFTWARDS)}
        ),
    }
