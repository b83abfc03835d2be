"""Loads a model and its add-ons on a device. Imports torch."""

from __future__ import annotations

import torch

from sdcli.diffusion import compiled, layout, openvino_engine, packed
from sdcli.diffusion.device import free_memory, memory_of
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.offload import in_groups
from sdcli.models import addons, loading
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe


def load(weights: Weights, recipe: Recipe, *, stage: str | None = None, offload: str = "none") -> LatentDiffusionModel:
    """Load `weights` on the device and in the dtype of the recipe, which must be resolved.

    `stage` and `offload` are those of `loading.load`. The stage `text` only needs some of the add-ons. Raises
    what `loading.load` and the kinds of add-ons raise, and OutOfMemory.
    """
    device, dtype = torch.device(recipe.execution.torch_device), getattr(torch, recipe.execution.dtype)
    with memory_of(recipe):
        model = loading.load(
            weights.model,
            name=recipe.model,
            device=device,
            dtype=dtype,
            quantize=recipe.loading.quantize,
            stage=stage,
            offload=offload,
        )
        if stage == "text":
            weights = addons.for_text(weights)
        model = arranged(addons.attach(model, weights), recipe)
        if offload == "group":
            models = [model] if model.refiner is None else [model, model.refiner]
            encoders = [encoder.model for each in models for encoder in each.text_encoders]
            for each in (*(each.network for each in models), *encoders):
                if not any(parameter.is_meta for parameter in each.parameters()):
                    in_groups(each, device)
        return with_engine(model, recipe, weights.identity)


def arranged(model: LatentDiffusionModel, recipe: Recipe) -> LatentDiffusionModel:
    """Bring the weights of `model` into the order in which `recipe` computes fastest, and return it."""
    return packed.prepare(layout.arrange(model), recipe)


def with_engine(model: LatentDiffusionModel, recipe: Recipe, identity: str) -> LatentDiffusionModel:
    """Have the engine of `recipe`, or torch's compiler if it is asked for, run `model`, and return it.

    `identity` is what its tensors depend on. Raises what `openvino_engine.prepare` and `compiled.prepare` raise.
    """
    if recipe.execution.engine == "openvino":
        return openvino_engine.prepare(model, identity, recipe.execution.device)
    return compiled.prepare(model, recipe)


def drop_text_encoders(model: LatentDiffusionModel) -> None:
    """Free the memory of the text encoders of `model`, which cannot encode prompts afterwards."""
    for each in model.text_encoders:
        each.model.to("meta")
    free_memory()


def change(model: LatentDiffusionModel, before: Weights, weights: Weights, recipe: Recipe) -> LatentDiffusionModel:
    """Replace the add-ons of a model that was loaded from `before` by those of `weights`.

    `model` cannot be used afterwards. Raises what the kinds of add-ons raise, and OutOfMemory.
    """
    with memory_of(recipe):
        return arranged(addons.attach(model, weights, before), recipe)
