"""The model that a recipe asks for, with its ControlNets, loaded on the recipe's device. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from sdcli.diffusion.device import memory_of
from sdcli.diffusion.model import ControlNet, LatentDiffusionModel
from sdcli.models import controlnets, loading
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe


def load(source: Source, recipe: Recipe, controls: Mapping[str, Source] | None = None) -> LatentDiffusionModel:
    """The model at `source` with the recipe's ControlNets, on the device and in the dtype that its execution says.

    The ControlNets are at `controls`, by name, or where their names lead to from here.
    """
    device, dtype = torch.device(recipe.execution.device), getattr(torch, recipe.execution.dtype)
    with memory_of(recipe):
        model = loading.load(source, name=recipe.model, device=device, dtype=dtype)
        if not recipe.layout.nets:
            return model
        from sdcli.models.loading import controlnet

        found = controlnets.sources(recipe) if controls is None else controls
        nets = {name: controlnet.load(found[name], device=device, dtype=dtype) for name in recipe.layout.nets}
        beside = {name: ControlNet(net, found[name], controlnets.classes(found[name])) for name, net in nets.items()}
        return replace(model, controlnets=beside)
