import re
from itertools import islice

import numpy as np
import pytest

from sdcli.training import layout
from sdcli.training.captions import (
    COLOUR_WORDS,
    COUNT_WORDS,
    LEFTWARDS,
    PLACE_PHRASES,
    RIGHTWARDS,
    SIZE_WORDS,
    TIME_PHRASES,
    article,
    caption,
    plural,
    vocabulary,
)
from sdcli.training.places import BACKGROUNDS, PLACES
from sdcli.training.sprites import TINTS
from sdcli.training.subjects import BY_NAME, SUBJECTS
from sdcli.training.world import KIT, KIT_MIXED, Scene, compose, scenes


def captions_of(triple, count=200, **how):
    rng = np.random.default_rng(0)
    return {caption(compose(triple, rng, **how), rng) for _ in range(count)}


def captions_for(placements, relation, place="snow", count=400, time="day"):
    rng = np.random.default_rng(0)
    return {caption(Scene(place, placements, 1, time, relation), rng) for _ in range(count)}


def said(word, text):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)


@pytest.mark.parametrize("known", [KIT, KIT_MIXED])
def test_a_caption_names_each_subject_and_its_colour(known):
    rng = np.random.default_rng(1)
    for scene in islice(scenes(1, known), 3000):
        words = caption(scene, rng)
        for placement in scene.placements:
            names = BY_NAME[placement.subject].words
            assert any(said(name, words) or said(plural(name), words) for name in names), words
            if placement.colour != "natural":
                assert any(said(word, words) for word in (*COLOUR_WORDS[placement.colour], "arctic")), words


def test_captions_are_plain_text_and_many():
    rng = np.random.default_rng(4)
    texts = [caption(scene, rng) for scene in islice(scenes(5), 3000)]
    for text in texts:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9, -]*[a-z0-9])?", text), text
        assert "  " not in text
        assert " ," not in text
    assert len(set(texts)) > 2900
    assert max(len(text.split()) for text in texts) < 40


def relation_of(wanted, rng):
    """The scene that a prompt speaks of, if it speaks of several subjects."""
    if "riding" in wanted:
        return "riding", layout.riding(("astronaut", "natural"), ("horse", "natural"), rng)
    if "next to" in wanted:
        return "next", layout.some_next_to(("penguin", "natural"), 3, ("castle", "natural"), rng)
    return "on", layout.stacked(("cat", "natural"), ("car", "natural"), rng)


@pytest.mark.parametrize(
    ("wanted", "triple", "time"),
    [
        ("arctic fox", ("fox", "white", "snow"), "day"),
        ("a pizza", ("pizza", "natural", "room"), "day"),
        ("a green t-rex in the city at night", ("t-rex", "natural", "city"), "night"),
        ("a fox on a white background", ("fox", "natural", "white background"), "day"),
        ("fox, snow, night", ("fox", "natural", "snow"), "night"),
        ("an astronaut riding a horse on the beach", None, "day"),
        ("three penguins next to a castle", None, "day"),
        ("a cat on a car", None, "day"),
    ],
)
def test_captions_include_typical_prompts(wanted, triple, time):
    rng = np.random.default_rng(2)
    if triple:
        scene = compose(triple, rng, time=time)
    else:
        relation, placements = relation_of(wanted, rng)
        scene = Scene("beach", placements, 1, time, relation)
    assert any(caption(scene, rng) == wanted for _ in range(15000))


def test_arctic_only_means_white_in_the_snow():
    assert {"arctic fox", "an arctic fox", "an arctic fox in the snow"} <= captions_of(("fox", "white", "snow"), 1500)
    for triple in (("fox", "natural", "snow"), ("fox", "white", "beach"), ("car", "white", "snow")):
        assert not any("arctic" in words for words in captions_of(triple))


def test_captions_name_the_place_of_the_scene():
    for place, phrases in PLACE_PHRASES.items():
        others = {p for other, all_of in PLACE_PHRASES.items() if other != place for p in all_of}
        assert not others & set(phrases)
        named = set(BACKGROUNDS) | set(PLACES) - {place}
        for words in captions_of(("robot", "red" if place != "red background" else "blue", place), 60):
            assert not any(re.search(rf" {re.escape(other)}(,|$)", words) for other in others - set(phrases)) or any(
                phrase in words for phrase in phrases
            )
            assert not any(words.endswith(f", {other}") for other in named - {place})


def test_a_mixed_place_has_the_name_of_one_of_its_parts_or_none():
    rng = np.random.default_rng(3)
    scene = compose(("fox", "natural", "forest/desert/beach"), rng)
    allowed = {phrase for part in ("forest", "desert", "beach") for phrase in PLACE_PHRASES[part]}
    allowed |= {"forest", "desert", "beach", *TIME_PHRASES["day"]}
    named = set()
    for _ in range(300):
        text = re.sub(
            r", (3d render|3d|cute|high quality|detailed|digital art|soft light|4k)$", "", caption(scene, rng)
        )
        found = [phrase for phrase in allowed if text.endswith(phrase)]
        named |= {part for part in ("forest", "desert", "beach") for p in found if p in (part, *PLACE_PHRASES[part])}
        assert found or re.search(r"(fox|left)$", text), text
    assert named == {"forest", "desert", "beach"}


