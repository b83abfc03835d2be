"""The names of the tensors of PixArt and Sana in their original layout, which Sana took from PixArt.

diffusers has no converter for PixArt, and that for Sana does not know the norms of Sana 1.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SIGNS = ("x_embedder.proj.", "y_embedder.", "t_block.")
"""What the names of tensors begin with in the original layout only."""
_UNUSED = ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")
"""Positions, which are computed; the text of training without a text; and weights of losses."""

_BOTH = {
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
}
_ENDS: Mapping[str, Mapping[str, str]] = {
    "PixArtTransformer2DModel": {
        **_BOTH,
        "x_embedder.proj": "pos_embed.proj",
        "t_block.1": "adaln_single.linear",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
        "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    },
    "SanaTransformer2DModel": {
        **_BOTH,
        "x_embedder.proj": "patch_embed.proj",
        "t_block.1": "time_embed.linear",
        "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
        "attention_y_norm": "caption_norm",
    },
}
_IN_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "attn.q_norm": ("attn1.norm_q",),
    "attn.k_norm": ("attn1.norm_k",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "cross_attn.q_norm": ("attn2.norm_q",),
    "cross_attn.k_norm": ("attn2.norm_k",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "mlp.inverted_conv.conv": ("ff.conv_inverted",),
    "mlp.depth_conv.conv": ("ff.conv_depth",),
    "mlp.point_conv.conv": ("ff.conv_point",),
}
"""The pieces, of the same number of rows, that a tensor is made of."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def convert(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return `tensors` under the names of diffusers' class `name`; unknown ones keep theirs."""
    found: dict[str, Any] = {}
    for key, tensor in tensors.items():
        if key in _UNUSED:
            continue
        layer, _, leaf = key.rpartition(".")
        block = _BLOCK.fullmatch(layer)
        if block and block[2] in _IN_BLOCKS:
            names = [f"transformer_blocks.{block[1]}.{each}.{leaf}" for each in _IN_BLOCKS[block[2]]]
            found |= dict(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
        elif key.startswith("blocks."):
            found[f"transformer_{key}"] = tensor
        else:
            ends = _ENDS[name]
            found[ends.get(key) or (f"{ends[layer]}.{leaf}" if layer in ends else key)] = tensor
    return found
