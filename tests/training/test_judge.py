from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.training import checkpoint, layout
from sdcli.training.judge import (
    NO_ANSWER,
    QUESTIONS,
    Answers,
    Judge,
    Segmenter,
    accuracy,
    answers_of,
    choices,
    disturb,
    encode,
    judging_loss,
    load,
    mean_iou,
    read_maps,
    shrink,
    shrink_maps,
    to_images,
)
from sdcli.training.places import BACKGROUNDS, CLASS_NAMES
from sdcli.training.world import FEW, KIT, Scene, compose, render, scenes


class Oracle(Judge):
    """Returns given answers for any picture, and the first choice for missing ones."""

    def __init__(self, told):
        super().__init__()
        self.told = self.targets(told)

    def forward(self, images):
        return {name: torch.eye(len(self.choices[name]))[told.clamp(min=0)] for name, told in self.told.items()}


def single(subject, colour, place):
    return Answers(subject=subject, colour=colour, place=place)


def pair(left, right):
    return Answers(place="snow", left=left, right=right)


def test_accuracy_has_each_question_and_all_combined():
    told = [single("fox", "red", "snow"), single("fox", "blue", "snow"), single("cat", "red", "night")]
    asked = [single("fox", "red", "snow"), single("fox", "red", "snow"), single("cat", "red", "snow")]
    shares = accuracy(Oracle(told), torch.zeros(3, 3, 64, 64), asked)
    assert shares == {"subject": 1.0, "colour": 0.6667, "place": 0.6667, "all": 0.3333}


def test_order_is_correct_if_both_sides_are():
    told = [pair("fox", "cat"), pair("cat", "fox"), pair("fox", "owl"), single("fox", "red", "snow")]
    asked = [pair("fox", "cat"), pair("fox", "cat"), pair("fox", "cat"), single("fox", "red", "snow")]
    shares = accuracy(Oracle(told), torch.zeros(4, 3, 64, 64), asked)
    assert shares["order"] == pytest.approx(1 / 3, abs=1e-4)
    assert shares["left"] == pytest.approx(2 / 3, abs=1e-4)
    assert shares["all"] == 1.0


def test_stack_is_correct_if_both_subjects_and_the_relation_are():
    def stack(upper, lower, relation):
        return Answers(place="snow", upper=upper, lower=lower, relation=relation)

    told = [stack("fox", "car", "on"), stack("fox", "horse", "on"), stack("car", "fox", "on")]
    asked = [stack("fox", "car", "on"), stack("fox", "horse", "riding"), stack("fox", "car", "on")]
    shares = accuracy(Oracle(told), torch.zeros(3, 3, 64, 64), asked)
    assert shares == {
        "place": 1.0, "upper": 0.6667, "lower": 0.6667, "relation": 0.6667, "stack": 0.3333,
    }  # fmt: skip


def test_count_and_time_of_day_are_judged():
    told = [Answers("fox", "red", "snow", "night", "3"), Answers("fox", "red", "snow", "day", "2")]
    asked = [Answers("fox", "red", "snow", "night", "3"), Answers("fox", "red", "snow", "sunset", "3")]
    shares = accuracy(Oracle(told), torch.zeros(2, 3, 64, 64), asked)
    assert (shares["count"], shares["time"], shares["all"]) == (0.5, 0.5, 1.0)


def scene_of(placements, relation, time="day"):
    return Scene("snow", placements, 0, time, relation)


def test_a_scene_answers_the_questions_that_apply():
    rng = np.random.default_rng(1)
    fox, owl, car = ("fox", "red"), ("owl", "natural"), ("car", "natural")
    assert answers_of(compose((*fox, "snow"), rng)) == Answers("fox", "red", "snow", "day", "1")
    pair = Answers(place="snow", time="night", left="owl", right="fox", relation="row")
    assert answers_of(scene_of(layout.row([owl, fox], rng), "row", "night")) == pair
    three = answers_of(scene_of(layout.row([fox] * 3, rng), "count"))
    assert three == Answers("fox", "red", "snow", "day", "3")
    several = Answers(place="snow", time="day")
    assert answers_of(scene_of(layout.row([owl, fox, car], rng), "row")) == several
    assert answers_of(scene_of(layout.some_next_to(owl, 2, fox, rng), "next")) == several
    assert Judge().targets([several])["subject"].tolist() == [NO_ANSWER]


def test_the_upper_subject_of_a_stack_matches_the_scene():
    """By the order in `Scene`: the upper subject is last in "on", the mount is last in "riding"."""
    seen = set()
    stacks = replace(KIT, on=0.5, riding=0.5, arctic=0, pairs=0, counts=0, next=0, threes=0)
    for scene in islice(scenes(4, stacks), 800):
        names = [placement.subject for placement in scene.placements]
        if scene.relation in ("on", "riding"):
            upper, lower = reversed(names) if scene.relation == "on" else names
            answers = answers_of(scene)
            assert (answers.upper, answers.lower, answers.relation) == (upper, lower, scene.relation)
            assert answers.subject is answers.count is answers.left is None
            seen.add(scene.relation)
    assert seen == {"on", "riding"}


