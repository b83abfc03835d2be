from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import sdcli
from sdcli.models import assemble, located
from sdcli.training import layout
from sdcli.training import measure as measuring
from sdcli.training.captions import PLACE_PHRASES
from sdcli.training.judge import Answers, Judge, Segmenter, to_images
from sdcli.training.measure import (
    Counts,
    Trial,
    compare_maps,
    drawer,
    drawn,
    inpaint_trials,
    judged,
    map_trials,
    measure,
    related_trials,
    resolved_of,
    spread,
    text_trials,
    trial_of,
    trial_of_count,
    trial_of_two,
)
from sdcli.training.places import parts_of
from sdcli.training.world import FEW, KIT, KIT_MIXED, Scene, compose, is_held_out, render, scenes
from tests.training.test_judge import Oracle


def test_a_trial_s_prompt_matches_its_answers():
    assert trial_of(("owl", "natural", "snow")).prompt == "an owl in the snow"
    two = trial_of_two(("castle", "natural", "sunset"), ("dragon", "red", "night"))
    assert two.prompt == "a castle left of a red dragon at sunset"
    assert two.answers == Answers(place="sunset", left="castle", right="dragon")
    turned = trial_of_two(("castle", "natural", "sunset"), ("dragon", "red", "night"), turned=True)
    assert turned.prompt == "a red dragon right of a castle at sunset"
    assert turned.answers == two.answers


def test_trials_are_distinct_and_match_their_kind():
    kinds = text_trials(KIT, 500, 200)
    assert [len(kinds[kind]) for kind in ("seen", "held_out")] == [500, 200]
    for kind, held_out in (("seen", False), ("held_out", True)):
        answers = [trial.answers for trial in kinds[kind]]
        assert all(is_held_out(a.subject, a.colour, a.place) is held_out for a in answers)
        subjects = {a.subject for a in answers}
        assert subjects <= set(KIT.subjects)
        assert len(subjects) > 0.8 * min(len(KIT.subjects), len(answers))
        assert {a.place for a in answers} == set(KIT.places)
        assert len(set(answers)) == len(answers)
    assert len(kinds["two_subjects"]) > 80
    assert all(trial.answers.left != trial.answers.right for trial in kinds["two_subjects"])
    turned = [trial.prompt.index(trial.answers.left) > trial.prompt.index(" of ") for trial in kinds["two_subjects"]]
    assert 0.4 < np.mean(turned) < 0.6


@pytest.mark.parametrize("vocabulary", [KIT, KIT_MIXED])
def test_trials_of_relations_and_counts_match_their_kind(vocabulary):
    trials = related_trials(vocabulary, 40)
    assert {kind: len(each) for kind, each in trials.items()} == {"on": 40, "riding": 40, "counts": 40}
    for kind, link in (("on", " on "), ("riding", " riding ")):
        for trial in trials[kind]:
            asked = trial.answers
            assert asked == Answers(place=asked.place, upper=asked.upper, lower=asked.lower, relation=kind)
            upper, lower = trial.prompt.split(link, 1)
            assert asked.upper in upper
            assert asked.lower in lower
            assert trial.prompt.endswith(PLACE_PHRASES[asked.place][0])
    assert {trial.answers.count for trial in trials["counts"]} == {"2", "3", "4"}
    for trial in trials["counts"]:
        asked = trial.answers
        assert asked == Answers(asked.subject, asked.colour, asked.place, count=asked.count)
        assert trial.prompt.split()[0] == {"2": "two", "3": "three", "4": "four"}[asked.count]
        assert not is_held_out(asked.subject, asked.colour, asked.place)


def test_a_count_uses_a_plural():
    scene = Scene("snow", layout.row([("wolf", "white")] * 3, np.random.default_rng(0)), 0, "day", "count")
    trial = trial_of_count(scene)
    assert trial.prompt == "three white wolves in the snow"
    assert trial.answers == Answers("wolf", "white", "snow", count="3")


def test_few_prompts_may_have_none_of_two_subjects():
    assert "two_subjects" not in text_trials(KIT, 5, 1)


def test_spread_repeats_where_there_are_fewer():
    assert spread([1, 2], 5) == [1, 2, 1, 2, 1]
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]


def test_each_picture_has_its_seed_and_is_judged():
    trials = [trial_of(("fox", "red", "snow")), trial_of(("cat", "red", "snow"))]
    asked, heard = [], []

    def draw(trial, seed):
        asked.append((trial.prompt, seed))
        return np.zeros((256, 256, 3), dtype=np.uint8)

    pictures = drawn(draw, trials, heard.append)
    assert asked == [("a red fox in the snow", 0), ("a red cat in the snow", 1)]
    assert heard == [1, 2]
    shares = judged(Oracle([Answers("fox", "red", "snow")] * 2), None, trials, pictures)
    assert shares == {"pictures": 2, "subject": 0.5, "colour": 1.0, "place": 1.0, "all": 0.5}


def test_an_inpainting_trial_masks_a_subject_and_prompts_for_another(sprites):
    for trial in inpaint_trials(sprites, FEW, 4):
        mask = np.asarray(trial.given.core) > 0
        assert 0.05 < mask.mean() < 0.7
        assert trial.answers.subject in trial.prompt
        assert trial.answers.place is None
        assert trial.given.image.size == (256, 256)
        assert trial.asked == {"image": "scene", "mask_image": "mask"}


