from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.training.places import BACKGROUNDS, CLASS_NAMES, PLACES, TIMED_PLACES
from sdcli.training.sprites import SUBJECTS, TINTS
from sdcli.training.world import (
    SIZE,
    WHOLE,
    Placement,
    Scene,
    combinations,
    compose,
    compose_row,
    exists,
    held_out_pairs,
    is_held_out,
    place_sprite,
    render,
    scenes,
)

MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)
BLOCKS = {
    ("fox", "natural"): Image.new("RGBA", (20, 20), (*MAGENTA, 255)),
    ("cat", "natural"): Image.new("RGBA", (10, 20), (*CYAN, 255)),
}


def pixels_of(image, colour):
    return (image == np.array(colour)).all(-1)


def test_a_seed_names_its_scenes_and_their_pixels(sprites):
    first, again, other = (list(islice(scenes(seed), 6)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    for scene in first[:2]:
        assert np.array_equal(render(scene, sprites).image, render(scene, sprites).image)


def test_the_mask_is_exactly_where_the_subject_is():
    scene = Scene("forest", (Placement("fox", "natural", 0.5, 0.5, 0.5, False),), seed=1)
    result = render(scene, BLOCKS)
    assert result.masks.shape == (1, SIZE, SIZE)
    assert np.array_equal(result.masks[0], pixels_of(result.image, MAGENTA))
    assert result.masks[0].sum() == (SIZE // 2) ** 2


def test_a_subject_in_front_hides_the_one_behind():
    back = Placement("fox", "natural", 0.4, 0.5, 0.4, False)
    front = Placement("cat", "natural", 0.6, 0.5, 0.4, False)
    result = render(Scene("meadow", (back, front), seed=1), BLOCKS)
    assert np.array_equal(result.masks[1], pixels_of(result.image, CYAN))
    # The front subject's shadow darkens the one behind without taking its place.
    assert not (result.masks[0] & result.masks[1]).any()
    assert (pixels_of(result.image, MAGENTA) <= result.masks[0]).all()
    assert 0 < result.masks[0].sum() < round(0.4 * SIZE) ** 2


def test_a_mirrored_subject_is_the_mirror_image():
    sprite = Image.new("RGBA", (20, 20), (*MAGENTA, 255))
    sprite.paste((*CYAN, 255), (0, 0, 10, 20))
    plain, mirrored = (
        np.asarray(place_sprite(sprite, Placement("fox", "natural", 0.5, 0.5, 0.5, m))[0]) for m in (False, True)
    )
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert not np.array_equal(plain, mirrored)


def test_the_map_shows_the_subject_as_what_it_is():
    scene = Scene("forest", (Placement("fox", "natural", 0.5, 0.5, 0.5, False),), seed=1)
    result = render(scene, BLOCKS)
    assert np.array_equal(result.segmentation == CLASS_NAMES.index("animal"), result.masks[0])
    assert np.array_equal(
        render(replace(scene, placements=()), BLOCKS).segmentation[~result.masks[0]],
        result.segmentation[~result.masks[0]],
    )


@given(seed=st.integers(0, 2**32), triple=st.sampled_from(combinations(False) + combinations(True)))
def test_a_single_subject_is_as_large_as_it_is_called_and_wholly_inside(sprites, seed, triple):
    for size, low, high in (("", 0.49, 0.67), ("big", 0.73, 0.83), ("small", 0.25, 0.35)):
        (placement,) = compose(triple, np.random.default_rng(seed), size).placements
        sprite, (left, top) = place_sprite(sprites[placement.subject, placement.colour], placement)
        assert left >= 0
        assert top >= 0
        assert left + sprite.width <= SIZE
        assert top + sprite.height <= SIZE
        assert low * SIZE < max(sprite.size) < high * SIZE


@given(seed=st.integers(0, 2**32), count=st.integers(2, 3))
def test_a_row_stands_from_left_to_right_and_hardly_overlaps(sprites, seed, count):
    subjects = [("fox", "red"), ("owl", "natural"), ("castle", "blue")][:count]
    scene = compose_row(subjects, "meadow", np.random.default_rng(seed))
    assert [(p.subject, p.colour) for p in scene.placements] == subjects
    masks = render(scene, sprites).masks
    columns = [np.flatnonzero(mask.any(0)) for mask in masks]
    centres = [(each[0] + each[-1]) / 2 for each in columns]
    assert centres == sorted(centres)
    for left, right in pairwise(columns):
        assert right[0] > left[-1] - 0.03 * SIZE


def subjects_and_place(scene):
    return [(p.subject, p.colour, scene.place) for p in scene.placements]


def test_held_out_combinations_are_never_drawn_and_all_others_may_be():
    kept, held_out = combinations(held_out=False), combinations(held_out=True)
    assert len(held_out) / len(kept + held_out) < 0.3
    drawn = [triple for scene in islice(scenes(7), 12000) for triple in subjects_and_place(scene)]
    assert not any(is_held_out(*triple) for triple in drawn)
    assert len(set(drawn) & set(kept)) > 0.9 * len(kept)
    every = {t for scene in islice(scenes(7, held_out=True), 12000) for t in subjects_and_place(scene)}
    assert len(every & set(held_out)) > 0.8 * len(held_out)


def test_each_subject_has_a_colour_and_a_place_held_out_but_never_what_arctic_needs():
    pairs = held_out_pairs()
    for subject in SUBJECTS:
        others = {other for name, other in pairs if name == subject.name}
        assert len(others & set(TINTS)) == 1
        assert len(others & set(PLACES)) == 1
        assert not others & {"white", "snow", subject.own}
        assert exists(subject.name, (others & set(TINTS)).pop(), (others & set(PLACES)).pop())


def test_scenes_hold_what_the_vocabulary_says():
    drawn = list(islice(scenes(11, WHOLE), 4000))
    several = [scene for scene in drawn if len({p.subject for p in scene.placements}) > 1]
    alike = [s for s in drawn if len(s.placements) > 1 and len({(p.subject, p.colour) for p in s.placements}) == 1]
    assert len(several) / 4000 == pytest.approx(WHOLE.pairs + WHOLE.threes, abs=0.03)
    assert len(alike) / 4000 == pytest.approx(WHOLE.counts, abs=0.03)
    assert {p.size for scene in drawn for p in scene.placements} == {"", "big", "small"}
    assert {(scene.place, scene.time) for scene in drawn if scene.time != "day"} == {
        (place, time) for place in TIMED_PLACES for time in ("night", "sunset")
    }
    assert {scene.place for scene in drawn} == {*PLACES, *BACKGROUNDS}
    assert {p.subject for scene in drawn for p in scene.placements} == {subject.name for subject in SUBJECTS}
