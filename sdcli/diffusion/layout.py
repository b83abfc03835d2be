"""How a model computes with the least time and memory, without another result. Knows nothing of files or prompts."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from sdcli.diffusion import heap
from sdcli.diffusion.model import LatentDiffusionModel

_HALF = (torch.float16, torch.bfloat16)


def arrange(model: LatentDiffusionModel) -> LatentDiffusionModel:
    """Store the weights of convolutions with the channels last, where that is faster, and return `model`.

    The outputs of these convolutions then have the same order. It changes the last bits of results, and is a rule, not
    a measurement, so that the same recipe always gives the same pixels: weights in 16 bits, on a CPU or an NVIDIA GPU.
    Tensors that have that order already are not copied, nor are those that are not loaded. An AutoencoderKL uses
    less memory and the same operators.
    """
    if type(model.vae).__name__ == "AutoencoderKL":
        use_less_memory(model.vae)
    refiners = [] if model.refiner is None else [model.refiner.network]
    for part in (model.network, *refiners, model.vae, *(each.net for each in model.controlnets.values())):
        if _gains(part):
            part.to(memory_format=torch.channels_last)
    return model


def use_less_memory(vae: Any, wanted: bool = True) -> None:
    """Have an AutoencoderKL free each tensor when it is used up, with the same results; or undo that.

    Activations and the sums of blocks replace their inputs, and the decoder does not keep the input of a block while
    that computes.
    """
    for each in vae.modules():
        if isinstance(each, torch.nn.SiLU):
            each.inplace = wanted
        elif type(each).__name__ == "ResnetBlock2D" and _is_plain(each):
            _replace_forward(each, _block, wanted)
    if all(type(each).__name__ == "UpDecoderBlock2D" for each in vae.decoder.up_blocks):
        _replace_forward(vae.decoder, _decoder, wanted)


def _replace_forward(module: Any, forward: Callable[..., Tensor], wanted: bool) -> None:
    module.forward = MethodType(forward if wanted else type(module).forward, module)


def _is_plain(block: Any) -> bool:
    """Whether a ResnetBlock2D has no time embedding, no change of size, and no other scale than 1."""
    parts = block.time_emb_proj, block.upsample, block.downsample
    return block.output_scale_factor == 1 and not any(each is not None for each in parts)


def _block(block: Any, inputs: Tensor, temb: None = None) -> Tensor:
    """Compute a ResnetBlock2D."""
    hidden_states = block.norm1(inputs)
    for layer in (block.nonlinearity, block.conv1, block.norm2, block.nonlinearity, block.conv2):
        hidden_states = layer(hidden_states)
    result: Tensor = hidden_states.add_(inputs if block.conv_shortcut is None else block.conv_shortcut(inputs))
    return result


def _decoder(decoder: Any, sample: Tensor, latent_embeds: None = None) -> Tensor:
    """Compute the decoder of an AutoencoderKL."""
    sample = decoder.mid_block(decoder.conv_in(sample))
    for block in decoder.up_blocks:
        heap.trim()
        for layer in (*block.resnets, *(block.upsamplers or ())):
            sample = layer(sample)
    for layer in (decoder.conv_norm_out, decoder.conv_act, decoder.conv_out):
        sample = layer(sample)
    return sample


def _gains(part: Any) -> bool:
    # those of two-dimensional convolutions, except the packed ones
    kinds = [each for each in part.parameters() if each.ndim == 4 and not each.is_meta]
    if any(each.ndim == 5 for each in part.parameters()):  # torch has no such order for an autoencoder of videos
        return False
    return bool(kinds) and all(each.dtype in _HALF and each.device.type in ("cpu", "cuda") for each in kinds)
