from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from sdcli.training.judge import (
    UNASKED,
    Answers,
    Judge,
    accuracy,
    answers_of,
    load_or_train,
    mean_iou,
    read_maps,
    shrink_maps,
    to_images,
)
from sdcli.training.places import CLASS_NAMES
from sdcli.training.world import KIT, compose, compose_row, render, scenes


class Oracle(Judge):
    """Answers what it was told, whatever it is shown, and the first choice where it was told nothing."""

    def __init__(self, told):
        super().__init__()
        self.told = self.targets(told)

    def forward(self, images):
        return {name: torch.eye(len(self.choices[name]))[told.clamp(min=0)] for name, told in self.told.items()}


def single(subject, colour, place):
    return Answers(subject=subject, colour=colour, place=place)


def pair(left, right):
    return Answers(place="snow", left=left, right=right)


def test_accuracy_counts_each_question_and_all_together():
    told = [single("fox", "red", "snow"), single("fox", "blue", "snow"), single("cat", "red", "night")]
    asked = [single("fox", "red", "snow"), single("fox", "red", "snow"), single("cat", "red", "snow")]
    shares = accuracy(Oracle(told), torch.zeros(3, 3, 64, 64), asked)
    assert shares == {"subject": 1.0, "colour": 0.6667, "place": 0.6667, "all": 0.3333}


def test_an_order_is_right_when_both_sides_are():
    told = [pair("fox", "cat"), pair("cat", "fox"), pair("fox", "owl"), single("fox", "red", "snow")]
    asked = [pair("fox", "cat"), pair("fox", "cat"), pair("fox", "cat"), single("fox", "red", "snow")]
    shares = accuracy(Oracle(told), torch.zeros(4, 3, 64, 64), asked)
    assert shares["order"] == pytest.approx(1 / 3, abs=1e-4)
    assert shares["left"] == pytest.approx(2 / 3, abs=1e-4)
    assert shares["all"] == 1.0


def test_a_scene_answers_what_makes_sense_for_it():
    rng = np.random.default_rng(1)
    fox, owl = ("fox", "red"), ("owl", "natural")
    assert answers_of(compose((*fox, "snow"), rng)) == single("fox", "red", "snow")
    assert answers_of(compose_row([owl, fox], "snow", rng)) == pair("owl", "fox")
    assert answers_of(compose_row([owl, fox, owl], "snow", rng)) == Answers(place="snow")
    assert Judge().targets([Answers(place="snow")])["subject"].tolist() == [UNASKED]


def test_judge_and_segmenter_learn_and_are_kept(sprites, tmp_path):
    file = tmp_path / "judge.pt"
    judge, segmenter = load_or_train(file, sprites, steps=25, batch=16)
    drawn = list(islice(scenes(5, KIT, held_out=True), 64))
    renderings = [render(scene, sprites) for scene in drawn]
    images, maps = to_images(renderings), shrink_maps(np.stack([r.segmentation for r in renderings]))
    again, reader = load_or_train(file, sprites, steps=0)
    for name, logits in judge(images[..., ::2, ::2][..., :96, :96]).items():
        assert torch.equal(logits, again(images[..., ::2, ::2][..., :96, :96])[name])
    assert accuracy(judge, images, [answers_of(scene) for scene in drawn])["place"] > 0.5
    found = read_maps(segmenter, images)
    assert torch.equal(found, read_maps(reader, images))
    assert (found == maps).float().mean() > 0.4
    knows_nothing, _ = load_or_train(tmp_path / "other.pt", sprites, steps=0)
    assert isinstance(knows_nothing, nn.Module)
    assert accuracy(knows_nothing, images, [answers_of(scene) for scene in drawn])["place"] < 0.4


def test_mean_iou_is_over_the_classes_that_are_there():
    sky, grass = CLASS_NAMES.index("sky"), CLASS_NAMES.index("grass")
    given = torch.tensor([[sky, sky, grass, grass]])
    mean, table = mean_iou(torch.tensor([[sky, grass, grass, grass]]), given)
    assert table == {"sky": 0.5, "grass": 0.6667}
    assert mean == pytest.approx((0.5 + 2 / 3) / 2, abs=1e-4)


def test_a_map_is_shrunk_to_what_stands_in_the_middle_of_each_cell():
    maps = np.zeros((1, 256, 256), dtype=np.uint8)
    maps[0, 2, 6] = 7
    small = shrink_maps(maps)
    assert small.shape == (1, 64, 64)
    assert small[0, 0, 1] == 7
    assert small.sum() == 7
