"""A judge of pictures: a classifier of subjects, colour, place and sides, and a segmenter that reads maps back.

Both are trained only on renderings of the world, so that they are independent of the models they measure. Every report
includes their own accuracy on unseen renderings.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.training import checkpoint
from sdcli.training.autoencoder import to_tensor
from sdcli.training.places import CLASS_NAMES, TIMES
from sdcli.training.world import KIT, Rendering, Scene, Vocabulary, place_names

SIDE = 96  # the size of the input of the judge
MAP_SIDE = 64  # the size of the input and the output of the segmenter
FEATURES = 256
NO_ANSWER = -100  # the ignore_index of cross_entropy, for questions without an answer
RELATIONS = ("row", "on", "riding")
QUESTIONS = ("subject", "colour", "place", "time", "count", "left", "right", "upper", "lower", "relation")
COUNTS = ("1", "2", "3", "4")
COMBINED = {"all": ("subject", "colour", "place"), "order": ("left", "right"), "stack": ("upper", "lower", "relation")}


@dataclass(frozen=True)
class Answers:
    """The contents of a picture; None for a question that does not apply.

    For one subject, or several alike: `subject`, `colour` and `count`. For two side by side: `left` and `right`. If one
    is on the other or rides it: `upper`, `lower` and `relation`; two side by side have a `relation` too. For all
    pictures: `place` and `time`.
    """

    subject: str | None = None
    colour: str | None = None
    place: str | None = None
    time: str | None = None
    count: str | None = None
    left: str | None = None
    right: str | None = None
    upper: str | None = None
    lower: str | None = None
    relation: str | None = None


def answers_of(scene: Scene) -> Answers:
    """Return the correct answers for a scene."""
    whole = Answers(place=scene.place, time=scene.time)
    kinds = {(placement.subject, placement.colour) for placement in scene.placements}
    if len(kinds) == 1:
        ((subject, colour),) = kinds
        return replace(whole, subject=subject, colour=colour, count=str(len(scene.placements)))
    if len(scene.placements) != 2:
        return whole
    if scene.relation in RELATIONS[1:]:
        upper, lower = sorted(scene.placements, key=lambda placement: placement.y)
        return replace(whole, upper=upper.subject, lower=lower.subject, relation=scene.relation)
    left, right = sorted(scene.placements, key=lambda placement: placement.x)
    return replace(whole, left=left.subject, right=right.subject, relation=RELATIONS[0])


def choices(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Return the possible answers to each question."""
    subjects = vocabulary.subjects
    whole = (subjects, vocabulary.colours, place_names(vocabulary), TIMES, COUNTS)
    return dict(zip(QUESTIONS, (*whole, *[subjects] * 4, RELATIONS), strict=True))


def encode(answers: Sequence[Answers], known: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Return the indices of the correct answers (n,) per question; NO_ANSWER if there is none among `known`."""
    table = {name: {answer: number for number, answer in enumerate(values)} for name, values in known.items()}
    return {
        name: torch.tensor([numbers.get(getattr(answer, name), NO_ANSWER) for answer in answers])
        for name, numbers in table.items()
    }


def targets_of(scenes: Sequence[Scene], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Return the indices of the correct answers for scenes, per question."""
    return encode([answers_of(scene) for scene in scenes], choices(vocabulary))


class Judge(nn.Module):
    """A classifier: (n, 3, 96, 96) in -1 … 1 to logits for each of QUESTIONS."""

    def __init__(self, vocabulary: Vocabulary = KIT) -> None:
        super().__init__()
        self.choices = choices(vocabulary)
        widths = (3, 48, 96, 192, 256)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * (SIDE // 16) ** 2, FEATURES), nn.SiLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(answers)) for name, answers in self.choices.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits per question."""
        return self.answer(self.features(images))

    def answer(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits per question for features (n, FEATURES)."""
        return {name: head(features) for name, head in self.heads.items()}

    def targets(self, answers: Sequence[Answers]) -> dict[str, Tensor]:
        """Return the indices of the correct answers per question; NO_ANSWER if there is none."""
        return encode(answers, self.choices)


class Segmenter(nn.Module):
    """A small U-Net with four scales and skip connections, which also sees the judge's features of the whole picture.

    Without these it would confuse classes of subjects: what a small thing is, the judge knows from more pixels.
    Maps (n, 3, 64, 64) in -1 … 1 and features (n, FEATURES) to logits (n, classes, 64, 64).
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96, 128)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU())
            for before, after in itertools.pairwise((3, *widths))
        )
        self.whole = nn.Linear(FEATURES, widths[-1])
        nn.init.zeros_(self.whole.weight)  # the features are noise at first
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below + beside, beside, 3, padding=1), nn.GroupNorm(8, beside), nn.SiLU())
            for beside, below in reversed(list(itertools.pairwise(widths)))
        )
        self.head = nn.Conv2d(widths[0], len(CLASS_NAMES), 1)

    def forward(self, images: Tensor, whole: Tensor) -> Tensor:
        """Return the logits for each pixel."""
        kept, features = [], images
        for index, layer in enumerate(self.down):
            features = layer(features if index == 0 else F.max_pool2d(features, 2))
            kept.append(features)
        kept.pop()
        features = features + self.whole(whole)[:, :, None, None]
        for layer in self.up:
            features = layer(torch.cat([F.interpolate(features, scale_factor=2.0), kept.pop()], dim=1))
        logits: Tensor = self.head(features)
        return logits


