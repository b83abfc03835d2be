"""How a model computes with the least time and memory, without another result. Knows nothing of files or prompts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
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
        elif isinstance(each, ResnetBlock2D) and _is_plain(each):
            each.__class__ = _Block if wanted else ResnetBlock2D
    decoder = vae.decoder
    if isinstance(decoder, Decoder) and all(isinstance(each, UpDecoderBlock2D) for each in decoder.up_blocks):
        decoder.__class__ = _Decoder if wanted else Decoder


def _is_plain(block: Any) -> bool:
    """Whether a ResnetBlock2D has no time embedding, no change of size, and no other scale than 1."""
    parts = block.time_emb_proj, block.upsample, block.downsample
    return block.output_scale_factor == 1 and not any(each is not None for each in parts)


class _Block(ResnetBlock2D):  # type: ignore[misc]
    def forward(self, inputs: Tensor, temb: None = None) -> Tensor:
        hidden_states = self.norm1(inputs)
        for layer in (self.nonlinearity, self.conv1, self.norm2, self.nonlinearity, self.conv2):
            hidden_states = layer(hidden_states)
        result: Tensor = hidden_states.add_(inputs if self.conv_shortcut is None else self.conv_shortcut(inputs))
        return result


class _Decoder(Decoder):  # type: ignore[misc]
    def forward(self, sample: Tensor, latent_embeds: None = None) -> Tensor:
        sample = self.mid_block(self.conv_in(sample))
        for block in self.up_blocks:
            heap.trim()
            for layer in (*block.resnets, *(block.upsamplers or ())):
                sample = layer(sample)
        for layer in (self.conv_norm_out, self.conv_act, self.conv_out):
            sample = layer(sample)
        return sample


def _gains(part: Any) -> bool:
    # those of two-dimensional convolutions, except the packed ones
    kinds = [each for each in part.parameters() if each.ndim == 4 and not each.is_meta]
    if any(each.ndim == 5 for each in part.parameters()):  # torch has no such order for an autoencoder of videos
        return False
    return bool(kinds) and all(each.dtype in _HALF and each.device.type in ("cpu", "cuda") for each in kinds)
