import numpy as np
import pytest
import torch
from torch import nn

from sdcli.training.judge import QUESTIONS, Judge, accuracy, load_or_train, renderings, train_judge
from sdcli.training.measure import prompt_of, spread


class Oracle(nn.Module):
    """Answers what it was told, whatever it is shown."""

    def __init__(self, triples):
        super().__init__()
        columns = zip(*triples, strict=True)
        self.answers = [
            torch.stack([torch.eye(len(q))[q.index(a)] for a in column])
            for q, column in zip(QUESTIONS, columns, strict=True)
        ]

    def forward(self, images):
        return self.answers


def test_accuracy_counts_each_question_and_all_together():
    answered = [("fox", "red", "snow"), ("fox", "blue", "snow"), ("cat", "red", "night"), ("owl", "red", "beach")]
    asked = [("fox", "red", "snow"), ("fox", "red", "snow"), ("cat", "red", "snow"), ("cat", "blue", "night")]
    shares = accuracy(Oracle(answered), torch.zeros(4, 3, 64, 64), asked)
    assert shares == {"subject": 0.75, "colour": 0.5, "place": 0.5, "all": 0.25}


def test_the_judge_learns_and_is_kept(sprites, tmp_path):
    judge = load_or_train(tmp_path / "judge.pt", sprites, seed=1, steps=12)
    triples = [("fox", "natural", place) for place in QUESTIONS[2]] * 4
    images = renderings(sprites, triples, np.random.default_rng(9))
    again = load_or_train(tmp_path / "judge.pt", sprites, seed=2, steps=0)
    for one, other in zip(judge(images), again(images), strict=True):
        assert torch.equal(one, other)
    assert accuracy(judge, images, triples)["place"] > 0.6


def test_an_untrained_judge_knows_nothing(sprites):
    judge = train_judge(sprites, seed=1, steps=0)
    assert isinstance(judge, Judge)
    triples = [("fox", "natural", place) for place in QUESTIONS[2]] * 4
    assert accuracy(judge, renderings(sprites, triples, np.random.default_rng(9)), triples)["all"] < 0.5


@pytest.mark.parametrize(
    ("count", "expected"), [(2, [0, 5]), (5, [0, 2, 4, 6, 8]), (12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])]
)
def test_spread_takes_evenly_or_again(count, expected):
    triples = [(str(i), "", "") for i in range(10)]
    assert [int(t[0]) for t in spread(triples, count)] == expected


def test_prompts_are_plain_captions():
    assert prompt_of(("owl", "natural", "night")) == "an owl at night"
    assert prompt_of(("fox", "red", "snow")) == "a red fox in the snow"
