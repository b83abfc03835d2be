"""Refiners: finding them, checking whether they fit a model, and loading them together with it.

Reads only JSON, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import InvalidRecipe
from sdcli.models import registry
from sdcli.models.located import LocatedModel
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.recipe import refiner_of

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = "refiner"
PARTS = ("unet", "text_encoder_2")
"""The parts of which files are read; the VAE is that of the model."""
_HINT = "use sdxl-refiner, or a folder of SDXL's refiner in diffusers' format"


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the refiner in flat keys of a recipe, if there is one."""
    name = refiner_of(options).refiner
    return [] if name is None else [Asked(name)]


def locate(name: str) -> Source:
    """Locate a refiner: a name, a folder or a repository in the hub cache.

    Raises ModelNotFound if it is missing, and InvalidRecipe if it is not a refiner.
    """
    source = registry.locate(registry.find(name))
    source.check()
    if source.is_file or not is_one(source):
        raise InvalidRecipe(f"{name} is not a refiner", _HINT, "refiner")
    return source


def is_one(source: Source) -> bool:
    """Whether a folder has a model that takes an aesthetic score, which no other ones do."""
    return bool(source.index_if_any().get("requires_aesthetics_score"))


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise InvalidRecipe unless the refiner at `source` continues latents of `model`."""
    facts, unet = model.facts, source.config("unet")
    if not facts.knows_sizes:
        raise InvalidRecipe("this model has no refiner", "omit --refiner, or use SDXL", "refiner")
    if unet.get("in_channels", 4) != facts.latent_space.channels:
        raise InvalidRecipe(f"{name} does not fit this model: it takes other latents", _HINT, "refiner")


def files(source: Source) -> list[Path]:
    """Return the weight files of a refiner. Raises ModelError if they are missing or unsafe."""
    return [file for part in PARTS for file in source.weights(part)]


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Replace the refiner of `model` by that of `weights`, with the parts of it that the model has of itself."""
    from sdcli.models import loading

    found = weights.of_kind(KIND)
    if not found:
        return replace(model, refiner=None)
    stage = "picture" if not model.has_text_encoders else None
    if any(each.is_meta for each in model.network.parameters()):
        stage = "text"
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype, "stage": stage, "offload": model.offload}
    made = loading.load(found[0].source, name=found[0].name, refiner=True, **options)
    return replace(model, refiner=replace(made, vae=model.vae))
