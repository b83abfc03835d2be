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

    def activations(self, network: Mapping[str, Any], latents: int) -> int:
        """About how many numbers the network keeps at once for one picture of `latents` places, by its config."""

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
    """An architecture: how models of it are told, and the classes that hold them. Its module here has the row's name.

    `part` is what model_index.json calls the network. `networks` are the class names that it may give it, each with the
    place of diffusers' class, `module:class`. `pipelines` are the pipelines that it may name, with the parts that they
    cannot do without.
    """

    part: str
    networks: Mapping[str, str]
    pipelines: Mapping[str, tuple[str, ...]]


_TEXT_TO_IMAGE = ("unet", "vae", "text_encoder")
_DIT = "diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel"

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "unet": Row(
            "unet",
            {"UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel"},
            {
                "StableDiffusionPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionImg2ImgPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionInpaintPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLImg2ImgPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLInpaintPipeline": _TEXT_TO_IMAGE,
                "LatentConsistencyModelPipeline": _TEXT_TO_IMAGE,
                "LatentConsistencyModelImg2ImgPipeline": _TEXT_TO_IMAGE,
                "LDMClassToImagePipeline": ("unet", "vae", "class_embedder"),  # not diffusers', but sdcli's own name
            },
        ),
        # before diffusers 0.29 a DiT was but one use of Transformer2DModel
        "dit": Row(
            "transformer",
            {"DiTTransformer2DModel": _DIT, "Transformer2DModel": _DIT},
            {"DiTPipeline": ("transformer", "vae")},
        ),
    }
)


def find(part: str, config: Mapping[str, Any]) -> str:
    """The name of the architecture of the network that the model calls `part` and whose config is `config`.

    Where the config names no class, the first architecture of that part is meant. Raises ModelError for one that is in
    no row.
    """
    class_name = config.get("_class_name")
    for name, row in TABLE.items():
        if row.part == part and class_name in (None, *row.networks):
            return name
    known = ", ".join(next(iter(row.networks)) for row in TABLE.values())
    raise ModelError(f"the model's {part} is a {class_name}, which sdcli does not run", f"sdcli runs {known}")


def networks(part: str) -> Mapping[str, str]:
    """The class names that model_index.json may give to `part`, each with the place of its class, `module:class`."""
    return {name: place for row in TABLE.values() if row.part == part for name, place in row.networks.items()}


def load(name: str) -> Architecture:
    """The module of the architecture called `name` in the table."""
    return cast(Architecture, importlib.import_module(f"{__name__}.{name}"))
