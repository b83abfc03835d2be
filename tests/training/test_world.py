from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.training.places import PLACES, paint
from sdcli.training.sprites import SUBJECTS
from sdcli.training.world import (
    COLOURS,
    SIZE,
    Placement,
    Scene,
    combinations,
    compose,
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


@pytest.mark.parametrize("place", PLACES)
def test_places_are_pictures_that_vary_with_the_seed(place):
    one, again, other = (np.asarray(paint(place, np.random.default_rng(s), SIZE)) for s in (1, 1, 2))
    assert one.shape == (SIZE, SIZE, 3)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


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


@given(seed=st.integers(0, 2**32), triple=st.sampled_from(combinations(False) + combinations(True)))
def test_the_subject_is_large_and_wholly_inside(sprites, seed, triple):
    (placement,) = compose(triple, np.random.default_rng(seed)).placements
    sprite, (left, top) = place_sprite(sprites[placement.subject, placement.colour], placement)
    assert left >= 0
    assert top >= 0
    assert left + sprite.width <= SIZE
    assert top + sprite.height <= SIZE
    assert 0.55 * SIZE < max(sprite.size) < 0.7 * SIZE


def test_held_out_combinations_are_few_and_never_drawn():
    kept, held_out = combinations(held_out=False), combinations(held_out=True)
    assert len(kept) + len(held_out) == len(SUBJECTS) * len(COLOURS) * len(PLACES)
    assert 15 <= len(held_out) <= 30
    drawn = {(s.placements[0].subject, s.placements[0].colour, s.place) for s in islice(scenes(7), 4000)}
    assert drawn.isdisjoint(held_out)
    assert len(drawn) > 300


def test_arctic_is_never_held_out():
    assert not any(is_held_out(subject.name, "white", "snow") for subject in SUBJECTS)
