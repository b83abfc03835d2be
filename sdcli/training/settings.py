"""The settings of training runs, by stage, checked before any large library is imported.

Each field is an option of the stage's command, with its default, help text and range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sdcli.errors import UsageError

FREELY_CHANGED = frozenset({"steps", "cooldown", "save_every", "log_every", "sheet_every"})
"""The settings that may change between the slices of a run: its length, and when files are written."""


def option(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """Return a field with the help text and the range of its option."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Training:
    """The settings that all stages have. Raises UsageError if a value is out of range."""

    seed: int = option(1, "Seed of the run.", 0, 2**32 - 1)
    steps: int = option(4000, "Total number of steps, over all slices.", 1)
    batch: int = option(32, "Samples per step, over all processes.", 1)
    lr: float = option(2e-3, "Learning rate between warm-up and cooldown.", 0)
    warmup: int = option(100, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(1000, "Steps at the end over which it falls to zero.", 0)
    save_every: int = option(100, "Steps between checkpoints.", 1)
    log_every: int = option(10, "Steps between log lines.", 1)

    def __post_init__(self) -> None:
        """Check each field against its range."""
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
    """The autoencoder is trained on square crops of new pictures."""

    steps: int = option(1800, "Total number of steps, over all slices.", 1)
    batch: int = option(4, "Crops per step, over all processes.", 1)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(900, "Steps at the end over which it falls to zero.", 0)
    save_every: int = option(100, "Steps between checkpoints.", 1)
    sheet_every: int = option(300, "Steps between sheets of pictures; 0 for none.", 0)
    crop: int = option(128, "Side of a crop in pixels, a multiple of 8.", 32)
    teacher_steps: int = option(200, "Steps at the start that use a linear teacher.", 0)
    teacher_scenes: int = option(256, "Pictures to fit the teacher to.", 4)
    kl_weight: float = option(1e-4, "Weight of the KL divergence of the latents.", 0)
    edge_weight: float = option(1.0, "Weight of the differences between neighbouring pixels.", 0)

    def __post_init__(self) -> None:
        """Check the ranges, and that crops are a multiple of 8."""
        super().__post_init__()
        if self.crop % 8:
            raise UsageError(f"--crop is {self.crop}", "it must be a multiple of 8")


@dataclass(frozen=True)
class TextEncoderTraining(Training):
    """The text encoder of a trained model is trained on captions of the world, without pictures."""

    steps: int = option(700, "Total number of steps, over all slices.", 1)
    batch: int = option(128, "Captions per step, over all processes.", 1)
    lr: float = option(1e-3, "Learning rate between warm-up and cooldown.", 0)
    warmup: int = option(20, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(230, "Steps at the end over which it falls to zero.", 0)
    hold: float = option(0.3, "Weight of the loss that keeps hidden states close to the original ones.", 0)
    sheet_every: ClassVar[int] = 0
    """This stage has no pictures."""


@dataclass(frozen=True)
class DiffusionTraining(Training):
    """The settings that the three diffusion stages have.

    Pictures are encoded once: `scenes` of them before the first step, and `fresh` more at each step up to `most_scenes`
    or the size of the data set.
    """

    sheet_every: int = option(250, "Steps between sheets of pictures; 0 for none.", 0)
    scenes: int = option(3072, "Pictures encoded before the first step.", 1)
    fresh: int = option(2, "Pictures encoded at each step.", 0)
    most_scenes: int = option(24576, "Maximum number of encoded pictures.", 1)
    empty_prompts: float = option(0.1, "Share of empty prompts, for guidance.", 0, 1)
    timestep_shift: float = option(0.4, "Shift of the timesteps towards noise; 0 for none.")
    average_decay: float = option(0.998, "Decay of the moving average of the weights.", 0, 1)


@dataclass(frozen=True)
class TextToImageTraining(DiffusionTraining):
    """A new U-Net and text encoder, or those of a trained model."""


@dataclass(frozen=True)
class InpaintTraining(DiffusionTraining):
    """A U-Net with a mask and a masked image as additional input channels."""

    steps: int = option(1200, "Total number of steps, over all slices.", 1)
    lr: float = option(1e-3, "Learning rate between warm-up and cooldown.", 0)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(500, "Steps at the end over which it falls to zero.", 0)
    scenes: int = option(1536, "Pictures encoded before the first step.", 1)
    known_weight: float = option(0.3, "Weight of the loss in the known part; the masked part has 1.", 0, 1)


@dataclass(frozen=True)
class SemanticTraining(DiffusionTraining):
    """A U-Net with a segmentation map as additional input channels."""

    steps: int = option(1200, "Total number of steps, over all slices.", 1)
    lr: float = option(1e-3, "Learning rate between warm-up and cooldown.", 0)
    warmup: int = option(50, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(500, "Steps at the end over which it falls to zero.", 0)
    scenes: int = option(1536, "Pictures encoded before the first step.", 1)


@dataclass(frozen=True)
class LoraTraining(Training):
    """A LoRA for a trained model."""

    steps: int = option(160, "Total number of steps, over all slices.", 1)
    batch: int = option(4, "Pictures per step, over all processes; as many of the class are added.", 1)
    lr: float = option(1e-3, "Learning rate between warm-up and cooldown.", 0)
    warmup: int = option(20, "Steps over which the learning rate rises.", 0)
    cooldown: int = option(60, "Steps at the end over which it falls to zero.", 0)
    save_every: int = option(50, "Steps between checkpoints.", 1)
    sheet_every: int = option(50, "Steps between sheets of pictures; 0 for none.", 0)
    rank: int = option(16, "Rank of the changes of linear layers.", 1)
    alpha: float = option(16.0, "The changes are scaled by alpha / rank.", 0)
    conv_rank: int = option(0, "Rank of the changes of convolutions (LoCon); 0 for none.", 0)
    class_pictures: int = option(24, "Pictures that the model makes of the class prompts.", 1)
    prior_weight: float = option(1.0, "Weight of the loss of the pictures of the class.", 0)


STAGES: Mapping[str, type[Training]] = {
    "autoencoder": AutoencoderTraining,
    "text-encoder": TextEncoderTraining,
    "text-to-image": TextToImageTraining,
    "inpaint": InpaintTraining,
    "semantic": SemanticTraining,
    "lora": LoraTraining,
}


def resumed(kind: type[Training], before: Mapping[str, Any], given: Mapping[str, Any]) -> Training:
    """Return the settings of a continued run: `before`, updated with the options `given` now.

    Raises UsageError if a setting outside FREELY_CHANGED has another value.
    """
    for name, value in given.items():
        if name not in FREELY_CHANGED and value != before[name]:
            raise UsageError(
                f"this run was started with --{name.replace('_', '-')} {before[name]}, not {value}",
                "omit the option to continue, or use another folder with --out",
            )
    return kind(**{**before, **given})
