"""The names that LoRA files give to the layers of a model. Knows only names.

Files name a layer after its module in diffusers and transformers, or after its name in the original CompVis/SGM
layout, with dots or with underscores, and with one of many prefixes. With dots replaced by underscores these are a
few hundred names per prefix, and a table of all of them needs no parsing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdcli.models.loading import single_file

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (
        *("", "lora_unet_", "unet_", "lycoris_", "lycoris_unet_", "diffusion_model_", "model_diffusion_model_"),
        *("base_model_model_", "base_model_model_unet_"),
    ),
    "text_encoder": (
        *("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_", "te1_", "text_encoder_", "clip_l_"),
        *("clip_l_transformer_", "text_encoders_clip_l_transformer_", "base_model_model_text_encoder_"),
    ),
    "text_encoder_2": (
        *("lora_te2_", "lycoris_te2_", "te2_", "text_encoder_2_", "clip_g_"),
        *("clip_g_transformer_", "text_encoders_clip_g_transformer_", "base_model_model_text_encoder_2_"),
    ),
}

# diffusers before 0.18 named the projections of attention after its LoRA processor.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Place:
    """A layer of a model: the part, as in model_index.json, and the name of the module in it."""

    part: str
    module: str


def places(parts: Mapping[str, nn.Module]) -> dict[str, Place]:
    """Return the layers of `parts` by each name that a file can give them, as `plain` returns it."""
    found: dict[str, Place] = {}
    for part, module in parts.items():
        for name, layer in module.named_modules():
            if getattr(layer, "weight", None) is not None:
                for alias in _aliases(part, name, getattr(module, "config", {})):
                    known = alias.replace(".", "_")
                    found |= {f"{prefix}{known}": Place(part, name) for prefix in PREFIXES[part]}
    return found


def plain(layer: str) -> str:
    """Return the name of a layer in a file in the form of `places`."""
    return layer.replace(".processor.", ".").replace(".", "_")


def _aliases(part: str, name: str, config: Any) -> Iterator[str]:
    if part == "unet":
        yield name
        yield single_file.unet(f"{name}.weight", config).removesuffix(".weight")
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        return
    inner = name.removeprefix("text_model.")
    for prefix in ("text_model.", ""):
        yield prefix + inner
        for old, new in _OLD_TEXT.items():
            if inner.endswith(f".self_attn.{new}"):
                yield prefix + re.sub(rf"{new}$", old, inner)
