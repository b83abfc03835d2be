"""A judge of pictures: a small convolutional network that names subject, colour and place.

It is trained on renderings of the world and on nothing else, so what it says of a generated picture is independent of
the model that made it. Its own accuracy on unseen renderings is part of every report.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdcli.training import checkpoint
from sdcli.training.autoencoder import to_tensor
from sdcli.training.optimizers import MatrixOptimizer, learning_rate
from sdcli.training.places import PLACES
from sdcli.training.sprites import SUBJECTS
from sdcli.training.world import COLOURS, Sprites, combinations, compose, render

QUESTIONS = (tuple(subject.name for subject in SUBJECTS), COLOURS, tuple(PLACES))
SIDE = 64  # the judge looks at pictures of this size

Triple = tuple[str, str, str]


class Judge(nn.Module):
    """(n, 3, 64, 64) in -1 … 1 to one row of logits for each question: subject, colour, place."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(192 * (SIDE // 16) ** 2, len(answers)) for answers in QUESTIONS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits for each question."""
        features = self.features(images)
        return [head(features) for head in self.heads]


def shrink(images: Tensor) -> Tensor:
    """(n, 3, h, w) to the judge's size, by averaging."""
    return F.adaptive_avg_pool2d(images, SIDE)


def renderings(sprites: Sprites, triples: Sequence[Triple], rng: np.random.Generator) -> Tensor:
    """One rendering of each triple, at the judge's size."""
    return shrink(to_tensor([render(compose(triple, rng), sprites).image for triple in triples]))


def targets(triples: Sequence[Triple]) -> list[Tensor]:
    """The right answers as class numbers, a tensor a question."""
    columns = zip(*triples, strict=True)
    return [torch.tensor([q.index(a) for a in column]) for q, column in zip(QUESTIONS, columns, strict=True)]


def train_judge(sprites: Sprites, seed: int, steps: int, batch: int = 32) -> Judge:
    """A judge trained on renderings of all combinations, blurred and noised a little so that it looks at shapes."""
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = MatrixOptimizer([judge], 2e-3, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    everything = combinations(held_out=False) + combinations(held_out=True)
    for step in range(steps):
        triples = [everything[index] for index in rng.integers(len(everything), size=batch)]
        images = renderings(sprites, triples, rng)
        if step % 2:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images + 0.1 * rng.uniform() * torch.randn_like(images)
        answers = judge(images)
        torch.stack([F.cross_entropy(a, t) for a, t in zip(answers, targets(triples), strict=True)]).sum().backward()
        optimizer.step(learning_rate(step, 2e-3, steps, 20, steps // 2))
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, images: Tensor, triples: Sequence[Triple]) -> dict[str, float]:
    """The share of pictures (n, 3, h, w) whose subject, colour, place, and all three, are as they should be."""
    right = [answer.argmax(1) == target for answer, target in zip(judge(shrink(images)), targets(triples), strict=True)]
    names = ("subject", "colour", "place", "all")
    shares = [*right, right[0] & right[1] & right[2]]
    return {name: round(share.float().mean().item(), 4) for name, share in zip(names, shares, strict=True)}


def load_or_train(file: Path, sprites: Sprites, seed: int, steps: int) -> Judge:
    """The judge in a file; if there is none it is trained and kept there."""
    if file.exists():
        judge = Judge()
        judge.load_state_dict(checkpoint.load(file)["judge"])
        return judge.eval()
    judge = train_judge(sprites, seed, steps)
    checkpoint.save(file, {"judge": judge.state_dict()})
    return judge
