"""Loads what is measured. Imports torch."""

from __future__ import annotations

import torch

from sdcli.bench.subject import Subject
from sdcli.diffusion import compiled, layout, openvino_engine
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import assemble
from sdcli.models.loading import random_weights
from sdcli.recipe.recipe import Recipe


def load(subject: Subject, recipe: Recipe) -> LatentDiffusionModel:
    """Load the model of `subject` for the resolved `recipe`, or make one with random weights.

    Raises what `assemble.load` raises.
    """
    if not subject.is_random:
        return assemble.load(subject.weights, recipe)
    device, dtype = torch.device(recipe.execution.device), getattr(torch, recipe.execution.dtype)
    with memory_of(recipe):
        model = random_weights.load(
            subject.weights.model, name=recipe.model, device=device, dtype=dtype, layers=subject.layers
        )
        model = layout.arrange(model)
        if recipe.execution.engine == "openvino":
            return openvino_engine.prepare(model, f"random numbers for {recipe.model}")
        return compiled.prepare(model, recipe)
