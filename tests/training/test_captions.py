from itertools import islice

import numpy as np

from sdcli.training.captions import PLACE_PHRASES, article, caption
from sdcli.training.world import compose, scenes


def captions_of(triple, count=200):
    rng = np.random.default_rng(0)
    return {caption(compose(triple, rng), rng) for _ in range(count)}


def test_a_caption_names_the_subject_and_its_colour():
    rng = np.random.default_rng(1)
    for scene in islice(scenes(1), 500):
        (placement,) = scene.placements
        words = caption(scene, rng)
        assert placement.subject in words
        if placement.colour != "natural":
            assert placement.colour in words or "arctic" in words


def test_arctic_is_white_in_the_snow_and_nothing_else():
    assert {"arctic fox", "an arctic fox", "an arctic fox in the snow"} <= captions_of(("fox", "white", "snow"), 500)
    for triple in (("fox", "natural", "snow"), ("fox", "white", "beach")):
        assert not any("arctic" in words for words in captions_of(triple))


def test_a_place_named_is_the_place_shown():
    for place, phrases in PLACE_PHRASES.items():
        others = {p for other, all_of in PLACE_PHRASES.items() if other != place for p in all_of}
        assert not others & set(phrases)
        for words in captions_of(("robot", "red", place)):
            assert not any(words.endswith(f" {other}") for other in others)


def test_articles():
    assert article("owl") == "an owl"
    assert article("fox") == "a fox"
    assert article("unicorn") == "a unicorn"
