"""The names of transformers' layers in the original layouts of their families, in which many LoRA files name them.

Only names. N is the number of a block. Several modules are the rows of one original layer, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

_Names = Mapping[str, tuple[str, ...]]


def _attention(original: str, block: str) -> dict[str, tuple[str, ...]]:
    """The projections of image and text in a block of FLUX, with XLabs' names of their LoRAs."""
    image = tuple(f"{block}.attn.{each}" for each in ("to_q", "to_k", "to_v"))
    text = tuple(f"{block}.attn.{each}" for each in ("add_q_proj", "add_k_proj", "add_v_proj"))
    return {
        f"{original}.img_attn.qkv": image,
        f"{original}.txt_attn.qkv": text,
        f"{original}.qkv_lora1": image,
        f"{original}.qkv_lora2": text,
        f"{original}.img_attn.proj": (f"{block}.attn.to_out.0",),
        f"{original}.txt_attn.proj": (f"{block}.attn.to_add_out",),
        f"{original}.proj_lora1": (f"{block}.attn.to_out.0",),
        f"{original}.proj_lora2": (f"{block}.attn.to_add_out",),
    }


def _same(original: str, module: str, *pairs: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    return {f"{original}.{theirs}": (f"{module}.{ours}",) for theirs, ours in pairs}


_SINGLE = "single_transformer_blocks.N"
_FLUX: _Names = {
    **_attention("double_blocks.N", "transformer_blocks.N"),
    **_same(
        *("double_blocks.N", "transformer_blocks.N"),
        *(("img_mlp.0", "ff.net.0.proj"), ("img_mlp.2", "ff.net.2"), ("img_mod.lin", "norm1.linear")),
        *(("txt_mlp.0", "ff_context.net.0.proj"), ("txt_mlp.2", "ff_context.net.2")),
        ("txt_mod.lin", "norm1_context.linear"),
    ),
    "single_blocks.N.linear1": (*(f"{_SINGLE}.attn.to_{each}" for each in "qkv"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.N.proj": (f"{_SINGLE}.proj_out",),
    "single_blocks.N.qkv": tuple(f"{_SINGLE}.attn.to_{each}" for each in "qkv"),
    **_same("single_blocks.N", _SINGLE, ("linear2", "proj_out"), ("modulation.lin", "norm.linear")),
    **_same("time_in", "time_text_embed.timestep_embedder", ("in_layer", "linear_1"), ("out_layer", "linear_2")),
    **_same("vector_in", "time_text_embed.text_embedder", ("in_layer", "linear_1"), ("out_layer", "linear_2")),
    **_same("guidance_in", "time_text_embed.guidance_embedder", ("in_layer", "linear_1"), ("out_layer", "linear_2")),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_FLUX2: _Names = {
    **_attention("double_blocks.N", "transformer_blocks.N"),
    **_same(
        *("double_blocks.N", "transformer_blocks.N"),
        *(("img_mlp.0", "ff.linear_in"), ("img_mlp.2", "ff.linear_out")),
        *(("txt_mlp.0", "ff_context.linear_in"), ("txt_mlp.2", "ff_context.linear_out")),
    ),
    **_same("single_blocks.N", _SINGLE, ("linear1", "attn.to_qkv_mlp_proj"), ("linear2", "attn.to_out")),
    **_same("time_in", "time_guidance_embed.timestep_embedder", ("in_layer", "linear_1"), ("out_layer", "linear_2")),
    **{f"{each}.lin": (f"{each}.linear",) for each in ("double_stream_modulation_img", "double_stream_modulation_txt")},
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_JOINT = "transformer_blocks.N"
_SD3: _Names = {
    "joint_blocks.N.x_block.attn.qkv": tuple(f"{_JOINT}.attn.to_{each}" for each in "qkv"),
    "joint_blocks.N.x_block.attn2.qkv": tuple(f"{_JOINT}.attn2.to_{each}" for each in "qkv"),
    "joint_blocks.N.context_block.attn.qkv": tuple(f"{_JOINT}.attn.add_{each}_proj" for each in "qkv"),
    **_same(
        *("joint_blocks.N", _JOINT),
        *(("x_block.attn.proj", "attn.to_out.0"), ("x_block.attn2.proj", "attn2.to_out.0")),
        *(("context_block.attn.proj", "attn.to_add_out"), ("x_block.mlp.fc1", "ff.net.0.proj")),
        *(("x_block.mlp.fc2", "ff.net.2"), ("context_block.mlp.fc1", "ff_context.net.0.proj")),
        *(("context_block.mlp.fc2", "ff_context.net.2"), ("x_block.adaLN_modulation.1", "norm1.linear")),
        ("context_block.adaLN_modulation.1", "norm1_context.linear"),
    ),
    **_same("t_embedder", "time_text_embed.timestep_embedder", ("mlp.0", "linear_1"), ("mlp.2", "linear_2")),
    **_same("y_embedder", "time_text_embed.text_embedder", ("mlp.0", "linear_1"), ("mlp.2", "linear_2")),
    "x_embedder.proj": ("pos_embed.proj",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_BLOCKS = ("layers", "noise_refiner", "context_refiner")
_Z_IMAGE: _Names = {
    **{f"{block}.N.attention.qkv": tuple(f"{block}.N.attention.to_{each}" for each in "qkv") for block in _BLOCKS},
    **{f"{block}.N.attention.out": (f"{block}.N.attention.to_out.0",) for block in _BLOCKS},
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
_LUMINA2: _Names = {
    **{f"{block}.N.attention.qkv": tuple(f"{block}.N.attn.to_{each}" for each in "qkv") for block in _BLOCKS},
    **{f"{block}.N.attention.out": (f"{block}.N.attn.to_out.0",) for block in _BLOCKS},
    **{
        f"{block}.N.feed_forward.w{number}": (f"{block}.N.feed_forward.linear_{number}",)
        for block in _BLOCKS
        for number in (1, 2, 3)
    },
    **{f"{block}.N.adaLN_modulation.1": (f"{block}.N.norm1.linear",) for block in _BLOCKS},
    **_same("t_embedder", "time_caption_embed.timestep_embedder", ("mlp.0", "linear_1"), ("mlp.2", "linear_2")),
    "cap_embedder.1": ("time_caption_embed.caption_embedder.1",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
    "final_layer.linear": ("norm_out.linear_2",),
}
_CHROMA: _Names = {
    **{original: names for original, names in _FLUX.items() if "mod" not in original},
    **_same(
        *("distilled_guidance_layer", "distilled_guidance_layer"),
        *(("layers.N.in_layer", "layers.N.linear_1"), ("layers.N.out_layer", "layers.N.linear_2")),
    ),
}
_OF_KREA2 = (
    *(("attn.wq", "attn.to_q"), ("attn.wk", "attn.to_k"), ("attn.wv", "attn.to_v"), ("attn.wo", "attn.to_out.0")),
    *(("attn.gate", "attn.to_gate"), ("mlp.gate", "ff.gate"), ("mlp.up", "ff.up"), ("mlp.down", "ff.down")),
)
_KREA2: _Names = {
    **_same("blocks.N", "transformer_blocks.N", *_OF_KREA2),
    **_same("txtfusion.layerwise_blocks.N", "text_fusion.layerwise_blocks.N", *_OF_KREA2),
    **_same("txtfusion.refiner_blocks.N", "text_fusion.refiner_blocks.N", *_OF_KREA2),
    **_same("tmlp", "time_embed", ("0", "linear_1"), ("2", "linear_2")),
    **_same("txtmlp", "txt_in", ("1", "linear_1"), ("3", "linear_2")),
    "first": ("img_in",),
    "last.linear": ("final_layer.linear",),
    "tproj.1": ("time_mod_proj",),
    "txtfusion.projector": ("text_fusion.projector",),
}
_TABLES: Mapping[str, _Names] = {
    "flux": _FLUX,
    "flux2": _FLUX2,
    "chroma": _CHROMA,
    "sd3": _SD3,
    "z_image": _Z_IMAGE,
    "lumina2": _LUMINA2,
    "krea2": _KREA2,
}
_SWAPPED = ("flux", "flux2", "sd3")
"""The architectures whose last modulation has shift and scale in another order in diffusers."""


def swaps_halves(architecture: str, original: str) -> bool:
    """Whether the two halves of the rows of an original layer are in the other order in its module."""
    return architecture in _SWAPPED and original == "final_layer.adaLN_modulation.1"


def layers(architecture: str, modules: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each original layer with the names of the `modules` that are its rows, in order."""
    numbers = {match[1] for name in modules for match in re.finditer(r"\.(\d+)\.", name)}
    known = set(modules)
    for original, templates in {**_TABLES.get(architecture, {}), **_fused(modules)}.items():
        for number in numbers if "N" in original.split(".") else ("",):
            names = tuple(_numbered(each, number) for each in templates)
            if known.issuperset(names):
                yield _numbered(original, number), names


def _fused(modules: Iterable[str]) -> _Names:
    """The names of diffusers' own fused projections, which its `fuse_qkv_projections` makes."""
    found: dict[str, tuple[str, ...]] = {}
    for name in modules:
        attention, _, last = name.rpartition(".")
        if last == "to_q":
            found[f"{attention}.to_qkv"] = tuple(f"{attention}.to_{each}" for each in "qkv")
        elif last == "add_q_proj":
            found[f"{attention}.to_added_qkv"] = tuple(f"{attention}.add_{each}_proj" for each in "qkv")
    return found


def _numbered(template: str, number: str) -> str:
    return ".".join(number if each == "N" else each for each in template.split("."))
