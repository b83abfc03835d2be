"""Training a tiny text encoder on the world's captions."""

from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import pytest
import torch

from sdcli.training import captions, layout, parts
from sdcli.training.captions import caption
from sdcli.training.layout import Placement
from sdcli.training.learners import CAPTION_TOKENS
from sdcli.training.parts import read_tokenizer
from sdcli.training.places import BACKGROUNDS, TIMES
from sdcli.training.reading import (
    CELL_QUESTIONS,
    CELLS,
    COLUMNS,
    ROWS,
    TOKENS,
    UNREAD,
    WHOLE_QUESTIONS,
    TextEncoderRun,
    layout_of,
    reading_loss,
)
from sdcli.training.settings import TextEncoderTraining
from sdcli.training.team import Team
from sdcli.training.tokenizer import write_tokenizer
from sdcli.training.world import FEW, KIT, Scene, scenes
from tests.training.conftest import TINY_TEXT_ENCODER

ALONE = Team(torch.device("cpu"), autocasts=False)
ROWS_ONLY = {"pairs": 1.0, **dict.fromkeys(("arctic", "on", "riding", "counts", "next", "threes"), 0.0)}
SMALL = replace(KIT, subjects=KIT.subjects[:4], colours=KIT.colours[:2], places=KIT.places[:2], **ROWS_ONLY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = np.random.default_rng(0)
    write_tokenizer(folder, [caption(scene, rng) for scene in islice(scenes(0, KIT), 500)])
    return read_tokenizer(folder)


@pytest.fixture(autouse=True)
def _small_encoder(monkeypatch):
    monkeypatch.setattr(parts, "TEXT_ENCODER", TINY_TEXT_ENCODER)


def begin(tokenizer, team=ALONE, vocabulary=SMALL, **settings):
    torch.manual_seed(0)
    chosen = TextEncoderTraining(**{"steps": 150, "cooldown": 40, **settings})
    return TextEncoderRun(parts.build_text_encoder(tokenizer), tokenizer, vocabulary, chosen, team)


def row(*subjects):
    placements = layout.row([(subject, "natural") for subject in subjects], np.random.default_rng(0))
    return Scene(KIT.places[0], placements, 0, "day", "row")


def grid(found, name, index=0):
    return found[name][index].view(ROWS, COLUMNS)


def test_a_layout_has_the_subject_in_each_cell():
    """Boxes by hand: the upper left quarter of the picture, and a box about the lower right corner."""
    one, other = KIT.subjects[3], KIT.subjects[7]
    boxes = (Placement(one, "natural", 0.25, 0.25, 0.5), Placement(other, "white", 0.875, 0.875, 0.25))
    found = layout_of([Scene("snow", boxes, 0, "night"), row(one, other)], KIT)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "subjects": (2, ROWS * COLUMNS), "colours": (2, ROWS * COLUMNS), "places": (2,), "times": (2,),
    }  # fmt: skip
    expected = torch.zeros(ROWS, COLUMNS, dtype=torch.long)
    expected[:2, :4] = 1 + 3
    expected[3, 6:] = 1 + 7
    assert torch.equal(grid(found, "subjects"), expected)
    colours = torch.zeros_like(expected)
    colours[:2, :4] = 1 + KIT.colours.index("natural")
    colours[3, 6:] = 1 + KIT.colours.index("white")
    assert torch.equal(grid(found, "colours"), colours)
    assert found["places"].tolist() == [KIT.places.index("snow"), 0]
    assert found["times"].tolist() == [TIMES.index("night"), TIMES.index("day")]


def test_the_front_one_of_two_subjects_in_a_cell_is_taken():
    behind, front = KIT.subjects[3], KIT.subjects[7]
    boxes = (Placement(behind, "natural", 0.5, 0.5, 0.9), Placement(front, "red", 0.5, 0.5, 0.3))
    found = grid(layout_of([Scene(KIT.places[0], boxes, 0)], KIT), "subjects")
    assert found[1].tolist() == [4, 4, 4, 8, 8, 4, 4, 4]
    three = grid(layout_of([row(behind, front, KIT.subjects[0])], KIT), "subjects")[2].tolist()
    assert [each for each, _ in groupby(each for each in three if each)] == [4, 8, 1]


def test_a_rider_is_above_its_mount_in_the_layout():
    for seed in range(20):
        what = [(name, "natural") for name in ("astronaut", "horse")]
        scene = Scene("snow", layout.riding(*what, np.random.default_rng(seed)), 0, "day", "riding")
        found = grid(layout_of([scene], FEW), "subjects").tolist()
        rider, mount = (1 + FEW.subjects.index(name) for name, _ in what)
        rows = {number: [index for index, cells in enumerate(found) if number in cells] for number in (rider, mount)}
        assert min(rows[rider]) <= min(rows[mount])
        assert max(rows[rider]) < max(rows[mount])


