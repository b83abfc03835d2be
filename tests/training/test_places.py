import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.training.clay import Canvas
from sdcli.training.places import (
    BACKGROUNDS,
    CLASS_NAMES,
    CLASSES,
    PLACES,
    TIMED_PLACES,
    TIMES,
    mixed,
    paint,
    parts_of,
)

SIDE = 64
EVERYWHERE = (*PLACES, *BACKGROUNDS)
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def view(place, seed, time="day"):
    return paint(place, np.random.default_rng(seed), SIDE, time)


def kinds_in(place, seed, time="day"):
    return {CLASS_NAMES[number] for number in np.unique(view(place, seed, time)[1])}


@pytest.mark.parametrize("place", EVERYWHERE)
def test_places_have_pictures_and_maps_determined_by_the_seed(place):
    (image, kinds), (again, same) = view(place, 1), view(place, 1)
    assert image.shape == (SIDE, SIDE, 3)
    assert kinds.shape == (SIDE, SIDE)
    assert image.dtype == kinds.dtype == np.uint8
    assert np.array_equal(image, again)
    assert np.array_equal(kinds, same)


@pytest.mark.parametrize("place", PLACES)
def test_places_vary_with_the_seed(place):
    assert not np.array_equal(view(place, 1)[0], view(place, 2)[0])


def flat(canvas, stops, kind, **how):
    canvas.block(0.25, 0.25, 0.75, 0.75, stops, kind, radius=0.0, depth=0.0, **how)


def test_a_shape_is_the_same_in_the_picture_and_in_the_map():
    canvas = Canvas(SIDE)
    canvas.fill([RED, RED], "sky")
    flat(canvas, [GREEN, GREEN], "tree")
    canvas.ball(0.25, 0.25, 0.1, [BLUE, BLUE], "", depth=0.0)
    image, kinds = canvas.result()
    inner = slice(SIDE // 4, 3 * SIDE // 4)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[inner, inner] = True
    assert np.array_equal(kinds == CLASS_NAMES.index("tree"), expected)
    assert np.array_equal(kinds == CLASS_NAMES.index("sky"), ~expected)
    assert ((image == BLUE).all(-1)).sum() == pytest.approx(np.pi * (0.1 * SIDE) ** 2, rel=0.15)
    assert tuple(image[SIDE // 2, SIDE // 2]) == GREEN


def test_distance_fades_into_haze_and_shining_shapes_are_not_lit():
    for how, expected in (
        ({}, (125, 0, 0)),
        ({"far": 1.0}, (10, 20, 30)),
        ({"shine": True}, RED),
    ):
        canvas = Canvas(SIDE, light=(0.5, 0.5, 0.5), haze=(10, 20, 30))
        flat(canvas, [RED, RED], "tree", **how)
        assert tuple(canvas.result()[0][SIDE // 2, SIDE // 2]) == expected


def test_a_ball_is_brighter_on_the_side_of_the_light():
    canvas = Canvas(SIDE)
    canvas.ball(0.5, 0.5, 0.4, [(120, 120, 120)] * 2, "tree")
    image = canvas.result()[0].astype(int)
    upper_left, lower_right = image[SIDE // 4, SIDE // 4], image[3 * SIDE // 4, 3 * SIDE // 4]
    assert (upper_left > lower_right + 20).all()


def test_classes_are_at_plausible_positions():
    top, bottom = (0, SIDE // 2), (SIDE - 1, SIDE // 2)
    for place, above, below in (
        ("beach", "sky", "sand"),
        ("forest", "sky", "grass"),
        ("snow", "sky", "snow"),
        ("underwater", "water", "sand"),
        ("city", "sky", "ground"),
        ("room", "wall", "ground"),
        ("space", "sky", "ground"),
        ("white background", "wall", "wall"),
    ):
        kinds = view(place, 3)[1]
        assert (CLASS_NAMES[kinds[top]], CLASS_NAMES[kinds[bottom]]) == (above, below)


def test_each_class_that_is_not_a_subject_s_is_in_some_place():
    found = {kind for place in EVERYWHERE for seed in range(3) for kind in kinds_in(place, seed)}
    assert found == set(CLASSES) - {"animal", "person", "vehicle", "food"}
    assert len(set(CLASSES.values())) == len(CLASSES) == 18


@pytest.mark.parametrize("place", TIMED_PLACES)
def test_a_time_of_day_changes_the_light(place):
    views = {time: view(place, 4, time) for time in TIMES}
    assert views["night"][0].mean() < 0.6 * views["day"][0].mean()
    red, _, blue = views["sunset"][0].reshape(-1, 3).mean(0) / views["day"][0].reshape(-1, 3).mean(0)
    assert red > 1.1 * blue
    for time in TIMES:
        assert CLASS_NAMES[views[time][1][0, SIDE // 2]] in ("sky", "cloud")
    assert "sun or moon" in kinds_in(place, 4, "night")


def test_places_differ_more_than_their_views():
    """Their mean pictures, of eight views, differ more than the views of one from its mean."""
    means = {p: np.mean([view(p, seed)[0].astype(float) for seed in range(8)], 0) for p in EVERYWHERE}
    for place in EVERYWHERE:
        image = view(place, 99)[0].astype(float)
        nearest = min(means, key=lambda other: np.abs(means[other] - image).mean())
        assert nearest == place


@given(st.tuples(*3 * [st.sampled_from(list(PLACES))]), st.integers(0, 2**32))
@settings(max_examples=30)
def test_a_mixed_place_has_the_sky_of_one_and_the_ground_of_another(parts, seed):
    sky, far, ground = parts
    name = mixed(sky, far, ground)
    assert parts_of(name) == parts
    _, kinds = view(name, seed)
    assert kinds[-1, SIDE // 2] == view(ground, seed)[1][-1, SIDE // 2]
    assert CLASS_NAMES[kinds[0, SIDE // 2]] in {PLACES[sky].above, "cloud", "sun or moon", "tree"}


def test_an_unmixed_place_has_its_own_parts():
    assert parts_of("snow") == ("snow", "snow", "snow")
    assert np.array_equal(view("snow", 5)[0], view(mixed("snow", "snow", "snow"), 5)[0])
