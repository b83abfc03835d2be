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

from sdcli.models.loading import original_names, single_file

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (
        *("", "lora_unet_", "unet_", "lycoris_", "lycoris_unet_", "diffusion_model_", "model_diffusion_model_"),
        *("base_model_model_", "base_model_model_unet_"),
    ),
    "transformer": (
        *("", "transformer_", "lora_unet_", "lora_transformer_", "unet_", "lycoris_", "lycoris_transformer_"),
        *("diffusion_model_", "model_diffusion_model_", "base_model_model_", "base_model_model_transformer_"),
        *("transformer_diffusion_model_", "base_model_model_transformer_diffusion_model_"),
        "base_model_model_diffusion_model_",
    ),
    "text_encoder": (
        *("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_", "te1_", "text_encoder_", "clip_l_"),
        *("clip_l_transformer_", "text_encoders_clip_l_transformer_", "base_model_model_text_encoder_"),
    ),
    "text_encoder_2": (
        *("lora_te2_", "lycoris_te2_", "te2_", "text_encoder_2_", "clip_g_"),
        *("clip_g_transformer_", "text_encoders_clip_g_transformer_", "base_model_model_text_encoder_2_"),
    ),
    "text_encoder_3": ("lora_te3_", "lycoris_te3_", "te3_", "text_encoder_3_", "base_model_model_text_encoder_3_"),
}
_T5 = ("lora_te2_", "lora_te3_", "t5_", "t5xxl_", "t5xxl_transformer_", "text_encoders_t5xxl_transformer_")
"""Further prefixes of T5, which is the second text encoder of FLUX.1 and the third of SD 3."""

# diffusers before 0.18 named the projections of attention after its LoRA processor.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Place:
    """A layer of a model: the part, as in model_index.json, and the name of the module in it.

    `rows` are the ranges of the rows of the file's layer that are the module's, one after the other, if it is not all
    of them: files have queries, keys and values in one layer, and diffusers has three.
    """

    part: str
    module: str
    rows: tuple[tuple[int, int], ...] | None = None


def places(parts: Mapping[str, nn.Module], architecture: str) -> dict[str, tuple[Place, ...]]:
    """Return the layers of `parts` by each name that a file can give them, as `plain` returns it."""
    found: dict[str, tuple[Place, ...]] = {}
    for part, module in parts.items():
        layers = {name: layer for name, layer in module.named_modules() if getattr(layer, "weight", None) is not None}
        prefixes = (*PREFIXES[part], *(_T5 if type(module).__name__.startswith("T5") else ()))
        named: dict[str, tuple[Place, ...]] = {}
        for name in layers:
            for alias in _aliases(part, name, getattr(module, "config", {})):
                named[alias] = (Place(part, name),)
        if part == "transformer":
            for original, names in original_names.layers(architecture, layers.keys()):
                named[original] = _rows(part, original, names, layers, architecture)
                if len(names) > 1:  # OneTrainer numbers the layers in a fused one
                    named |= {f"{original}.{index}": (Place(part, name),) for index, name in enumerate(names)}
        found |= {f"{prefix}{alias.replace('.', '_')}": place for alias, place in named.items() for prefix in prefixes}
    return found


def _rows(
    part: str, original: str, names: tuple[str, ...], layers: Mapping[str, Any], architecture: str
) -> tuple[Place, ...]:
    """Return the places of the rows of an original layer."""
    if original_names.swaps_halves(architecture, original):
        rows = layers[names[0]].weight.shape[0]
        return (Place(part, names[0], ((rows // 2, rows), (0, rows // 2))),)
    if len(names) == 1:
        return (Place(part, names[0]),)
    found, start = [], 0
    for name in names:
        end = start + layers[name].weight.shape[0]
        found.append(Place(part, name, ((start, end),)))
        start = end
    return tuple(found)


def plain(layer: str) -> str:
    """Return the name of a layer in a file in the form of `places`."""
    return layer.replace(".processor.", ".").replace(".", "_").replace("lora_unet__", "lora_unet_")


def _aliases(part: str, name: str, config: Any) -> Iterator[str]:
    if part == "transformer":
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        return
    if part == "unet":
        yield name
        yield single_file.unet(f"{name}.weight", config).removesuffix(".weight")
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        return
    inner = name.removeprefix("text_model.").removeprefix("model.").removeprefix("language_model.")
    for prefix in ("text_model.", "model.", "model.language_model.", ""):
        yield prefix + inner
        for old, new in _OLD_TEXT.items():
            if inner.endswith(f".self_attn.{new}"):
                yield prefix + re.sub(rf"{new}$", old, inner)
