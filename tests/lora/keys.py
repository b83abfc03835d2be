"""Names and shapes of LoRA files, as trainers write them: layers with their inputs and outputs, and forms of names.

The lists are written out by small generators. Each says where files of its form are from; the sizes of models are real,
and their depth is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

RANK = 4

Layers = Mapping[str, tuple[int, ...]]
"""Inputs and outputs of layers by their names; a third number is the side of a convolution's kernel."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Keys:
    """A list of keys: for a model, layers by the form of their names, and what a file has for each layer."""

    model: str
    kind: str
    layers: Mapping[str, Layers]
    misfits: tuple[str, ...] = ()
    """What of it has no place in the model, and is named in an error."""
    more: Mapping[str, tuple[int, ...]] = ()  # type: ignore[assignment]

    def shapes(self) -> Shapes:
        found: Shapes = dict(self.more)
        for form, layers in self.layers.items():
            for name, sizes in layers.items():
                stem = form + (name.replace(".", "_") if form.endswith("_") else name)
                found |= {f"{stem}{end}": shape for end, shape in tensors(self.kind, *sizes).items()}
        return found


def tensors(kind: str, inputs: int, outputs: int, side: int = 1) -> Shapes:
    """The ends of the names of a layer's tensors, and their shapes."""
    kernel = (side, side) if side > 1 else ()
    down, up = (RANK, inputs, *kernel), (outputs, RANK, *([1] * len(kernel)))
    first, second = _factor(outputs), _factor(inputs)
    kinds: dict[str, Shapes] = {
        "kohya": {".lora_down.weight": down, ".lora_up.weight": up, ".alpha": ()},
        "peft": {".lora_A.weight": down, ".lora_B.weight": up},
        "peft with alpha": {".lora_A.weight": down, ".lora_B.weight": up, ".alpha": ()},
        "adapter": {".lora_A.default.weight": down, ".lora_B.default.weight": up},
        "adapter_0": {".lora_A.default_0.weight": down, ".lora_B.default_0.weight": up},
        "with biases": {".lora_A.weight": down, ".lora_B.weight": up, ".lora_B.bias": (outputs,)},
        "with differences of biases": {".lora_down.weight": down, ".lora_up.weight": up, ".diff_b": (outputs,)},
        "dots": {".lora.down.weight": down, ".lora.up.weight": up},
        "processors": {"_lora.down.weight": down, "_lora.up.weight": up},
        "linear_layer": {".lora_linear_layer.down.weight": down, ".lora_linear_layer.up.weight": up},
        "xlabs": {".down.weight": down, ".up.weight": up},
        "dora by rows": {".lora_A.weight": down, ".lora_B.weight": up, ".lora_magnitude_vector": (outputs,)},
        "dora by columns": {
            ".lora_down.weight": down, ".lora_up.weight": up, ".alpha": (), ".dora_scale": (1, inputs),
        },
        "lokr": {
            ".lokr_w1": (first, second), ".lokr_w2": (outputs // first, inputs // second, *kernel), ".alpha": (),
        },
        "lokr of factors": {
            ".lokr_w1": (first, second), ".lokr_w2_a": (outputs // first, RANK),
            ".lokr_w2_b": (RANK, inputs // second), ".alpha": (),
        },
        "lokr with dora": {
            ".lokr_w1": (first, second), ".lokr_w2": (outputs // first, inputs // second), ".alpha": (),
            ".dora_scale": (outputs,),
        },
        "loha": {
            ".hada_w1_a": (outputs, RANK), ".hada_w1_b": (RANK, inputs * side**2),
            ".hada_w2_a": (outputs, RANK), ".hada_w2_b": (RANK, inputs * side**2), ".alpha": (),
        },
        "whole": {".diff": (outputs, inputs, *kernel), ".diff_b": (outputs,)},
    }  # fmt: skip
    return kinds[kind]


def _factor(number: int) -> int:
    return next(each for each in range(math.isqrt(number), 0, -1) if number % each == 0)


def _each(stems: tuple[str, ...], layers: Layers) -> Layers:
    return {f"{stem}.{name}": sizes for stem in stems for name, sizes in layers.items()}


def _blocks(stem: str, layers: Layers, count: int = 2) -> Layers:
    return _each(tuple(f"{stem}.{index}" for index in range(count)), layers)


# FLUX.1
D, MLP = 3072, 12288
_STREAM = {"attn.qkv": (D, 3 * D), "attn.proj": (D, D), "mlp.0": (D, MLP), "mlp.2": (MLP, D), "mod.lin": (D, 6 * D)}
BFL = {
    **_blocks("double_blocks", {f"{half}_{name}": size for half in ("img", "txt") for name, size in _STREAM.items()}),
    **_blocks("single_blocks", {"linear1": (D, 7 * D), "linear2": (5 * D, D), "modulation.lin": (D, 3 * D)}),
}
BFL_ENDS = {
    "img_in": (64, D),
    "txt_in": (4096, D),
    "final_layer.linear": (D, 64),
    "time_in.in_layer": (256, D),
    "vector_in.in_layer": (768, D),
    "guidance_in.out_layer": (D, D),
    "final_layer.adaLN_modulation.1": (D, 2 * D),
}
SPLIT = {
    **_blocks("double_blocks", {f"{half}_attn.qkv.{n}": (D, D) for half in ("img", "txt") for n in range(3)}),
    **_blocks("double_blocks", {"img_mlp.0": (D, MLP), "txt_mlp.2": (MLP, D)}),
    **_blocks("single_blocks", {**{f"linear1.{n}": (D, D) for n in range(3)}, "linear1.3": (D, MLP)}),
}
_ATTENTION = {f"attn.to_{each}": (D, D) for each in "qkv"}
_JOINT = {
    **{f"attn.{each}": (D, D) for each in ("add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")},
    **_ATTENTION,
}
FLUX = {
    **_blocks("transformer_blocks", {**_JOINT, "norm1.linear": (D, 6 * D), "norm1_context.linear": (D, 6 * D)}),
    **_blocks("transformer_blocks", {f"{each}.net.0.proj": (D, MLP) for each in ("ff", "ff_context")}),
    **_blocks("transformer_blocks", {f"{each}.net.2": (MLP, D) for each in ("ff", "ff_context")}),
    **_blocks("single_transformer_blocks", {**_ATTENTION, "proj_mlp": (D, MLP), "proj_out": (5 * D, D)}),
}
FLUX_ENDS = {
    "x_embedder": (64, D), "context_embedder": (4096, D), "norm_out.linear": (D, 2 * D), "proj_out": (D, 64),
    "time_text_embed.timestep_embedder.linear_1": (256, D),
}  # fmt: skip
XLABS = _blocks(
    "double_blocks",
    {f"processor.{layer}_lora{n}": (D, out) for layer, out in (("qkv", 3 * D), ("proj", D)) for n in (1, 2)},
)
XLABS_SINGLE = _blocks("single_blocks", {"processor.qkv": (D, 3 * D)})
_CLIP_BLOCK = {f"self_attn.{each}": (768, 768) for each in ("q_proj", "k_proj", "v_proj", "out_proj")}
CLIP_L = _blocks("text_model.encoder.layers", {**_CLIP_BLOCK, "mlp.fc1": (768, 3072), "mlp.fc2": (3072, 768)})
CLIP_G = _blocks("text_model.encoder.layers", {"self_attn.q_proj": (1280, 1280), "mlp.fc1": (1280, 5120)})
T5 = _blocks(
    "encoder.block",
    {
        **{f"layer.0.SelfAttention.{each}": (4096, 4096) for each in "qkvo"},
        **{f"layer.1.DenseReluDense.{each}": (4096, 10240) for each in ("wi_0", "wi_1")},
        "layer.1.DenseReluDense.wo": (10240, 4096),
    },
)

# FLUX.2 klein
K, KMLP = 3072, 9216
KLEIN = {
    **_blocks("double_blocks", {f"{half}_attn.qkv": (K, 3 * K) for half in ("img", "txt")}),
    **_blocks("double_blocks", {"img_attn.proj": (K, K), "img_mlp.0": (K, 2 * KMLP), "txt_mlp.2": (KMLP, K)}),
    **_blocks("single_blocks", {"linear1": (K, 3 * K + 2 * KMLP), "linear2": (K + KMLP, K)}),
    "single_stream_modulation.lin": (K, 3 * K),
    "img_in": (128, K),
}
KLEIN_FUSED = _blocks("transformer_blocks", {"attn.to_qkv": (K, 3 * K), "attn.to_added_qkv": (K, 3 * K)})

# Qwen-Image
QWEN = {
    **_blocks("transformer_blocks", _JOINT),
    **_blocks("transformer_blocks", {f"{half}_mlp.net.0.proj": (D, MLP) for half in ("img", "txt")}),
    **_blocks("transformer_blocks", {f"{half}_mlp.net.2": (MLP, D) for half in ("img", "txt")}),
    **_blocks("transformer_blocks", {f"{half}_mod.1": (D, 6 * D) for half in ("img", "txt")}),
}
QWEN_ENDS = {"img_in": (64, D), "txt_in": (3584, D), "proj_out": (D, 64), "norm_out.linear": (D, 2 * D)}

# Z-Image
Z, ZMLP = 3840, 10240
_Z_REST = {"feed_forward.w1": (Z, ZMLP), "feed_forward.w2": (ZMLP, Z), "feed_forward.w3": (Z, ZMLP)}
_REFINERS = ("layers", "noise_refiner", "context_refiner")
Z_ATTENTION = {name: size for b in _REFINERS for name, size in
               _blocks(b, {f"attention.to_{each}": (Z, Z) for each in "qkv"}).items()}  # fmt: skip
Z_OUT = {name: size for b in _REFINERS for name, size in _blocks(b, {"attention.to_out.0": (Z, Z)}).items()}
Z_REST = {name: size for b in _REFINERS for name, size in _blocks(b, _Z_REST).items()}
Z_FUSED = _blocks("layers", {"attention.qkv": (Z, 3 * Z), "attention.out": (Z, Z), "adaLN_modulation.0": (256, 4 * Z)})
Z_DOTS = _blocks("layers", {f"attention.to.{each}": (Z, Z) for each in "qkv"})
QWEN3 = _blocks(
    "layers",
    {"self_attn.q_proj": (2560, 4096), "self_attn.o_proj": (4096, 2560), "mlp.gate_proj": (2560, 9728)},
)

# Stable Diffusion 1.x
_PLACES = {f"down_blocks.{b}.attentions.{a}": 320 << b for b in range(3) for a in range(2)}
_PLACES |= {"mid_block.attentions.0": 1280}
_PLACES |= {f"up_blocks.{b}.attentions.{a}": 1280 >> (b - 1) for b in (1, 2, 3) for a in range(3)}


def _transformer(width: int, text: int) -> Layers:
    return {
        **{f"attn1.to_{each}": (width, width) for each in ("q", "k", "v", "out.0")},
        **{f"attn2.to_{each}": (width, width) for each in ("q", "out.0")},
        **{f"attn2.to_{each}": (text, width) for each in ("k", "v")},
        "ff.net.0.proj": (width, 8 * width),
        "ff.net.2": (4 * width, width),
    }


SD = {
    f"{place}.transformer_blocks.0.{name}": size
    for place, width in _PLACES.items()
    for name, size in _transformer(width, 768).items()
}
SD_PROCESSORS = {
    f"{place}.transformer_blocks.0.{attention}.processor.to_{each}": (width, width)
    for place, width in _PLACES.items()
    for attention, letters in (("attn1", ("q", "k", "v", "out")), ("attn2", ("q", "out")))
    for each in letters
}
SD_CONVOLUTIONS = {
    **{f"down_blocks.0.resnets.{n}.conv{m}": (320, 320, 3) for n in range(2) for m in (1, 2)},
    "down_blocks.1.resnets.0.conv1": (320, 640, 3),
    "down_blocks.1.resnets.0.conv_shortcut": (320, 640),
    "down_blocks.0.downsamplers.0.conv": (320, 320, 3),
    "up_blocks.0.resnets.0.conv1": (2560, 1280, 3),
    "up_blocks.2.upsamplers.0.conv": (640, 640, 3),
    "mid_block.resnets.1.time_emb_proj": (1280, 1280),
    "conv_in": (4, 320, 3),
}

# Stable Diffusion XL, with the numbers of blocks of Stability AI
_XL_PLACES = {f"input_blocks.{n}.1": (640, 2) for n in (4, 5)} | {f"input_blocks.{n}.1": (1280, 10) for n in (7, 8)}
_XL_PLACES |= {"middle_block.1": (1280, 10)} | {f"output_blocks.{n}.1": (1280, 10) for n in range(3)}
_XL_PLACES |= {f"output_blocks.{n}.1": (640, 2) for n in (3, 4, 5)}
XL = {
    f"{place}.transformer_blocks.{index}.{name}": size
    for place, (width, depth) in _XL_PLACES.items()
    for index in (0, depth - 1)
    for name, size in _transformer(width, 2048).items()
} | {f"{place}.{name}": (width, width) for place, (width, _) in _XL_PLACES.items() for name in ("proj_in", "proj_out")}
XL_CONVOLUTIONS = {
    "input_blocks.1.0.in_layers.2": (320, 320, 3),
    "input_blocks.1.0.emb_layers.1": (1280, 320),
    "input_blocks.3.0.op": (320, 320, 3),
    "input_blocks.4.0.skip_connection": (320, 640),
    "middle_block.2.out_layers.3": (1280, 1280, 3),
    "output_blocks.2.2.conv": (1280, 1280, 3),
    "time_embed.0": (320, 1280),
    "label_emb.0.0": (2816, 1280),
    "out.2": (320, 4, 3),
}
XL_DIFFUSERS = {
    f"down_blocks.1.attentions.{a}.transformer_blocks.{n}.{name}": size
    for a in range(2)
    for n in range(2)
    for name, size in _transformer(640, 2048).items()
}

# SD 3.5 medium, Krea 2, Lumina 2 and Chroma
S = 1536
SD3 = _blocks("joint_blocks", {f"{half}_block.attn.qkv": (S, 3 * S) for half in ("x", "context")}) | _blocks(
    "joint_blocks", {"x_block.mlp.fc1": (S, 4 * S), "x_block.adaLN_modulation.1": (S, 9 * S)}
)
KREA = _blocks(
    "blocks",
    {"attn.wq": (6144, 6144), "attn.wk": (6144, 1536), "attn.gate": (6144, 6144), "mlp.down": (16384, 6144)},
) | {
    "first": (64, 6144), "last.linear": (6144, 64), "tmlp.0": (256, 6144), "tproj.1": (6144, 36864),
    "txtmlp.3": (6144, 6144), "txtfusion.projector": (12, 1), "txtfusion.refiner_blocks.0.mlp.up": (2560, 6912),
    "txtfusion.layerwise_blocks.0.attn.wo": (2560, 2560),
}  # fmt: skip
LUMINA = _blocks(
    "layers",
    {"attention.qkv": (2304, 3840), "attention.out": (2304, 2304), "adaLN_modulation.1": (1024, 9216)},
)
CHROMA = {
    **_blocks("double_blocks", {"img_attn.qkv": (D, 3 * D), "txt_mlp.0": (D, MLP)}),
    **_blocks("single_blocks", {"linear1": (D, 7 * D)}),
    "distilled_guidance_layer.layers.0.in_layer": (5120, 5120),
    "distilled_guidance_layer.in_proj": (64, 5120),
}
ANIMA = _blocks("blocks", {"cross_attn.q_proj": (2048, 2048), "self_attn.output_proj": (2048, 2048)})

_NORMS = {f"double_blocks.0.img_attn.norm.{each}_norm.scale": (128,) for each in ("key", "query")}
LISTS: dict[str, Keys] = {
    # InvokeAI, tests/backend/patches/lora_conversions
    "FLUX.1, ai-toolkit": Keys("flux-dev", "peft", {"diffusion_model.": BFL}),
    "FLUX.1, PEFT": Keys("flux-dev", "peft", {"base_model.model.": {**FLUX, "proj_out": (D, 64)}}),
    "FLUX.1, diffusers with all ends": Keys("flux-dev", "peft", {"transformer.": FLUX | FLUX_ENDS}),
    "FLUX.1, kohya with CLIP": Keys("flux-dev", "kohya", {"lora_unet_": BFL, "lora_te1_": CLIP_L}),
    "FLUX.1, XLabs": Keys("flux-dev", "xlabs", {"": XLABS}),
    "FLUX.1, XLabs, single blocks": Keys("flux-dev", "processors", {"": XLABS_SINGLE}),
    "FLUX.1, LoKr": Keys("flux-dev", "lokr", {"diffusion_model.": BFL}),
    "FLUX.1, OneTrainer, divided": Keys("flux-dev", "kohya", {"transformer.": SPLIT}),
    "FLUX.1, OneTrainer, DoRA": Keys(
        "flux-dev", "dora by columns", {"lora_transformer_": FLUX, "lora_te1_": CLIP_L, "lora_te2_": T5}
    ),
    "FLUX.1, control": Keys(
        "flux-dev", "with biases", {"": {**BFL, "img_in": (128, D), "txt_in": (4096, D)}},
        ("img_in", *_NORMS), _NORMS,
    ),
    # diffusers, src/diffusers/loaders/lora_conversion_utils.py: fal's Kontext, and the first layers of a mixture
    "FLUX.1, fal": Keys("flux-dev", "peft", {"base_model.model.": BFL | BFL_ENDS}),
    "FLUX.1, ComfyUI with biases": Keys("flux-dev", "with differences of biases", {"diffusion_model.": BFL}),
    "FLUX.1, LyCORIS": Keys("flux-dev", "loha", {"lycoris_": FLUX}),
    "FLUX.2, ai-toolkit": Keys("flux2-klein", "peft", {"diffusion_model.": KLEIN}),
    "FLUX.2, kohya": Keys("flux2-klein", "kohya", {"lora_unet_": KLEIN}),
    "FLUX.2, fused by diffusers": Keys("flux2-klein", "lokr", {"transformer.": KLEIN_FUSED}),
    # InvokeAI, ModelTC/Qwen-Image-Lightning, musubi-tuner, DiffSynth-Studio
    "Qwen-Image, Lightning": Keys("qwen-image", "kohya", {"": QWEN}),
    "Qwen-Image, kohya with ends": Keys("qwen-image", "kohya", {"lora_unet_": QWEN | QWEN_ENDS}),
    "Qwen-Image, DiffSynth": Keys("qwen-image", "adapter", {"": QWEN}),
    "Qwen-Image, LoKr of factors": Keys("qwen-image", "lokr of factors", {"lora_unet_": QWEN}),
    "Qwen-Image, ComfyUI": Keys("qwen-image", "peft with alpha", {"diffusion_model.": QWEN}),
    # InvokeAI, diffusers' tests of Z-Image, mold
    "Z-Image, VideoX-Fun": Keys("z-image", "kohya", {"lora_unet__": Z_ATTENTION | Z_REST}),
    "Z-Image, kohya": Keys("z-image", "kohya", {"lora_unet_": Z_ATTENTION | Z_OUT | Z_REST}),
    "Z-Image, fused": Keys("z-image", "peft", {"diffusion_model.": Z_FUSED}),
    "Z-Image, fused, kohya": Keys("z-image", "kohya", {"lora_unet_": Z_FUSED}),
    "Z-Image, with dots": Keys("z-image", "dots", {"": Z_DOTS | Z_OUT}),
    "Z-Image, DoRA with Qwen3": Keys(
        "z-image", "dora by columns", {"base_model.model.transformer.": Z_ATTENTION, "text_encoder.model.": QWEN3}
    ),
    "Z-Image, nested prefixes": Keys("z-image", "peft", {"transformer.diffusion_model.": Z_ATTENTION}),
    "Z-Image, LoKr": Keys("z-image", "lokr with dora", {"diffusion_model.": Z_ATTENTION}),
    "Z-Image, kohya with Qwen3": Keys("z-image", "kohya", {"lora_unet_": Z_REST, "lora_te_": QWEN3}),
    # kohya-ss/sd-scripts, LyCORIS, AUTOMATIC1111/stable-diffusion-webui#8360, ComfyUI's comfy/lora.py
    "SD 1.5, kohya": Keys("sd15", "kohya", {"lora_unet_": SD, "lora_te_": CLIP_L}),
    "SD 1.5, LoCon": Keys("sd15", "kohya", {"lora_unet_": SD | SD_CONVOLUTIONS}),
    "SD 1.5, LoHa": Keys("sd15", "loha", {"lora_unet_": SD | SD_CONVOLUTIONS, "lora_te_": CLIP_L}),
    "SD 1.5, LoKr": Keys("sd15", "lokr", {"lycoris_": SD | SD_CONVOLUTIONS}),
    "SD 1.5, whole differences": Keys("sd15", "whole", {"lora_unet_": SD_CONVOLUTIONS}),
    "SD 1.5, diffusers": Keys("sd15", "peft", {"unet.": SD, "text_encoder.": CLIP_L}),
    "SD 1.5, diffusers of 2023": Keys("sd15", "processors", {"unet.": SD_PROCESSORS}),
    "SD 1.5, text encoder of 2023": Keys("sd15", "linear_layer", {"text_encoder.": CLIP_L}),
    "SD 1.5, DoRA of PEFT": Keys("sd15", "dora by rows", {"base_model.model.unet.": SD}),
    "SDXL, kohya": Keys("sdxl", "kohya", {"lora_unet_": XL, "lora_te1_": CLIP_L, "lora_te2_": CLIP_G}),
    "SDXL, LoCon": Keys("sdxl", "kohya", {"lora_unet_": XL_CONVOLUTIONS}),
    "SDXL, diffusers": Keys("sdxl", "peft", {"unet.": XL_DIFFUSERS, "text_encoder_2.": CLIP_G}),
    "SDXL, DoRA": Keys("sdxl", "dora by columns", {"lora_unet_": XL_DIFFUSERS}),
    "SDXL, OneTrainer": Keys("sdxl", "kohya", {"unet.": XL_DIFFUSERS, "clip_l.": CLIP_L, "clip_g.": CLIP_G},
                             ("bundle_emb.ink.clip_l",), {"bundle_emb.ink.clip_l": (2, 768)}),
    # kohya-ss/sd-scripts, diffusers' converters
    "SD 3, kohya": Keys("sd35-medium", "kohya", {"lora_unet_": SD3, "lora_te1_": CLIP_L, "lora_te3_": T5}),
    "Krea 2, kohya": Keys("krea2", "kohya", {"lora_unet_": KREA}),
    "Krea 2, ai-toolkit": Keys("krea2", "peft", {"diffusion_model.": KREA}),
    "Lumina 2": Keys("lumina2", "peft", {"diffusion_model.": LUMINA}),
    "Chroma": Keys("chroma", "kohya", {"lora_unet_": CHROMA}),
}  # fmt: skip