@pytest.fixture(scope="module")
def maps(sprites, tmp_path_factory):
    """Two maps of places of the world, and two of mixed places."""
    kinds = {"maps": [], "mixed_maps": []}
    for kind, trial in map_trials(sprites, FEW, 2, tmp_path_factory.mktemp("maps")):
        kinds[kind].append(trial)
    return kinds


@pytest.mark.parametrize(("kind", "seed", "mixed"), [("maps", 112_233, 0.0), ("mixed_maps", 112_234, 1.0)])
def test_a_map_trial_has_the_prompt_and_the_map_of_a_scene(kind, seed, mixed, maps, sprites):
    source = scenes(seed, replace(FEW, mixed=mixed, background=0.0))
    expected = list(islice((s for s in source if len(s.placements) == 1 and s.time == "day"), 2))
    for scene, trial in zip(expected, maps[kind], strict=True):
        segmentation = render(scene, sprites).segmentation
        assert np.array_equal(np.asarray(Image.open(trial.asked["segmentation_map"])), segmentation)
        assert np.array_equal(trial.segmentation, segmentation)
        (placement,) = scene.placements
        assert placement.subject in trial.prompt
        place = scene.place if kind == "maps" else None
        assert trial.answers == Answers(placement.subject, placement.colour, place)
        assert ("/" in scene.place) is (kind == "mixed_maps")
        phrases = [PLACE_PHRASES[part][0] for part in parts_of(scene.place)]
        assert any(phrase in trial.prompt for phrase in phrases) is (kind == "maps")
    perfect = [render(scene, sprites).image for scene in expected]
    row = judged(Judge(FEW).eval(), Segmenter().eval(), maps[kind], perfect)
    assert set(row) == {"pictures", "mean_iou", "subject", "colour", *({"place", "all"} if kind == "maps" else ())}
    assert 0 <= row["mean_iou"] < 0.5


def test_maps_predicted_from_renderings_are_compared_with_theirs(sprites):
    rng = np.random.default_rng(3)
    rendering = render(compose(("fox", "red", "snow"), rng), sprites)
    mean, table = compare_maps(Judge(FEW).eval(), Segmenter().eval(), [rendering.image], [rendering.segmentation])
    assert 0 <= mean < 0.5
    assert "animal" in table


def test_a_trial_s_picture_equals_that_of_the_command(tmp_path, run):
    options = {"steps": 2, "threads": 1, "device": "cpu"}
    trial = Trial("arctic fox", Answers())
    kit = located.find("kit")
    resolved = resolved_of(kit, "kit", options, trial, 7)
    loaded = assemble.load(resolved.weights, resolved.recipe)
    picture = drawer(loaded, kit, "kit", options)(trial, 7)
    run("generate", "arctic fox", "--seed", "7", "--steps", "2", "--threads", "1", "-o", "fox.png")
    assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "fox.png")))


KINDS = [
    "seen", "held_out", "two_subjects", "on", "riding", "counts", "subject_alone", "arctic_fox", "autoencoder",
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "kinds"), [("kit", KINDS), ("kit-inpaint", ["masks"]), ("kit-semantic", ["maps", "mixed_maps"])]
)
def test_the_table_of_each_bundled_model(model, kinds, sprites, monkeypatch):
    """With one step per picture and few pictures, of kit small ones: checks the rows, not the shares."""
    monkeypatch.setattr(measuring, "drawn", lambda draw, trials, shown: drawn(draw, trials[:1], shown) * len(trials))
    counts = Counts(seen=25, held_out=2, masks=2, maps=2, scenes=2)
    size = {"width": 128, "height": 128} if model == "kit" else {}
    heard = []
    rows = list(
        measure(
            model, Judge(FEW).eval(), Segmenter().eval(), sprites, vocabulary=FEW, counts=counts,
            options={"steps": 1, "threads": 1, **size}, shown=lambda *said: heard.append(said),
        )
    )  # fmt: skip
    assert [row["trials"] for row in rows] == kinds
    assert [said[0] for said in heard] == [kind for kind in kinds if kind != "autoencoder"]
    if model == "kit":
        assert (rows[0]["pictures"], rows[1]["pictures"]) == (25, 2)
        assert {"place", "left", "right", "order"} < set(rows[2])
        assert {"place", "upper", "lower", "relation", "stack"} < set(rows[3])
        assert {"subject", "colour", "place", "count"} < set(rows[5])
        assert rows[-1]["psnr"] > 33
        vae = AutoencoderKL.from_pretrained(Path(sdcli.__file__).parent / "kit" / "vae", torch_dtype=torch.float32)
        unseen = to_images([render(scene, sprites) for scene in islice(scenes(556_677, FEW), 2)])
        with torch.no_grad():
            error = (vae(unseen).sample.clamp(-1, 1) - unseen).square().mean().item()
        assert rows[-1]["psnr"] == pytest.approx(10 * np.log10(4 / error), abs=0.02)
    else:
        assert rows[0]["pictures"] == 2
        assert ("mean_iou" in rows[0]) is (model == "kit-semantic")