def shrink(images: Tensor, side: int = SIDE) -> Tensor:
    """Resize (n, 3, h, w) to (n, 3, side, side) by averaging."""
    return F.adaptive_avg_pool2d(images, side)


def shrink_maps(maps: Tensor, side: int = MAP_SIDE) -> Tensor:
    """Resize class indices (n, h, w) to (n, side, side); each is the pixel in the middle of its cell."""
    step = maps.shape[1] // side
    return maps[:, step // 2 :: step, step // 2 :: step].long()


def disturb(images: Tensor, rng: np.random.Generator, blurs: int) -> Tensor:
    """Blur a batch up to `blurs` times and add a little noise, so that the judge relies on shapes and not on edges."""
    for _ in range(rng.integers(blurs + 1)):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images + 0.1 * rng.uniform() * torch.randn_like(images)


def to_images(renderings: Sequence[Rendering]) -> Tensor:
    """Return the pictures of renderings, (n, 3, 256, 256) in -1 … 1."""
    return to_tensor([rendering.image for rendering in renderings])


def judging_loss(
    judge: Judge,
    segmenter: Segmenter,
    images: Tensor,
    targets: Mapping[str, Tensor],
    maps: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """Return the sum of the cross-entropies of all questions and of the maps.

    Pictures are (n, 3, h, w), maps (n, h, w).
    """
    features = judge.features(disturb(shrink(images), rng, blurs=2))
    logits = judge.answer(features)
    losses = []
    for name, target in targets.items():
        asked = (target != NO_ANSWER).sum().clamp(min=1)  # avoids 0 / 0
        losses.append(F.cross_entropy(logits[name].float(), target, ignore_index=NO_ANSWER, reduction="sum") / asked)
    drawn = segmenter(disturb(shrink(images, MAP_SIDE), rng, blurs=1), features.detach()).float()
    return torch.stack([*losses, F.cross_entropy(drawn, shrink_maps(maps))]).sum()


@torch.no_grad()
def accuracy(judge: Judge, images: Tensor, answers: Sequence[Answers]) -> dict[str, float]:
    """Return the share of pictures (n, 3, h, w) with a correct answer, for each question that applies to any of them.

    `all` is the share with subject, colour and place all correct; `order`: left and right; `stack`: upper, lower and
    relation, for "on" and "riding".
    """
    targets = judge.targets(answers)
    guesses = {name: logits.argmax(1) for name, logits in judge(shrink(images)).items()}
    right = {name: guesses[name] == targets[name] for name in QUESTIONS}
    for name, parts in COMBINED.items():
        right[name] = torch.stack([right[part] for part in parts]).all(0)
        targets[name] = torch.stack([targets[part] for part in parts]).amin(0)
    shares = {}
    for name, each in right.items():
        asked = targets[name] != NO_ANSWER
        if asked.any():
            shares[name] = round(each[asked].float().mean().item(), 4)
    return shares


@torch.no_grad()
def read_maps(judge: Judge, segmenter: Segmenter, images: Tensor) -> Tensor:
    """Return the predicted class of each pixel, (n, 64, 64), for pictures (n, 3, h, w)."""
    parts = images.split(16)
    found = [segmenter(shrink(part, MAP_SIDE), judge.features(shrink(part))).argmax(1) for part in parts]
    return torch.cat(found)


def mean_iou(found: Tensor, given: Tensor) -> tuple[float, dict[str, float]]:
    """Return the mean intersection over union of two sets of maps, and the IoU of each class by name.

    Classes absent from `given` are not counted.
    """
    table: dict[str, float] = {}
    for number, name in enumerate(CLASS_NAMES):
        ours, theirs = found == number, given == number
        union = (ours | theirs).sum().item()
        if theirs.any():
            table[name] = round((ours & theirs).sum().item() / union, 4)
    return round(sum(table.values()) / len(table), 4), table


def load(file: Path, vocabulary: Vocabulary = KIT) -> tuple[Judge, Segmenter]:
    """Load judge and segmenter from a file written by `sdcli train kit --phase judge`.

    Raises ModelNotFound, or ModelCorrupt if the file holds something else or a judge of another vocabulary.
    """
    hint = "train one: sdcli train kit --phase judge --out DIR writes DIR/judge.pt"
    if not file.is_file():
        raise ModelNotFound(f"there is no judge {file}", hint)
    judge, segmenter = Judge(vocabulary), Segmenter()
    try:
        state = checkpoint.load(file)
        judge.load_state_dict(state["judge"])
        segmenter.load_state_dict(state["segmenter"])
    except (ModelCorrupt, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelCorrupt(f"{file} is not a judge of this world", hint) from error
    return judge.eval(), segmenter.eval()
