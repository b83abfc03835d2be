import re
from itertools import islice

import numpy as np

from sdcli.training.captions import COLOUR_WORDS, PLACE_PHRASES, SIZE_WORDS, TIME_PHRASES, article, caption, plural
from sdcli.training.places import BACKGROUNDS
from sdcli.training.sprites import BY_NAME
from sdcli.training.world import WHOLE, compose, compose_row, scenes


def captions_of(triple, count=200, **how):
    rng = np.random.default_rng(0)
    return {caption(compose(triple, rng, **how), rng) for _ in range(count)}


def test_a_caption_names_each_subject_and_its_colour():
    rng = np.random.default_rng(1)
    for scene in islice(scenes(1, WHOLE), 2000):
        words = caption(scene, rng)
        for placement in scene.placements:
            names = (placement.subject, *BY_NAME[placement.subject].synonyms)
            assert any(name in words or plural(name) in words for name in names)
            if placement.colour != "natural":
                asked = COLOUR_WORDS.get(placement.colour, (placement.colour,))
                assert any(word in words for word in asked) or "arctic" in words


def test_arctic_is_white_in_the_snow_and_nothing_else():
    assert {"arctic fox", "an arctic fox", "an arctic fox in the snow"} <= captions_of(("fox", "white", "snow"), 500)
    for triple in (("fox", "natural", "snow"), ("fox", "white", "beach")):
        assert not any("arctic" in words for words in captions_of(triple))


def test_a_place_named_is_the_place_shown():
    for place, phrases in PLACE_PHRASES.items():
        others = {p for other, all_of in PLACE_PHRASES.items() if other != place for p in all_of}
        assert not others & set(phrases)
        for words in captions_of(("robot", "red", place)):
            assert not any(words.endswith(f" {other}") for other in others - set(phrases)) or place in BACKGROUNDS


def test_left_and_right_are_told_as_they_are():
    rng = np.random.default_rng(2)
    said = set()
    for _ in range(400):
        scene = compose_row([("fox", "red"), ("owl", "natural")], "snow", rng)
        words = caption(scene, rng)
        if found := re.search(r"(fox|owl) (?:to the )?(left|right) of (?:an? )?(?:\w+ )?(fox|owl)", words):
            said.add(found.groups())
    assert said == {("fox", "left", "owl"), ("owl", "right", "fox")}


def test_counts_are_the_number_of_subjects():
    rng = np.random.default_rng(3)
    for count, word in ((2, "two"), (3, "three")):
        words = caption(compose_row([("fox", "natural")] * count, "snow", rng), rng)
        assert re.search(rf"\b{word} foxes\b", words)


def test_sizes_and_times_are_told_and_not_invented():
    for size, words in SIZE_WORDS.items():
        told = [text for text in captions_of(("lion", "natural", "beach"), size=size) if any(w in text for w in words)]
        assert len(told) > 10
    plain = captions_of(("lion", "natural", "beach"))
    invented = {word for words in (*SIZE_WORDS.values(), *TIME_PHRASES.values()) for word in words}
    assert not any(re.search(rf"\b{word}\b", text) for text in plain for word in invented)
    evening = captions_of(("lion", "natural", "beach"), time="sunset")
    assert all(re.search("sunset|dusk", text) for text in evening)


def test_articles_and_plurals():
    assert [article(noun) for noun in ("owl", "fox", "unicorn", "umbrella")] == [
        "an owl",
        "a fox",
        "a unicorn",
        "an umbrella",
    ]
    nouns = ("red fox", "bunny", "monkey", "ostrich", "mouse", "bus", "blue sheep")
    assert [plural(noun) for noun in nouns] == [
        "red foxes",
        "bunnies",
        "monkeys",
        "ostriches",
        "mice",
        "buses",
        "blue sheep",
    ]
