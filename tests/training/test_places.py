import numpy as np
import pytest

from sdcli.training.places import BACKGROUNDS, CLASS_NAMES, CLASSES, PLACES, TIMED_PLACES, TIMES, Canvas, paint

SIDE = 64
EVERYWHERE = (*PLACES, *BACKGROUNDS)


def view(place, seed, time="day"):
    image, kinds = paint(place, np.random.default_rng(seed), SIDE, time)
    return np.asarray(image), kinds


@pytest.mark.parametrize("place", PLACES)
def test_places_are_pictures_that_vary_with_the_seed(place):
    (one, kinds), (again, _), (other, _) = (view(place, seed) for seed in (1, 1, 2))
    assert one.shape == (SIDE, SIDE, 3)
    assert kinds.shape == (SIDE, SIDE)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_stroke_is_in_the_picture_and_in_the_map_alike():
    canvas = Canvas.gradient(SIDE, [(1, 2, 3), (1, 2, 3)])
    canvas.polygon([(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)], (250, 0, 0), "tree")
    canvas.disc(0.8, 0.8, 0.1, (0, 250, 0), "cloud")
    canvas.disc(0.2, 0.8, 0.05, (0, 0, 250))
    red, green, blue = ((np.asarray(canvas.image)[..., channel] == 250) for channel in range(3))
    assert red.any()
    assert blue.any()
    assert np.array_equal(red, np.asarray(canvas.map) == CLASS_NAMES.index("tree"))
    assert np.array_equal(green, np.asarray(canvas.map) == CLASS_NAMES.index("cloud"))


def test_what_is_where_makes_sense():
    top, bottom = (0, SIDE // 2), (SIDE - 1, SIDE // 2)
    for place, above, below in (
        ("beach", "sky", "sand"),
        ("forest", "sky", "grass"),
        ("snow", "sky", "snow"),
        ("underwater", "water", "sand"),
        ("city", "sky", "wall"),
        ("white background", "wall", "wall"),
    ):
        kinds = view(place, 3)[1]
        assert (CLASS_NAMES[kinds[top]], CLASS_NAMES[kinds[bottom]]) == (above, below)


def test_every_class_but_the_subjects_is_in_some_place():
    found = {CLASS_NAMES[number] for place in EVERYWHERE for number in np.unique(view(place, 5)[1])}
    assert found == set(CLASSES) - {"animal", "object"}
    assert len(set(CLASSES.values())) == len(CLASSES)


@pytest.mark.parametrize("place", TIMED_PLACES)
def test_a_time_of_day_changes_the_light_and_nothing_that_stands_there(place):
    views = {time: view(place, 4, time) for time in TIMES}
    for time in ("night", "sunset"):
        assert np.array_equal(views[time][1], views["day"][1])
    assert views["night"][0].mean() < 0.6 * views["day"][0].mean()
    red, _, blue = views["sunset"][0].reshape(-1, 3).mean(0) / views["day"][0].reshape(-1, 3).mean(0)
    assert red > 1.2 * blue
