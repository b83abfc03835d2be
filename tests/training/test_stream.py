"""Chunks of rendered scenes, against the scenes that their settings draw."""

import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from sdcli.training import stream, world
from sdcli.training.captions import caption, plural
from sdcli.training.judge import NO_ANSWER, answers_of, choices
from sdcli.training.masks import Plan
from sdcli.training.parts import read_tokenizer
from sdcli.training.places import CLASS_NAMES, TIMES, parts_of
from sdcli.training.reading import COLUMNS, NOTHING, ROWS
from sdcli.training.stream import Backdrops, ChunkSettings, Scenes, chunk_of
from sdcli.training.subjects import BY_NAME
from sdcli.training.tokenizer import write_tokenizer
from sdcli.training.world import FEW, place_names, render
from tests.training.conftest import SPRITES

SIZE = 3
SHAPES = {
    "images": ((SIZE, 3, 256, 256), torch.uint8),
    "maps": ((SIZE, 256, 256), torch.uint8),
    "masks": ((SIZE, 256, 256), torch.uint8),
    "ids": ((SIZE, 3, 77), torch.int16),
    **dict.fromkeys(("places", "times", *choices(FEW)), ((SIZE,), torch.int64)),
    **dict.fromkeys(("subjects", "colours"), ((SIZE, 32), torch.int64)),
}
HELD = {
    "pictures": {"images"},
    "answers": {"images", "maps", *choices(FEW)},
    "captions": {"ids", "subjects", "colours", "places", "times"},
    "text-to-image": {"images", "ids"},
    "inpaint": {"images", "ids", "masks"},
    "semantic": {"images", "ids", "maps"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = np.random.default_rng(0)
    write_tokenizer(folder, [caption(scene, rng) for scene in islice(world.scenes(0, FEW), 300)])
    return folder


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The scenes of the stream, in order."""
    seen, original = [], world.scenes

    def scenes(*arguments, **options):
        for scene in original(*arguments, **options):
            seen.append(scene)
            yield scene

    monkeypatch.setattr(world, "scenes", scenes)
    return seen


def first(kind, tokenizer, **changes):
    settings = ChunkSettings(SPRITES, kind, **{"vocabulary": FEW, "tokenizer": tokenizer, **changes})
    return next(stream.stream(settings, workers=0, chunk=SIZE))


@pytest.mark.parametrize("kind", stream.KINDS)
def test_a_chunk_has_the_tensors_of_its_kind(kind, tokenizer):
    chunk = first(kind, tokenizer)
    assert set(chunk) == HELD[kind]
    for name, tensor in chunk.items():
        shape, dtype = SHAPES[name]
        if kind == "captions" and name == "ids":
            shape = (SIZE, 77)
        assert (tensor.shape, tensor.dtype) == (shape, dtype), name


def test_pictures_maps_and_answers_match_the_scenes(tokenizer, drawn, sprites):
    chunk = first("answers", tokenizer, held_out=True)
    known = choices(FEW)
    assert len(drawn) == SIZE
    for index, scene in enumerate(drawn):
        alone = render(scene, sprites)  # the first view of a place is painted from the scene's own seed
        assert np.array_equal(chunk["images"][index].permute(1, 2, 0), alone.image)
        assert np.array_equal(chunk["maps"][index], alone.segmentation)
        for name, values in known.items():
            answer, number = getattr(answers_of(scene), name), int(chunk[name][index])
            assert number == (values.index(answer) if answer in values else NO_ANSWER), name


def test_captions_match_the_layout_of_their_scene(tokenizer, drawn):
    chunk = first("captions", tokenizer)
    for index, scene in enumerate(drawn):
        assert place_names(FEW)[chunk["places"][index]] == scene.place
        assert TIMES[chunk["times"][index]] == scene.time
        grid = chunk["subjects"][index].view(ROWS, COLUMNS)
        assert {FEW.subjects[number - 1] for number in set(grid.flatten().tolist()) - {NOTHING}} == {
            placement.subject for placement in scene.placements
        }
        front = scene.placements[-1]
        cell = int(front.y * ROWS), int(front.x * COLUMNS)
        assert grid[cell] == 1 + FEW.subjects.index(front.subject)
        assert chunk["colours"][index].view(ROWS, COLUMNS)[cell] == 1 + FEW.colours.index(front.colour)


def test_workers_have_different_scenes(tokenizer):
    chunks = stream.stream(ChunkSettings(SPRITES, "captions", FEW, tokenizer), workers=2, chunk=8)
    rows = [tuple(row.tolist()) for chunk in islice(chunks, 4) for row in chunk["ids"]]
    assert len(rows) == 32
    firsts, seconds = set(rows[:8] + rows[16:24]), set(rows[8:16] + rows[24:])  # the workers take turns
    assert len(firsts & seconds) <= 2  # short captions may be of two scenes


def test_a_seed_determines_the_chunks(tokenizer):
    one, again, other = (first("captions", tokenizer, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert not torch.equal(one["ids"], other["ids"])


def test_a_mask_around_a_subject_has_captions_of_that_subject(tokenizer, sprites, monkeypatch):
    """Two subjects at different sides: the mask lies on the one that the captions name."""
    rows = replace(FEW, pairs=1.0, arctic=0, on=0, riding=0, counts=0, next=0, threes=0)
    pair = next(s for s in world.scenes(5, rows) if s.relation == "row" and s.time == "day")
    names = [placement.subject for placement in pair.placements]
    plans = iter([Plan("subject", 0), Plan("subject", 1), Plan("box")])
    monkeypatch.setattr(stream, "plan_mask", lambda count, rng: next(plans))
    rng = np.random.default_rng(0)
    loaded = read_tokenizer(tokenizer)
    settings = ChunkSettings(SPRITES, "inpaint", FEW, tokenizer)
    chunk = chunk_of(settings, [pair] * 3, sprites, loaded, Backdrops(rng), rng)
    assert set(chunk["masks"].unique().tolist()) == {0, 1}
    rendering = render(pair, sprites)
    for masked in (0, 1):
        mask = chunk["masks"][masked].bool().numpy()
        assert mask[rendering.masks[masked]].all()
        assert mask[rendering.masks[1 - masked]].mean() < 0.5
    told = [[loaded.decode(ids, skip_special_tokens=True) for ids in each.int()] for each in chunk["ids"]]
    for masked in (0, 1):
        assert all(names[masked] in named(words) for words in told[masked]), told
        assert not any(names[1 - masked] in named(words) for words in told[masked]), told
    assert any(set(names) <= named(words) for words in told[2])


def named(text):
    """The subjects of `few` that a caption names, by any of their words."""
    forms = {name: [form for word in BY_NAME[name].words for form in (word, plural(word))] for name in FEW.subjects}
    return {name for name, words in forms.items() if any(re.search(rf"\b{word}\b", text) for word in words)}


@pytest.mark.parametrize("kind", ["text-to-image", "semantic"])
def test_captions_name_the_subjects_of_their_scene(kind, tokenizer, drawn):
    chunk, loaded = first(kind, tokenizer), read_tokenizer(tokenizer)
    for scene, captions in zip(drawn, chunk["ids"].int(), strict=True):
        for ids in captions:
            assert named(loaded.decode(ids, skip_special_tokens=True)) == {each.subject for each in scene.placements}


def test_semantic_chunks_mix_places(tokenizer, drawn, sprites):
    chunk = first("semantic", tokenizer, vocabulary=replace(FEW, mixed=1.0, background=0.0))
    for index, scene in enumerate(drawn):
        assert "/" in scene.place
        assert set(parts_of(scene.place)) <= set(FEW.places)
        alone = render(scene, sprites)
        assert np.array_equal(chunk["images"][index].permute(1, 2, 0), alone.image)
        assert np.array_equal(chunk["maps"][index], alone.segmentation)


def test_maps_have_class_indices(tokenizer, drawn):
    chunk = first("semantic", tokenizer)
    assert chunk["maps"].max() < len(CLASS_NAMES)
    for found, scene in zip(chunk["maps"], drawn, strict=True):
        kinds = {BY_NAME[placement.subject].kind for placement in scene.placements}
        assert kinds <= {CLASS_NAMES[number] for number in found.unique().tolist()}


def test_backdrops_match_place_and_time_and_are_reused(monkeypatch):
    """Each view is marked by how it was painted; a scene gets one of its place and time, mostly one that it had."""
    painted = []

    def paint(place, rng, size, time):
        painted.append((place, time))
        return place, time, len(painted)

    monkeypatch.setattr(stream, "paint", paint)
    scenes = list(islice(world.scenes(2, replace(FEW, background=0.3, mixed=0.2)), 1200))
    backdrops = Backdrops(np.random.default_rng(0))
    given = [backdrops.of(scene) for scene in scenes]
    assert all(view[:2] == (scene.place, scene.time) for view, scene in zip(given, scenes, strict=True))
    mixed = [scene for scene in scenes if "/" in scene.place]
    fixed = len(scenes) - len(mixed)
    kinds = {(scene.place, scene.time) for scene in scenes if "/" not in scene.place}
    assert set(backdrops.bank) == kinds
    assert all(len(views) <= stream.VIEWS for views in backdrops.bank.values())
    repainted = len(painted) - len(mixed) - sum(len(views) for views in backdrops.bank.values())
    assert 0 < repainted < 2.5 * stream.REPAINTED * fixed


def test_rendering_does_not_change_a_kept_backdrop(sprites):
    scene = next(s for s in world.scenes(1, FEW) if s.time == "day")
    backdrop = stream.paint_for(scene)
    before = [part.copy() for part in backdrop]
    first_time, second_time = (render(scene, sprites, backdrop) for _ in range(2))
    assert all(np.array_equal(part, kept) for part, kept in zip(backdrop, before, strict=True))
    assert np.array_equal(first_time.image, second_time.image)


def test_only_the_judge_s_scenes_have_held_out_combinations(tokenizer, drawn):
    for held_out in (False, True):
        drawn.clear()
        settings = ChunkSettings(SPRITES, "captions", FEW, tokenizer, held_out=held_out)
        next(iter(Scenes(settings, 150)))
        shown = [
            world.is_held_out(each.subject, each.colour, scene.place, scene.time)
            for scene in drawn for each in scene.placements
        ]  # fmt: skip
        assert any(shown) is held_out