def test_left_and_right_match_the_scene():
    rng = np.random.default_rng(2)
    found = set()
    for _ in range(600):
        scene = Scene("snow", layout.row([("fox", "red"), ("owl", "natural")], rng), 1, "day", "row")
        words = caption(scene, rng)
        if match := re.search(r"(fox|owl) (?:to the )?(left|right) of (?:an? )?(?:\w+ )*(fox|owl)", words):
            found.add(match.groups())
        if match := re.search(r"(fox|owl) on the left and .*(fox|owl) on the right", words):
            found.add(match.groups())
    assert found == {("fox", "left", "owl"), ("owl", "right", "fox"), ("fox", "owl")}


def test_on_and_riding_name_the_upper_subject_first():
    rng = np.random.default_rng(5)
    on = captions_for(layout.stacked(("cat", "natural"), ("car", "natural"), rng), "on")
    upper, lower = r"(?:cat|kitten|kitty)", r"(?:car|automobile)"
    between = r"(?: standing| sitting)? on (?:top of )?(?:an? )?(?:\w+ )*"
    for text in on:
        assert re.search(rf"{upper}{between}{lower}|{lower} with .*{upper} on top|{lower} under .*{upper}", text), text
    riding = captions_for(layout.riding(("wizard", "natural"), ("horse", "natural"), rng), "riding")
    upper, lower = r"(?:wizard|sorcerer|mage)", r"(?:horse|pony|stallion)"
    how = r"(?: riding on| riding| rides| on the back of| on) (?:an? )?(?:\w+ )*"
    for text in riding:
        assert re.search(rf"{upper}{how}{lower}|{lower} with .*{upper} on its back", text), text
    assert any(" riding a" in text for text in riding)


def test_counts_are_the_number_of_subjects():
    rng = np.random.default_rng(3)
    for count, words in COUNT_WORDS.items():
        alike = captions_for(layout.row([("fox", "natural")] * count, rng), "count")
        assert all(any(said(word, text) for word in words) and said("foxes", text) for text in alike)
        others = {word for number, ways in COUNT_WORDS.items() if number != count for word in ways}
        assert not any(said(word, text) for text in alike for word in others)
    some = captions_for(layout.some_next_to(("fox", "natural"), 3, ("castle", "natural"), rng), "next")
    assert all(any(said(word, text) for word in COUNT_WORDS[3]) and said("foxes", text) for text in some)
    assert all(said("castle", text) or said("fortress", text) for text in some)


def test_sizes_times_and_sides_match_the_scene():
    for size, words in SIZE_WORDS.items():
        told = [t for t in captions_of(("lion", "natural", "beach"), size=size) if any(said(w, t) for w in words)]
        assert len(told) > 50
    plain = captions_of(("lion", "natural", "beach"))
    invented = {*RIGHTWARDS, *TIME_PHRASES["night"], *TIME_PHRASES["sunset"]}
    invented |= {word for words in SIZE_WORDS.values() for word in words}
    assert not any(said(word, text) for text in plain for word in invented)
    assert any(said(words, text) for text in plain for words in LEFTWARDS)
    evening = captions_of(("lion", "natural", "beach"), time="sunset")
    assert all(re.search("sunset|dusk|evening", text) for text in evening)
    turned = captions_for(layout.single(("lion", "natural"), np.random.default_rng(1), mirrored=True), "")
    assert all(any(words in text for words in RIGHTWARDS) for text in turned)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("owl", "an owl"), ("fox", "a fox"), ("unicorn", "a unicorn"), ("ufo", "a ufo"), ("umbrella", "an umbrella"),
     ("cup of tea", "a cup of tea"), ("orange cat", "an orange cat"), ("green umbrella", "a green umbrella"),
     ("spaghetti", "spaghetti"), ("red cherries", "red cherries"), ("orange background", "an orange background")],
)  # fmt: skip
def test_articles(noun, expected):
    assert article(noun) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("red fox", "red foxes"), ("bunny", "bunnies"), ("monkey", "monkeys"), ("wolf", "wolves"), ("mouse", "mice"),
     ("bus", "buses"), ("blue sheep", "blue sheep"), ("goose", "geese"), ("butterfly", "butterflies"),
     ("cup of tea", "cups of tea"), ("princess", "princesses"), ("snowman", "snowmen"), ("cactus", "cacti"),
     ("octopus", "octopuses"), ("police officer", "police officers"), ("tropical fish", "tropical fish"),
     ("t-rex", "t-rexes"), ("leaf", "leaves"), ("sandwich", "sandwiches"), ("bread", "loaves of bread")],
)  # fmt: skip
def test_plurals(noun, expected):
    assert plural(noun) == expected


def test_the_vocabulary_has_all_words_of_captions():
    groups = vocabulary()
    assert set(groups["subjects"]) == {subject.name for subject in SUBJECTS}
    assert "kitten" in groups["subjects"]["cat"]
    assert set(groups["places"]) == set(PLACES)
    assert set(groups["backgrounds"]) == set(BACKGROUNDS)
    assert set(groups["colours"]) == set(TINTS) - {"natural"}
    assert groups["natural colours"] == {"grey": ["grey", "gray"], "brown": ["brown"]}
    known = {
        word
        for ways in groups.values()
        for name, phrases in ways.items()
        for phrase in (name, *phrases)
        for text in (phrase, plural(phrase))
        for word in re.findall(r"[\w-]+", text)
    }
    rng = np.random.default_rng(9)
    for scene in islice(scenes(9), 4000):
        assert set(re.findall(r"[\w-]+", caption(scene, rng))) <= known | {"a", "an", "the", "and", "of", "loaves"}
