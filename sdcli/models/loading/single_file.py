"""The original CompVis/SGM names of a model's tensors, by their names in diffusers and transformers.

Each function maps a name in the loaded module to the name in the file, so that missing tensors are found. Knows only
names, and `as_linear` a shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PLACE = re.compile(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def unet(name: str, config: Mapping[str, Any]) -> str:
    """`down_blocks.0.resnets.1.conv1.weight` → `input_blocks.2.0.in_layers.2.weight`.

    The original numbers all blocks in one sequence: the `layers_per_block` layers of each level (one more in the up
    blocks), then its downsampler. Inside a block it numbers ResNet, attention and upsampler, those that exist.
    """
    stem, _, leaf = name.rpartition(".")
    place = _PLACE.fullmatch(name)
    if place is None:
        return f"{_UNET_ENDS.get(stem, stem)}.{leaf}"
    side, level, kind, layer, rest = place[1], int(place[2] or 0), place[3], int(place[4]), place[5]
    if kind == "resnets":
        rest = f"{_RESNET.get(rest.rpartition('.')[0], rest.rpartition('.')[0])}.{leaf}"
    if side == "mid":
        return f"middle_block.{2 * layer + (kind == 'attentions')}.{rest}"
    row = level * (config["layers_per_block"] + 1) + layer
    inside = 1 if kind == "attentions" else 0
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (config['layers_per_block'] + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        row += config["layers_per_block"]
        inside = 2 if "CrossAttn" in config["up_block_types"][level] else 1
    return f"input_blocks.{row + 1}.{inside}.{rest}" if side == "down" else f"output_blocks.{row}.{inside}.{rest}"


def vae(name: str, config: Mapping[str, Any]) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` → `decoder.up.3.block.1.conv1.weight`.

    The original numbers the decoder's levels from the finest.
    """
    half, _, rest = name.partition(".")
    place = _PLACE.fullmatch(rest)
    if place is None:
        return name.replace("conv_norm_out", "norm_out")
    side, level, kind, layer, rest = place[1], int(place[2] or 0), place[3], int(place[4]), place[5]
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if kind == "attentions":
        stem, _, leaf = rest.rpartition(".")
        return f"{half}.mid.attn_1.{_VAE_ATTENTION.get(stem, stem)}.{leaf}"
    if side == "mid":
        return f"{half}.mid.block_{layer + 1}.{rest}"
    if side == "up":
        level = len(config["block_out_channels"]) - 1 - level
    inside = f"block.{layer}" if kind == "resnets" else kind.removesuffix("rs")
    return f"{half}.{side}.{level}.{inside}.{rest}"


def as_linear(tensor: Tensor) -> Tensor:
    """Convert the original VAE's attention, which is stored as 1×1 convolutions."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def open_clip(name: str) -> tuple[str, int | None]:
    """`encoder.layers.0.mlp.fc1.bias` → `transformer.resblocks.0.mlp.c_fc.bias`, None.

    `name` without its `text_model.`. The original keeps queries, keys and values in one tensor; for these the
    number is the third (0, 1, 2) that holds this one.
    """
    if name in _OPEN_CLIP_ENDS:
        return _OPEN_CLIP_ENDS[name], None
    _, _, layer, *inner, leaf = name.split(".")
    stem = ".".join(inner)
    blocks = f"transformer.resblocks.{layer}"
    if stem in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return f"{blocks}.attn.in_proj_{leaf}", "qkv".index(inner[1][0])
    return f"{blocks}.{_OPEN_CLIP_LAYER.get(stem, stem)}.{leaf}", None
