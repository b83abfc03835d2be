"""Loads a model and its add-ons on a device. Imports torch."""

from __future__ import annotations

import torch

from sdcli.diffusion import layout
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import addons, loading
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe


def load(weights: Weights, recipe: Recipe) -> LatentDiffusionModel:
    """Load `weights` on the device and in the dtype of the recipe, which must be resolved.

    Raises what `loading.load` and the kinds of add-ons raise, and OutOfMemory.
    """
    device, dtype = torch.device(recipe.execution.device), getattr(torch, recipe.execution.dtype)
    with memory_of(recipe):
        quantize = recipe.loading.quantize
        model = loading.load(weights.model, name=recipe.model, device=device, dtype=dtype, quantize=quantize)
        return layout.arrange(addons.attach(model, weights))


def change(model: LatentDiffusionModel, before: Weights, weights: Weights, recipe: Recipe) -> LatentDiffusionModel:
    """Replace the add-ons of a model that was loaded from `before` by those of `weights`.

    `model` cannot be used afterwards. Raises what the kinds of add-ons raise, and OutOfMemory.
    """
    with memory_of(recipe):
        return layout.arrange(addons.attach(model, weights, before))
