"""A text encoder that learns to read the world's captions, on a real one of tiny size."""

from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import pytest
import torch

from sdcli.training import parts
from sdcli.training.captions import caption
from sdcli.training.places import BACKGROUNDS
from sdcli.training.reading import NOTHING, STRIPS, TOKENS, Layout, TextEncoderRun, layout_of
from sdcli.training.settings import TextEncoderTraining
from sdcli.training.team import Team
from sdcli.training.tokenizer import load_tokenizer, write_tokenizer
from sdcli.training.world import KIT, Placement, Scene, compose, compose_row, scenes

ALONE = Team(torch.device("cpu"), autocasts=False)
SMALL = replace(KIT, subjects=KIT.subjects[:4], colours=KIT.colours[:2], places=KIT.places[:2], pairs=1.0, arctic=0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = np.random.default_rng(0)
    write_tokenizer(folder, [caption(scene, rng) for scene in islice(scenes(0, KIT), 500)])
    return load_tokenizer(folder)


def begin(tokenizer, team=ALONE, vocabulary=SMALL, **settings):
    torch.manual_seed(0)
    chosen = TextEncoderTraining(**{"steps": 150, "cooldown": 40, **settings})
    return TextEncoderRun(parts.build_text_encoder(tokenizer), tokenizer, vocabulary, chosen, team)


def row(*subjects):
    return compose_row([(subject, "natural") for subject in subjects], KIT.places[0], np.random.default_rng(0))


def test_a_layout_says_what_stands_in_which_strip():
    left, right = KIT.subjects[3], KIT.subjects[7]
    layout = layout_of([row(left, right), compose((left, "white", "snow"), np.random.default_rng(0))], KIT)
    assert layout.subjects.shape == layout.colours.shape == (2, STRIPS)
    two, one = layout.subjects.tolist()
    assert two[1] == two[2] == 1 + 3
    assert two[5] == two[6] == 1 + 7
    assert set(layout.colours[0].tolist()) <= {NOTHING, 1 + KIT.colours.index("natural")}
    assert one[0] == one[-1] == NOTHING
    assert one[3] == one[4] == 1 + 3
    assert layout.colours[1, 4] == 1 + KIT.colours.index("white")
    assert layout.places.tolist() == [0, KIT.places.index("snow")]


def test_where_two_stand_in_one_strip_the_one_in_front_counts():
    behind, front = KIT.subjects[3], KIT.subjects[7]
    boxes = (Placement(behind, "natural", 0.5, 0.5, 0.9, False), Placement(front, "red", 0.5, 0.5, 0.3, False))
    strips = layout_of([Scene(KIT.places[0], boxes, 0)], KIT).subjects[0].tolist()
    assert strips == [NOTHING + 4, 4, 4, 8, 8, 4, 4, 4]
    three = layout_of([row(behind, front, KIT.subjects[0])], KIT).subjects[0].tolist()
    assert [each for each, _ in groupby(each for each in three if each)] == [4, 8, 1]


def test_a_caption_longer_than_usual_is_read_to_its_end(tmp_path):
    """A tokenizer that knows nothing but letters needs more tokens."""
    write_tokenizer(tmp_path, ["x"])
    run = begin(load_tokenizer(tmp_path), batch=16)
    ids, _ = run.draw()
    assert ids.shape[1] > TOKENS
    ends = (ids == run.tokenizer.eos_token_id).any(1)
    assert ends.all()


def test_plain_backgrounds_are_places_too():
    background = next(iter(BACKGROUNDS))
    scene = Scene(background, row(*KIT.subjects[:2]).placements, 0)
    assert layout_of([scene], KIT).places.tolist() == [len(KIT.places)]


def test_captions_of_the_world_fit_the_tokens_that_are_read(tokenizer):
    rng = np.random.default_rng(1)
    captions = [caption(scene, rng) for scene in islice(scenes(3, KIT), 2000)]
    assert max(len(ids) for ids in tokenizer(captions).input_ids) < TOKENS


def test_it_learns_to_tell_left_from_right(tokenizer):
    run = begin(tokenizer, batch=64, lr=2e-3)
    losses = [run.train_step() for _ in range(150)]
    assert np.mean(losses[-10:]) < 0.55 * np.mean(losses[:10])
    one, other = SMALL.subjects[:2]
    said = [f"a {one} left of a {other}", f"a {one} right of a {other}"]
    with torch.no_grad():
        ids = parts.tokenize(tokenizer, said)[:, :TOKENS]
        subjects, _, _ = run.modules["readout"](run.text_encoder(ids).last_hidden_state)
    read = subjects.argmax(-1)
    assert read[0, 1] == read[1, 6] == 1
    assert read[0, 6] == read[1, 1] == 2
    assert run.report()["samples"] == 150 * 64
    assert run.report()["read"] > 0.7


def test_held_states_move_less(tokenizer):
    def moved(hold):
        run = begin(tokenizer, batch=16, hold=hold)
        ids, _ = run.draw()
        for _ in range(20):
            run.train_step()
        with torch.no_grad():
            states = [encoder(ids).last_hidden_state for encoder in (run.text_encoder, run.before)]
        return (states[0] - states[1]).square().mean()

    assert moved(10.0) < 0.5 * moved(0.0)


def test_the_loss_is_the_sum_that_is_documented(tokenizer):
    """A readout that answers evenly is wrong by the logarithms of its choices; states moved by 0.2 add 5 × 0.04."""
    run = begin(tokenizer, hold=5.0)
    for head in (run.modules["readout"].subjects, run.modules["readout"].colours, run.modules["readout"].places):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    run.text_encoder.eval()
    with torch.no_grad():
        run.before.final_layer_norm.bias += 0.2
    ids, _ = run.draw()
    n = len(ids)
    strips = torch.zeros((n, STRIPS), dtype=torch.long)
    loss = run.loss_of(ids, Layout(strips, strips, torch.zeros(n, dtype=torch.long)))
    wanted = np.log(5) + np.log(3) + 0.3 * np.log(2 + len(BACKGROUNDS)) + 5 * 0.04
    assert loss.item() == pytest.approx(wanted, abs=1e-5)


def test_a_resumed_run_goes_on_as_if_unbroken(tokenizer):
    unbroken, broken = begin(tokenizer, batch=4), begin(tokenizer, batch=4)
    for _ in range(3):
        unbroken.train_step()
        broken.train_step()
    state = broken.state()
    fresh = begin(tokenizer, batch=4)
    fresh.step = 3
    fresh.load_state(state)
    assert [fresh.train_step() for _ in range(3)] == [unbroken.train_step() for _ in range(3)]


def test_processes_read_captions_of_their_own(tokenizer):
    one, other = (begin(tokenizer, Team(torch.device("cpu"), False, place, 2), batch=8) for place in (0, 1))
    (ids, _), (others, _) = one.draw(), other.draw()
    assert ids.shape == others.shape == (4, TOKENS)
    assert not torch.equal(ids, others)
