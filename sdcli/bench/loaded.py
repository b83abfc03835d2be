"""Loads what is measured. Imports torch."""

from __future__ import annotations

from typing import Any

import torch

from sdcli.bench.subject import Subject
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import assemble
from sdcli.models.loading import random_weights
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe


def load(subject: Subject, recipe: Recipe) -> LatentDiffusionModel:
    """Load the model of `subject` for the resolved `recipe`, or make one with random weights.

    Raises what `assemble.load` raises.
    """
    if not subject.is_random:
        return assemble.load(subject.weights, recipe)
    with memory_of(recipe):
        model = assemble.arranged(_random(subject.weights.model, subject, recipe), recipe)
        return assemble.with_engine(model, recipe, f"random numbers for {recipe.model}")


def own_vae(subject: Subject, recipe: Recipe, model: LatentDiffusionModel) -> Any:
    """Return the VAE that belongs to the model: that of `model`, which was loaded, or the one that it replaces."""
    if subject.own is None:
        return model.vae
    with memory_of(recipe):
        if subject.is_random:
            return _random(subject.own, subject, recipe, stage="vae").vae
        return assemble.load(Weights(subject.own), recipe, stage="vae").vae


def _random(source: Source, subject: Subject, recipe: Recipe, stage: str | None = None) -> LatentDiffusionModel:
    device, dtype = torch.device(recipe.execution.torch_device), getattr(torch, recipe.execution.dtype)
    return random_weights.load(
        source, name=recipe.model, device=device, dtype=dtype, layers=subject.layers, stage=stage
    )
