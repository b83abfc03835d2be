"""The architectures of f(z, t, y): one module here for each, and a row in the table. Imports no torch.

To add one, write a module with the functions of `Architecture` and a row here. The loop, the contexts of images, masks
and latents, the schedulers and the autoencoder stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from sdcli.diffusion.facts import Facts
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.errors import ModelError

if TYPE_CHECKING:
    from sdcli.diffusion.context import Context
    from sdcli.diffusion.denoise import Denoiser
    from sdcli.diffusion.guidance import Guidance
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.recipe.recipe import Condition


class Architecture(Protocol):
    """What a module here has. Modules import torch inside `encode` and `bind` only: planning reads their `facts`."""

    def facts(self, network: Mapping[str, Any], vae: Mapping[str, Any]) -> Facts:
        """What the two configs say. Raises KeyError, TypeError or ValueError where they lack what it needs."""

    def latent_space(self, vae: Any) -> LatentSpace:
        """The latent space of a loaded autoencoder."""

    def misfit(self, model: LatentDiffusionModel) -> str | None:
        """What of the model's parts, each sound, does not fit the others; None where all does."""

    def encode(
        self, model: LatentDiffusionModel, condition: Condition, size: tuple[int, int], guidance: Guidance
    ) -> Context:
        """y of one picture (B = 1) of `size` (width, height) pixels; without what is set beside its latents.

        Raises InvalidRecipe for a condition that the model cannot take.
        """

    def bind(self, network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
        """f(z, t) of `batch` pictures: the network with y and guidance bound.

        All that is particular to a network is in here: the halves of guidance, what is set beside the latents, packing
        into tokens, what time means, the sign of the prediction.
        """

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        """Set the scheduler's timesteps for latents of `shape` (C, h, w): any shift or sigmas of its own."""


@dataclass(frozen=True)
class Row:
    """An architecture: its module here, and the networks that are of it.

    `part` is what model_index.json calls the network; `class_names` are diffusers' classes of it, the first of which is
    meant where a config names none.
    """

    part: str
    class_names: tuple[str, ...]


TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "unet": Row("unet", ("UNet2DConditionModel",)),
        # before diffusers 0.29 a DiT was but one use of Transformer2DModel
        "dit": Row("transformer", ("DiTTransformer2DModel", "Transformer2DModel")),
    }
)


def find(part: str, config: Mapping[str, Any]) -> str:
    """The name of the architecture of the network that the model calls `part` and whose config is `config`.

    Raises ModelError for one that is in no row.
    """
    class_name = config.get("_class_name")
    for name, row in TABLE.items():
        if row.part == part and class_name in (None, *row.class_names):
            return name
    known = ", ".join(row.class_names[0] for row in TABLE.values())
    raise ModelError(f"the model's {part} is a {class_name}, which sdcli does not run", f"sdcli runs {known}")


def load(name: str) -> Architecture:
    """The module of the architecture called `name` in the table."""
    return cast(Architecture, importlib.import_module(f"{__name__}.{name}"))
