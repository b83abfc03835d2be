"""Images as prompts: y is an image, encoded by CLIP's vision tower, which enters f by attention of its own.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", §3.2: an adapter
makes a few tokens of the encoded image, and each cross-attention has further keys and values for them; what they give
is added to what the text gives, times a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.offload import on_device


def encode(
    model: LatentDiffusionModel, pictures: Sequence[Image.Image], scales: Sequence[float]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Encode RGB images, (1, 1, …) each, and the lack of one; sets the scales of the adapter.

    An adapter takes the encoding of the whole image, without which it is zero, or of all its patches, without which it
    is that of an image in CLIP's mean colour; as in diffusers.
    """
    if not pictures:
        return (), ()
    encoder = model.image_encoder
    assert encoder is not None
    set_scales(model.network, scales)
    with on_device(model, encoder.model):
        pairs = [_encode(model, each) for each in pictures]
    return tuple(one for one, _ in pairs), tuple(none for _, none in pairs)


def _encode(model: LatentDiffusionModel, picture: Image.Image) -> tuple[Tensor, Tensor]:
    encoder = model.image_encoder
    assert encoder is not None
    pixels = encoder.processor(picture, return_tensors="pt").pixel_values.to(model.device, model.dtype)
    if model.sees_patches:
        both = [
            encoder.model(each, output_hidden_states=True).hidden_states[-2]
            for each in (pixels, torch.zeros_like(pixels))
        ]
        return both[0][None], both[1][None]
    image_embeds = encoder.model(pixels).image_embeds
    return image_embeds[None], torch.zeros_like(image_embeds)[None]


def set_scales(unet: Any, scales: Sequence[float]) -> None:
    """Let the adapter in a U-Net take as many images as there are `scales`, all by the same weights."""
    layers = unet.encoder_hid_proj.image_projection_layers
    unet.encoder_hid_proj.image_projection_layers = nn.ModuleList([layers[0]] * len(scales))
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = list(scales)
            processor.num_tokens = [processor.num_tokens[0]] * len(scales)
            processor.to_k_ip = nn.ModuleList([processor.to_k_ip[0]] * len(scales))
            processor.to_v_ip = nn.ModuleList([processor.to_v_ip[0]] * len(scales))