def test_long_captions_are_not_truncated(tmp_path):
    """A tokenizer that knows nothing but letters needs more tokens."""
    write_tokenizer(tmp_path, ["x"])
    run = begin(read_tokenizer(tmp_path), batch=16)
    ids, _ = run.draw()
    assert ids.shape[1] > TOKENS
    ends = (ids == run.tokenizer.eos_token_id).any(1)
    assert ends.all()


def test_plain_backgrounds_are_places_too():
    background = next(iter(BACKGROUNDS))
    scene = Scene(background, row(*KIT.subjects[:2]).placements, 0)
    assert layout_of([scene], KIT)["places"].tolist() == [len(KIT.places)]


def test_a_mixed_place_has_no_target():
    scene = Scene("snow/city/beach", row(*KIT.subjects[:2]).placements, 0)
    found = layout_of([scene], KIT)
    assert found["places"].tolist() == [UNREAD]
    choices = {"subjects": 1 + len(KIT.subjects), "colours": 1 + len(KIT.colours)}
    logits = {name: torch.zeros(1, CELLS, count) for name, count in choices.items()}
    logits |= {"places": torch.zeros(1, len(KIT.places) + len(BACKGROUNDS)), "times": torch.zeros(1, 3)}
    loss, _ = reading_loss(logits, found)
    expected = sum(np.log(count) for count in choices.values()) + 0.3 * np.log(3)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_captions_of_the_world_fit_the_tokens(tokenizer):
    rng = np.random.default_rng(1)
    texts = [caption(scene, rng) for scene in islice(scenes(3, KIT), 1000)]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) < CAPTION_TOKENS


def test_the_readout_s_accuracy_increases(tokenizer):
    run = begin(tokenizer, batch=32, lr=5e-3)
    losses = [run.train_step() for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert run.report()["samples"] == 40 * 32
    assert run.report()["read"] > 0.7


@pytest.mark.slow
def test_left_and_right_are_learned(tokenizer, monkeypatch):
    """From captions that always say it, until it is read right, and not only half of the time."""
    monkeypatch.setattr(parts, "TEXT_ENCODER", {**TINY_TEXT_ENCODER, "hidden_size": 128, "intermediate_size": 256})
    monkeypatch.setattr(captions, "ROW_PHRASES", ("{left} left of {right}", "{right} right of {left}"))
    run = begin(tokenizer, batch=32, lr=2e-3, hold=0.0, steps=600)
    for _ in range(600):
        run.train_step()
    one, other = SMALL.subjects[:2]
    said = [f"a {one} left of a {other}", f"a {one} right of a {other}"]
    with torch.no_grad():
        ids = parts.tokenize(tokenizer, said)[:, :TOKENS]
        logits = run.modules["readout"](run.text_encoder(ids).last_hidden_state)
    read = logits["subjects"].argmax(-1).view(2, ROWS, COLUMNS)[:, 2]  # the row in which both stand
    assert read[0, 1] == read[1, 6] == 1
    assert read[0, 6] == read[1, 1] == 2


def test_hold_keeps_states_closer(tokenizer):
    def moved(hold):
        run = begin(tokenizer, batch=16, hold=hold)
        ids, _ = run.draw()
        for _ in range(20):
            run.train_step()
        with torch.no_grad():
            states = [encoder(ids).last_hidden_state for encoder in (run.text_encoder, run.before)]
        return (states[0] - states[1]).square().mean()

    assert moved(10.0) < 0.5 * moved(0.0)


def test_the_loss_equals_the_documented_sum(tokenizer):
    """The loss of uniform logits is the logarithm of the choices; states changed by 0.2 add 5 × 0.04."""
    run = begin(tokenizer, hold=5.0)
    for head in (getattr(run.modules["readout"], name) for name in (*CELL_QUESTIONS, *WHOLE_QUESTIONS)):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    run.text_encoder.eval()
    with torch.no_grad():
        run.before.final_layer_norm.bias += 0.2
    ids, _ = run.draw()
    n = len(ids)
    layout = {name: torch.zeros((n, CELLS), dtype=torch.long) for name in CELL_QUESTIONS}
    layout |= {name: torch.zeros(n, dtype=torch.long) for name in WHOLE_QUESTIONS}
    loss = run.loss_of(ids, layout)
    wanted = np.log(5) + np.log(3) + 0.3 * (np.log(2 + len(BACKGROUNDS)) + np.log(3)) + 5 * 0.04
    assert loss.item() == pytest.approx(wanted, abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer):
    unbroken, broken = begin(tokenizer, batch=4), begin(tokenizer, batch=4)
    for _ in range(3):
        unbroken.train_step()
        broken.train_step()
    state = broken.state()
    fresh = begin(tokenizer, batch=4)
    fresh.step = 3
    fresh.load_state(state)
    assert [fresh.train_step() for _ in range(3)] == [unbroken.train_step() for _ in range(3)]


def test_processes_have_different_captions(tokenizer):
    one, other = (begin(tokenizer, Team(torch.device("cpu"), False, place, 2), batch=8) for place in (0, 1))
    (ids, _), (others, _) = one.draw(), other.draw()
    assert ids.shape == others.shape == (4, TOKENS)
    assert not torch.equal(ids, others)
