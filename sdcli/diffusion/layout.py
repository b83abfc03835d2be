"""How a model computes with the least time and memory, without another result. Knows nothing of files or prompts."""

from __future__ import annotations

from typing import Any

import torch

from sdcli.diffusion.model import LatentDiffusionModel

_HALF = (torch.float16, torch.bfloat16)


def arrange(model: LatentDiffusionModel) -> LatentDiffusionModel:
    """Store the weights of convolutions with the channels last, where that is faster, and return `model`.

    The outputs of these convolutions then have the same order. It changes the last bits of results, and is a rule, not
    a measurement, so that the same recipe always gives the same pixels: weights in 16 bits, on a CPU or an NVIDIA GPU.
    Tensors that have that order already are not copied, nor are those that are not loaded. An AutoencoderKL activates
    in place what its norms return, which nothing else uses.
    """
    if type(model.vae).__name__ == "AutoencoderKL":
        activate_in_place(model.vae)
    refiners = [] if model.refiner is None else [model.refiner.network]
    for part in (model.network, *refiners, model.vae, *(each.net for each in model.controlnets.values())):
        if _gains(part):
            part.to(memory_format=torch.channels_last)
    return model


def activate_in_place(vae: Any, wanted: bool = True) -> None:
    """Have the activations of an AutoencoderKL replace their inputs, or not as they come."""
    for each in vae.modules():
        if isinstance(each, torch.nn.SiLU):
            each.inplace = wanted


def _gains(part: Any) -> bool:
    kinds = [each for each in part.parameters() if each.ndim == 4]  # those of two-dimensional convolutions
    if any(each.ndim == 5 for each in part.parameters()):  # torch has no such order for an autoencoder of videos
        return False
    return bool(kinds) and all(each.dtype in _HALF and each.device.type in ("cpu", "cuda") for each in kinds)