def test_answers_are_encoded_as_indices_of_the_choices():
    known = choices(FEW)
    assert tuple(known) == QUESTIONS
    assert known["place"] == ("snow", "beach", "city", "meadow", *BACKGROUNDS)
    told = [Answers("horse", "red", "city", "sunset", "4"), Answers(place="snow/city/city", left="fox", right="owl")]
    numbers = {name: found.tolist() for name, found in encode(told, known).items()}
    assert (numbers["subject"], numbers["colour"], numbers["count"]) == ([1, NO_ANSWER], [2, NO_ANSWER], [3, NO_ANSWER])
    assert (numbers["place"], numbers["time"]) == ([2, NO_ANSWER], [2, NO_ANSWER])
    assert (numbers["left"], numbers["right"]) == ([NO_ANSWER, 0], [NO_ANSWER, NO_ANSWER])  # `few` has no owl


def test_the_loss_is_the_sum_of_the_cross_entropies():
    """The loss of uniform logits is the logarithm of the choices; questions without an answer add nothing."""
    judge, segmenter = Judge(FEW), Segmenter()
    for layer in (*judge.heads.values(), segmenter.head):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    told = [Answers("fox", "red", "snow", "day", "1"), Answers("horse", "red", "beach", "day", "2")]
    images, maps = torch.zeros(2, 3, 256, 256), torch.zeros(2, 256, 256, dtype=torch.uint8)
    loss = judging_loss(judge, segmenter, images, judge.targets(told), maps, np.random.default_rng(0))
    choices_asked = (5, 4, 4 + len(BACKGROUNDS), 3, 4, len(CLASS_NAMES))
    assert loss.item() == pytest.approx(sum(np.log(each) for each in choices_asked), abs=1e-4)


@pytest.mark.parametrize(("blurs", "sides"), [(0, {1}), (1, {1, 3}), (2, {1, 3, 5})])
def test_pictures_are_blurred_up_to_a_number_of_times(blurs, sides):
    """A bright pixel spreads to 3 × 3 pixels by each blur, and the noise is small."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1e6
    found = [disturb(image, np.random.default_rng(seed), blurs) for seed in range(20)]
    assert {int((each > 1e3).sum()) for each in found} == {side**2 for side in sides}
    assert all(abs(each.sum() - 1e6) < 50 for each in found)


def test_judge_and_segmenter_are_trained_and_saved(sprites, tmp_path):
    def renderings(seed, count):
        drawn = list(islice(scenes(seed, FEW, held_out=True), count))
        pictures = [render(scene, sprites) for scene in drawn]
        maps = torch.from_numpy(np.stack([picture.segmentation for picture in pictures]))
        return to_images(pictures), maps, [answers_of(scene) for scene in drawn]

    torch.manual_seed(0)
    judge, segmenter = Judge(FEW), Segmenter()
    unseen, unseen_maps, answers = renderings(5, 24)
    before = accuracy(judge.eval(), unseen, answers)["place"]
    images, maps, told = renderings(6, 32)
    targets = judge.targets(told)
    optimizer = torch.optim.AdamW([*judge.parameters(), *segmenter.parameters()], 1e-3)
    rng = np.random.default_rng(0)
    for _ in range(28):
        chosen = torch.from_numpy(rng.integers(len(images), size=8))
        asked = {name: numbers[chosen] for name, numbers in targets.items()}
        judging_loss(judge, segmenter, images[chosen], asked, maps[chosen], rng).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert accuracy(judge, unseen, answers)["place"] > max(0.25, before)  # of 13
    assert (read_maps(judge, segmenter, unseen) == shrink_maps(unseen_maps)).float().mean() > 0.4

    file = tmp_path / "judge.pt"
    checkpoint.save(file, {"judge": judge.state_dict(), "segmenter": segmenter.state_dict()})
    again, reader = load(file, FEW)
    for name, logits in judge(shrink(unseen[:2])).items():
        assert torch.equal(logits, again(shrink(unseen[:2]))[name])
    assert torch.equal(read_maps(judge, segmenter, unseen[:2]), read_maps(again, reader, unseen[:2]))
    with pytest.raises(ModelCorrupt, match="is not a judge of this world"):
        load(file, KIT)
    with pytest.raises(ModelNotFound, match="there is no judge"):
        load(tmp_path / "none.pt", FEW)


def test_mean_iou_is_over_the_given_classes():
    sky, grass = CLASS_NAMES.index("sky"), CLASS_NAMES.index("grass")
    given = torch.tensor([[sky, sky, grass, grass]])
    mean, table = mean_iou(torch.tensor([[sky, grass, grass, grass]]), given)
    assert table == {"sky": 0.5, "grass": 0.6667}
    assert mean == pytest.approx((0.5 + 2 / 3) / 2, abs=1e-4)


def test_a_shrunk_map_has_the_middle_pixel_of_each_cell():
    maps = torch.zeros((1, 256, 256), dtype=torch.uint8)
    maps[0, 2, 6] = 7
    small = shrink_maps(maps)
    assert small.shape == (1, 64, 64)
    assert small[0, 0, 1] == 7
    assert small.sum() == 7
