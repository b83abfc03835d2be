"""What determines a training run, stage by stage. Checked whole before anything heavy is imported.

Each field is an option of the stage's command, with its default, its help and the range it may be in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sdcli.errors import UsageError

FREELY_CHANGED = frozenset({"steps", "cooldown", "save_every", "log_every", "sheet_every"})
"""What may change between the slices of one run: how long it is, and what is written when."""


def option(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with what its option needs: help, and the least and the greatest value."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Training:
    """What all stages have in common. Raises UsageError where a value is out of its range."""

    seed: int = option(1, "Decides every draw of the run.", 0, 2**32 - 1)
    steps: int = option(4000, "Steps of the whole run, over all its slices.", 1)
    batch: int = option(32, "Samples a step, over all processes.", 1)
    lr: float = option(2e-3, "The learning rate between warm-up and cooldown.", 0)
    warmup: int = option(100, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(1000, "Steps at the end over which it falls to nothing.", 0)
    save_every: int = option(100, "Steps between checkpoints.", 1)
    log_every: int = option(10, "Steps between lines of the log.", 1)

    def __post_init__(self) -> None:
        """Check every field against its range."""
        for each in fields(self):
            value, low, high = getattr(self, each.name), each.metadata["low"], each.metadata["high"]
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                name = "--" + each.name.replace("_", "-")
                span = f"{low:g} … {high:g}" if high is not None else f"at least {low:g}"
                raise UsageError(f"{name} is {value}", f"it must be {span}")
        if self.lr <= 0:
            raise UsageError(f"--lr is {self.lr}", "it must be above 0")


@dataclass(frozen=True)
class AutoencoderTraining(Training):
    """The autoencoder learns from square crops of fresh pictures."""

    steps: int = option(1800, "Steps of the whole run, over all its slices.", 1)
    batch: int = option(4, "Crops a step, over all processes.", 1)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(900, "Steps at the end over which it falls to nothing.", 0)
    save_every: int = option(100, "Steps between checkpoints.", 1)
    sheet_every: int = option(300, "Steps between sheets of pictures; 0 is none.", 0)
    crop: int = option(128, "Side of a crop in pixels, a multiple of 8.", 32)
    teacher_steps: int = option(200, "Steps that a linear teacher guides.", 0)
    teacher_scenes: int = option(256, "Pictures that the teacher is fitted to.", 4)
    kl_weight: float = option(1e-4, "Weight of the latents' divergence from a standard normal.", 0)
    edge_weight: float = option(1.0, "Weight of the differences between neighbouring pixels.", 0)

    def __post_init__(self) -> None:
        """Check ranges, and that crops fit the latents."""
        super().__post_init__()
        if self.crop % 8:
            raise UsageError(f"--crop is {self.crop}", "it must be a multiple of 8")


@dataclass(frozen=True)
class TextEncoderTraining(Training):
    """The text encoder of a trained model learns from captions of the world, without pictures."""

    steps: int = option(700, "Steps of the whole run, over all its slices.", 1)
    batch: int = option(128, "Captions a step, over all processes.", 1)
    lr: float = option(1e-3, "The learning rate between warm-up and cooldown.", 0)
    warmup: int = option(20, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(230, "Steps at the end over which it falls to nothing.", 0)
    hold: float = option(0.3, "Weight of how far states move from where the model's U-Net knows them.", 0)
    sheet_every: ClassVar[int] = 0
    """There are no pictures."""


@dataclass(frozen=True)
class DiffusionTraining(Training):
    """What the three stages of diffusion have in common.

    Pictures are encoded once: `scenes` of them before the first step, and `fresh` more at each step up to
    `most_scenes`, or as many as there are.
    """

    sheet_every: int = option(250, "Steps between sheets of pictures; 0 is none.", 0)
    scenes: int = option(3072, "Pictures encoded before the first step.", 1)
    fresh: int = option(2, "Pictures encoded at each step.", 0)
    most_scenes: int = option(24576, "Pictures encoded in all.", 1)
    empty_prompts: float = option(0.1, "Share of prompts left empty, which guidance needs.", 0, 1)
    timestep_shift: float = option(0.4, "Shift of the timesteps towards noise; 0 is none.")
    average_decay: float = option(0.998, "Decay of the moving average of the weights.", 0, 1)


@dataclass(frozen=True)
class TextToImageTraining(DiffusionTraining):
    """A U-Net and a text encoder from nothing, or a U-Net from where another run left it."""


@dataclass(frozen=True)
class InpaintTraining(DiffusionTraining):
    """A U-Net that takes a mask and a masked image beside the noisy latents."""

    steps: int = option(1200, "Steps of the whole run, over all its slices.", 1)
    lr: float = option(1e-3, "The learning rate between warm-up and cooldown.", 0)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(500, "Steps at the end over which it falls to nothing.", 0)
    scenes: int = option(1536, "Pictures encoded before the first step.", 1)
    known_weight: float = option(0.3, "Weight of the loss where the image is known; 1 where it is masked.", 0, 1)


@dataclass(frozen=True)
class SemanticTraining(DiffusionTraining):
    """A U-Net that takes a segmentation map beside the noisy latents."""

    steps: int = option(1200, "Steps of the whole run, over all its slices.", 1)
    lr: float = option(1e-3, "The learning rate between warm-up and cooldown.", 0)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(500, "Steps at the end over which it falls to nothing.", 0)
    scenes: int = option(1536, "Pictures encoded before the first step.", 1)


STAGES: Mapping[str, type[Training]] = {
    "autoencoder": AutoencoderTraining,
    "text-encoder": TextEncoderTraining,
    "text-to-image": TextToImageTraining,
    "inpaint": InpaintTraining,
    "semantic": SemanticTraining,
}


def resumed(kind: type[Training], before: Mapping[str, Any], given: Mapping[str, Any]) -> Training:
    """The settings of a run that goes on: as `before`, with what is `given` now of the things that may change.

    Raises UsageError where something else is given with another value.
    """
    for name, value in given.items():
        if name not in FREELY_CHANGED and value != before[name]:
            raise UsageError(
                f"this run was begun with --{name.replace('_', '-')} {before[name]}, not {value}",
                "leave the option away to go on, or name another folder with --out",
            )
    return kind(**{**before, **given})
