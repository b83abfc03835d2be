from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.training import layout, world
from sdcli.training.layout import Placement
from sdcli.training.places import BACKGROUNDS, CLASS_NAMES, PLACES, TIMED_PLACES, paint, parts_of
from sdcli.training.run_config import WORLDS
from sdcli.training.sprites import TINTS
from sdcli.training.subjects import BY_NAME, SUBJECTS
from sdcli.training.world import (
    FEW,
    KIT,
    KIT_MIXED,
    SIZE,
    VOCABULARIES,
    Scene,
    Vocabulary,
    combinations,
    compose,
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
EVERY_SEED = st.integers(0, 2**32)
RELATIONS = ("row", "count", "next", "on", "riding")


class Silhouettes(dict):
    """For every subject a rectangle of its shape, so that all of them can be rendered without their sprites."""

    def __missing__(self, key):
        subject = BY_NAME[key[0]]
        size = max(1, round(120 * subject.width)), max(1, round(120 * subject.height))
        self[key] = Image.new("RGBA", size, (200, 120, 40, 255))
        return self[key]


def pixels_of(image, colour):
    return (image == np.array(colour)).all(-1)


def box_of(placement):
    """Left, top, right, bottom of the sprite, by the table's shapes."""
    subject = BY_NAME[placement.subject]
    wide, high = subject.width * placement.side, subject.height * placement.side
    return placement.x - wide / 2, placement.foot - high, placement.x + wide / 2, placement.foot


def test_a_seed_determines_scenes_and_pixels(sprites):
    first, again, other = (list(islice(scenes(seed, FEW), 6)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    for scene in first[:2]:
        assert np.array_equal(render(scene, sprites).image, render(scene, sprites).image)


def test_the_mask_is_exactly_where_the_subject_is():
    scene = Scene("forest", (Placement("fox", "natural", 0.5, 0.5, 0.5),), seed=1)
    result = render(scene, BLOCKS)
    assert result.image.shape == (SIZE, SIZE, 3)
    assert result.image.dtype == result.segmentation.dtype == np.uint8
    assert result.masks.shape == (1, SIZE, SIZE)
    assert np.array_equal(result.masks[0], pixels_of(result.image, MAGENTA))
    assert result.masks[0].sum() == (SIZE // 2) ** 2


def test_a_sprite_s_mask_is_where_it_is_more_than_half_opaque(sprites):
    scene = compose(("horse", "natural", "beach"), np.random.default_rng(1))
    sprite, (left, top) = place_sprite(sprites["horse", "natural"], scene.placements[0])
    alpha = np.zeros((SIZE, SIZE))
    alpha[top : top + sprite.height, left : left + sprite.width] = np.asarray(sprite.getchannel("A"))
    assert np.array_equal(render(scene, sprites).masks[0], alpha > 127)


def test_a_front_subject_hides_the_one_behind():
    back = Placement("fox", "natural", 0.4, 0.5, 0.4)
    front = Placement("cat", "natural", 0.6, 0.5, 0.4)
    result = render(Scene("meadow", (back, front), seed=1, relation="row"), BLOCKS)
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


def test_the_map_has_the_subject_s_class():
    scene = Scene("forest", (Placement("fox", "natural", 0.5, 0.5, 0.5),), seed=1)
    result = render(scene, BLOCKS)
    assert np.array_equal(result.segmentation == CLASS_NAMES.index("animal"), result.masks[0])
    assert np.array_equal(
        render(replace(scene, placements=()), BLOCKS).segmentation[~result.masks[0]],
        result.segmentation[~result.masks[0]],
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("horse", "animal"), ("astronaut", "person"), ("car", "vehicle"), ("castle", "building")]
)
def test_subjects_are_mapped_by_their_kind(sprites, name, kind):
    result = render(compose((name, "natural", "white background"), np.random.default_rng(2)), sprites)
    assert {CLASS_NAMES[number] for number in np.unique(result.segmentation)} == {"wall", kind}


def test_a_given_backdrop_is_used_and_not_changed(sprites):
    scene = next(scenes(8, FEW))
    backdrop = paint(scene.place, np.random.default_rng(scene.seed), SIZE, scene.time)
    kept = tuple(part.copy() for part in backdrop)
    painted, banked = render(scene, sprites), render(scene, sprites, backdrop)
    assert np.array_equal(painted.image, banked.image)
    assert np.array_equal(painted.segmentation, banked.segmentation)
    assert all(np.array_equal(before, after) for before, after in zip(kept, backdrop, strict=True))
    white = np.full((SIZE, SIZE, 3), 255, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    assert (render(scene, sprites, white).image[0] == 255).all()


def test_shadows_are_below_subjects_and_lower_for_hovering_ones():
    ground = np.full((SIZE, SIZE, 3), 200, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    placed = Placement("fox", "natural", 0.5, 0.4, 0.4)
    rows = []
    for lift in (0.0, 0.2):
        image = render(Scene("snow", (replace(placed, lift=lift),), 1), BLOCKS, ground).image.astype(int)
        dark = image.mean(-1) < 190
        dark &= ~pixels_of(image, MAGENTA)
        rows.append(np.flatnonzero(dark.any(1)).mean())
    assert rows[0] == pytest.approx(0.6 * SIZE, abs=8)
    assert rows[1] == pytest.approx(0.8 * SIZE, abs=8)


@given(seed=EVERY_SEED, subject=st.sampled_from(SUBJECTS))
def test_a_single_subject_has_its_size_and_is_inside_the_picture(seed, subject):
    for size, low, high in (("", 0.49, 0.67), ("big", 0.73, 0.83), ("small", 0.25, 0.35)):
        (placement,) = layout.single((subject.name, "natural"), np.random.default_rng(seed), size)
        assert placement.size == size
        assert low < placement.side < high
        left, top, right, bottom = box_of(placement)
        assert min(left, top) >= 0
        assert max(right, bottom + placement.lift) <= 1
        assert (placement.lift > 0) <= subject.aloft


@given(seed=EVERY_SEED, names=st.lists(st.sampled_from(SUBJECTS), min_size=2, max_size=4), alike=st.booleans())
def test_a_row_is_from_left_to_right_with_little_overlap(seed, names, alike):
    subjects = [(names[0 if alike else index].name, "natural") for index in range(len(names))]
    row = layout.row(subjects, np.random.default_rng(seed))
    assert [(p.subject, p.colour) for p in row] == subjects
    boxes = [box_of(placement) for placement in row]
    assert all(left >= 0 and top >= 0 and right <= 1 and bottom <= 1 for left, top, right, bottom in boxes)
    for one, other in pairwise(boxes):
        assert one[0] + one[2] < other[0] + other[2]
        assert other[0] - one[2] > -0.25 * (one[2] - one[0]) - 0.04


@given(seed=EVERY_SEED, some=st.sampled_from(SUBJECTS), other=st.sampled_from(SUBJECTS), count=st.integers(2, 3))
def test_next_places_equal_subjects_at_one_side_of_another(seed, some, other, count):
    placements = layout.some_next_to(
        (some.name, "natural"), count, (other.name, "natural"), np.random.default_rng(seed)
    )
    *few, last = placements
    assert [p.subject for p in placements] == [some.name] * count + [other.name]
    sides = {p.x < last.x for p in few}
    assert len(sides) == 1
    assert all(left >= -0.001 and right <= 1.001 for left, _, right, _ in map(box_of, placements))


MOUNTS = [subject for subject in SUBJECTS if subject.seat]
RIDERS = [subject for subject in SUBJECTS if subject.rider]
CARRIERS = [subject for subject in SUBJECTS if subject.top]


def test_there_are_many_mounts_and_carriers():
    assert min(len(MOUNTS), len(RIDERS), len(CARRIERS)) >= 20
    assert not set(MOUNTS) & set(CARRIERS)
    assert {"horse", "elephant", "camel", "bicycle", "motorcycle"} <= {subject.name for subject in MOUNTS}
    assert {subject.name for subject in SUBJECTS if subject.kind == "person"} & {subject.name for subject in RIDERS}


@given(seed=EVERY_SEED, upper=st.sampled_from(SUBJECTS), lower=st.sampled_from(CARRIERS))
def test_a_stacked_subject_stands_at_the_top_of_the_lower_one(seed, upper, lower):
    base, above = layout.stacked((upper.name, "natural"), (lower.name, "red"), np.random.default_rng(seed))
    assert (base.subject, above.subject) == (lower.name, upper.name)
    left, top, right, bottom = box_of(base)
    level = top + lower.top[1] * (bottom - top)
    assert level < above.foot < level + 0.03
    assert left < above.x < right
    assert box_of(above)[1] > 0
    assert above.side < base.side


@given(seed=EVERY_SEED, rider=st.sampled_from(RIDERS), mount=st.sampled_from(MOUNTS))
def test_a_rider_sits_behind_the_back_of_its_mount(seed, rider, mount):
    upper, base = layout.riding((rider.name, "natural"), (mount.name, "natural"), np.random.default_rng(seed))
    assert (upper.subject, base.subject) == (rider.name, mount.name)
    _, top, _, bottom = box_of(base)
    seat = top + mount.seat[1] * (bottom - top)
    rider_top, rider_foot = box_of(upper)[1], upper.foot
    assert rider_top > 0
    assert rider_foot > seat
    assert 0.1 < (rider_foot - seat) / (rider_foot - rider_top) < 0.25
    assert abs(upper.x - base.x) < base.side / 2


def test_a_mount_hides_the_lower_part_of_its_rider(sprites):
    placements = layout.riding(("astronaut", "natural"), ("horse", "natural"), np.random.default_rng(1))
    rider, mount = render(Scene("beach", placements, 1, relation="riding"), sprites).masks
    alone = render(Scene("beach", placements[:1], 1), sprites).masks[0]
    assert (rider <= alone).all()
    assert 0.6 < rider.sum() / alone.sum() < 0.97
    assert np.flatnonzero(rider.any(1)).mean() < np.flatnonzero(mount.any(1)).mean()


def test_a_stacked_subject_is_complete_and_darkens_only_the_lower_one(sprites):
    placements = layout.stacked(("fox", "natural"), ("car", "natural"), np.random.default_rng(1))
    both = render(Scene("white background", placements, 1, relation="on"), sprites)
    lower = render(Scene("white background", placements[:1], 1), sprites)
    alone = render(Scene("white background", placements[1:], 1), sprites)
    assert np.array_equal(both.masks[1], alone.masks[0])
    outside = ~both.masks.any(0) & ~lower.masks[0]
    differs = (both.image != lower.image).any(-1) & outside
    assert differs.sum() < 0.02 * SIZE**2  # soft edges of the one above
    darker = both.image.astype(int).sum(-1) < lower.image.astype(int).sum(-1) - 20
    assert (darker & both.masks[0]).any()


def shown(scene):
    return [(p.subject, p.colour, scene.place) for p in scene.placements]


def test_scenes_have_no_held_out_combinations():
    kept, held_out = combinations(held_out=False), combinations(held_out=True)
    assert len(held_out) / len(kept + held_out) < 0.3
    drawn = list(islice(scenes(7), 6000))
    assert not any(is_held_out(*triple, scene.time) for scene in drawn for triple in shown(scene))
    pairs = held_out_pairs()
    for scene in drawn:
        for placement in scene.placements:
            assert not {(placement.subject, word) for word in (placement.colour, scene.place, scene.time)} & pairs
    few = set(combinations(False, FEW))
    assert few <= {triple for scene in islice(scenes(7, FEW), 6000) for triple in shown(scene)}
    every = {triple for scene in islice(scenes(7, held_out=True), 6000) for triple in shown(scene)}
    assert len(every & set(held_out)) > 300


def test_mixed_places_are_held_out_with_any_of_their_parts():
    drawn = list(islice(scenes(7, KIT_MIXED), 4000))
    mixed = [scene for scene in drawn if len(set(parts_of(scene.place))) > 1]
    assert len(mixed) > 1200
    for scene in mixed:
        pairs = {(p.subject, part) for p in scene.placements for part in parts_of(scene.place)}
        assert not pairs & held_out_pairs()
        assert set(parts_of(scene.place)) <= set(PLACES)
        assert scene.time == "day" or set(parts_of(scene.place)) <= set(TIMED_PLACES)


def test_each_subject_has_held_out_combinations_except_documented_ones():
    pairs = held_out_pairs()
    for subject in SUBJECTS:
        others = {other for name, other in pairs if name == subject.name}
        assert len(others & set(TINTS)) == int(subject.tinted)
        assert len(others & set(PLACES)) == 1
        assert not others & {"white", "snow", subject.own}
        assert all(exists(subject.name, colour, "snow") for colour in others & set(TINTS))
    for pair in (("astronaut", "beach"), ("horse", "beach"), ("t-rex", "city"), ("t-rex", "night"), ("fox", "snow")):
        assert pair not in pairs


def test_the_held_out_file_equals_the_choice(tmp_path):
    world.write_held_out(tmp_path / "chosen.txt")
    assert (tmp_path / "chosen.txt").read_text() == world.HELD_OUT.read_text()


def test_colours_differ_from_the_subject_s_own_and_from_the_background():
    assert not exists("car", "red", "snow")
    assert not exists("astronaut", "red", "snow")
    assert not exists("fox", "blue", "blue background")
    assert not exists("car", "natural", "red background")
    assert exists("sheep", "natural", "white background")
    assert exists("car", "blue", "red background")


def test_scenes_match_the_vocabulary():
    count = 6000
    drawn = list(islice(scenes(11), count))
    share = {relation: sum(s.relation == relation for s in drawn) / count for relation in ("", *RELATIONS)}
    assert share["row"] == pytest.approx(KIT.pairs + KIT.threes, abs=0.02)
    assert share["on"] == pytest.approx(KIT.on, abs=0.02)
    assert share["riding"] == pytest.approx(KIT.riding, abs=0.02)
    assert share["count"] == pytest.approx(KIT.counts, abs=0.02)
    assert share["next"] == pytest.approx(KIT.next, abs=0.02)
    assert {p.size for scene in drawn for p in scene.placements} == {"", "big", "small"}
    assert {(scene.place, scene.time) for scene in drawn if scene.time != "day"} == {
        (place, time) for place in TIMED_PLACES for time in ("night", "sunset")
    }
    assert {scene.place for scene in drawn} == {*PLACES, *BACKGROUNDS}
    assert {p.subject for scene in drawn for p in scene.placements} == set(BY_NAME)
    mirrored = [s for s in drawn if any(p.mirrored for p in s.placements)]
    assert all(scene.relation == "" for scene in mirrored)
    assert 0.02 < len(mirrored) / sum(scene.relation == "" for scene in drawn) < 0.06


def test_relations_use_subjects_of_the_vocabulary():
    for scene in islice(scenes(12), 3000):
        names = [placement.subject for placement in scene.placements]
        looks = {(placement.subject, placement.colour) for placement in scene.placements}
        if scene.relation == "":
            assert len(names) == 1
        elif scene.relation == "count":
            assert len(looks) == 1
            assert 2 <= len(names) <= 4
        elif scene.relation == "next":
            assert len(looks) == 2
            assert len(set(names[:-1])) == 1
            assert 3 <= len(names) <= 4
        elif scene.relation == "row":
            assert len(set(names)) == len(names)
        elif scene.relation == "on":
            assert BY_NAME[names[0]].top
        else:
            assert scene.relation == "riding"
            assert BY_NAME[names[0]].rider
            assert BY_NAME[names[1]].seat


def test_each_subject_is_rendered_and_visible():
    silhouettes, seen = Silhouettes(), set()
    white = np.full((SIZE, SIZE, 3), 255, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    for scene in islice(scenes(13), 1600):
        if set(shown(scene)) - seen:
            result = render(scene, silhouettes, white)
            for placement, mask in zip(scene.placements, result.masks, strict=True):
                assert mask.sum() > (0 if scene.relation == "riding" else 300)
                seen.add(placement.subject)
    assert seen == set(BY_NAME)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_each_world_has_scenes_with_captions_and_pictures(name):
    assert set(VOCABULARIES) == set(WORLDS)
    for held_out in (False, True):
        for scene in islice(scenes(2, VOCABULARIES[name], held_out=held_out), 300):
            known = VOCABULARIES[name]
            assert {p.subject for p in scene.placements} <= set(known.subjects)
            assert {p.colour for p in scene.placements} <= set(known.colours)
            assert all(exists(*triple) for triple in shown(scene))


def test_a_world_without_riders_has_other_scenes():
    lonely = Vocabulary(("fox", "castle"), riding=0.5, on=0.3, pairs=0, counts=0, threes=0, next=0)
    assert {scene.relation for scene in islice(scenes(1, lonely), 100)} == {"", "on"}
