"""The families of transformers: detecting them in a file, and the parts that a file has. DiT is not among them.

Published as one file, or as one file for each part: the transformer, the text encoders and the VAE. Knows only names
and shapes of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sdcli.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

NETWORK_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_TEXT = re.compile(r"text_encoders\.(\w+?)\.(?:transformer\.)?")
OF_OTHERS = ("first_stage_model.", "vae.", "text_encoders.", "model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True)
class Kind:
    """Families with the same class of transformer.

    `signs` are tensors that only such files have, in the original layout and in diffusers'. `encoders` are the parts
    with the text encoders, and what their names have in a file of several parts. `files` are usual names of files.
    """

    signs: tuple[str, ...]
    encoders: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A family: its kind, and a tensor that tells it from the others of the kind, of any shape or of this one.

    `word` is in the names of files whose tensors have the shapes of another family too, and `mark` is a name in a file
    that does without the word.
    """

    kind: str
    tensor: str = ""
    shape: tuple[int, ...] = ()
    word: str = ""
    mark: str = ""


_QWEN_4B = {"text_encoder": "qwen_3_4b.safetensors"}
_AE = {"vae": "ae.safetensors"}
_CLIPS = {"text_encoder": "clip_l.safetensors", "text_encoder_2": "clip_g.safetensors"}
_T5 = "t5xxl_fp16.safetensors"
_GEMMA = {"text_encoder": "gemma_2_2b_fp16.safetensors"}
_QWEN_VAE = {"vae": "qwen_image_vae.safetensors"}
KINDS: Mapping[str, Kind] = {
    "z_image": Kind(("cap_pad_token",), {"text_encoder": "qwen"}, {**_QWEN_4B, **_AE}),
    "flux2": Kind(
        ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
        {"text_encoder": "qwen"},
        {**_QWEN_4B, "vae": "flux2-vae.safetensors"},
    ),
    "chroma": Kind(("distilled_guidance_layer.in_proj.weight",), {"text_encoder": "t5"}, {"text_encoder": _T5, **_AE}),
    "flux": Kind(
        ("double_blocks.0.img_mod.lin.weight", "single_transformer_blocks.0.proj_mlp.weight"),
        {"text_encoder": "clip_l", "text_encoder_2": "t5"},
        {"text_encoder": "clip_l.safetensors", "text_encoder_2": _T5, **_AE},
    ),
    "sana": Kind(
        ("attention_y_norm.weight", "blocks.0.mlp.inverted_conv.conv.weight", "caption_norm.weight"),
        {"text_encoder": "gemma"},
        {**_GEMMA, "vae": "dc-ae-f32c32-sana-1.1.safetensors"},
    ),
    # in diffusers' layout the sign of SD 3 is in files of PixArt too
    "pixart": Kind(
        ("y_embedder.y_proj.fc1.weight", "adaln_single.linear.weight"),
        {"text_encoder": "t5"},
        {"text_encoder": _T5, "vae": "sdxl_vae.safetensors"},
    ),
    "sd3": Kind(
        ("joint_blocks.0.x_block.attn.qkv.weight", "pos_embed.proj.weight"),
        {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"},
        {**_CLIPS, "text_encoder_3": _T5, "vae": "sd3_vae.safetensors"},
    ),
    "qwen_image": Kind(
        ("txt_norm.weight",),
        {"text_encoder": "qwen"},
        {"text_encoder": "qwen_2.5_vl_7b.safetensors", **_QWEN_VAE},
    ),
    "krea2": Kind(
        ("txtfusion.projector.weight", "text_fusion.projector.weight"),
        {"text_encoder": "qwen"},
        {"text_encoder": "qwen3vl_4b_bf16.safetensors", **_QWEN_VAE},
    ),
    # Z-Image has the same tensors and more
    "lumina2": Kind(
        ("cap_embedder.0.weight", "time_caption_embed.caption_embedder.0.weight"),
        {"text_encoder": "gemma"},
        {**_GEMMA, **_AE},
    ),
}
OPTIONAL = ("text_encoder_3",)
"""Parts that a model of the kind can be used without."""

FAMILIES: Mapping[str, Family] = {
    "z-image-turbo": Family("z_image", word="turbo"),
    "z-image": Family("z_image"),
    "flux2-klein-base": Family("flux2", "txt_in.weight", (3072, 7680), "base"),
    "flux2-klein": Family("flux2", "txt_in.weight", (3072, 7680)),
    "flux2-klein-base-9b": Family("flux2", word="base"),
    "flux2-klein-9b": Family("flux2"),
    "flux-kontext": Family("flux", "guidance_in.in_layer.weight", word="kontext"),
    "flux-dev": Family("flux", "guidance_in.in_layer.weight"),
    "flux-schnell": Family("flux"),
    "sd35-medium": Family("sd3", "joint_blocks.0.x_block.attn2.ln_q.weight"),
    "sd35-turbo": Family("sd3", "context_embedder.weight", (2432, 4096), "turbo"),
    "sd35-large": Family("sd3", "context_embedder.weight", (2432, 4096)),
    "sd3-medium": Family("sd3"),
    "qwen-image-edit": Family("qwen_image", word="2511", mark="__index_timestep_zero__"),
    "qwen-image-edit-2509": Family("qwen_image", word="2509"),
    "qwen-image": Family("qwen_image"),
    "chroma": Family("chroma"),
    "krea2-turbo": Family("krea2", word="turbo"),
    "krea2": Family("krea2"),
    "lumina2": Family("lumina2"),
    "sana": Family("sana"),
    "pixart-alpha": Family("pixart", "csize_embedder.mlp.0.weight"),
    "pixart-sigma": Family("pixart"),
}
"""In this order: the first one of a kind whose tensor and word a file has is that of the file."""

_DIFFUSERS = {
    "csize_embedder.mlp.0.weight": "adaln_single.emb.resolution_embedder.linear_1.weight",
    "txt_in.weight": "context_embedder.weight",
    "guidance_in.in_layer.weight": "time_text_embed.guidance_embedder.linear_1.weight",
    "joint_blocks.0.x_block.attn2.ln_q.weight": "transformer_blocks.0.attn2.norm_q.weight",
}
"""Names in diffusers' layout of the tensors that tell families apart, where they differ."""


def kind_of(names: Collection[str]) -> str | None:
    """Return the kind of the transformer in a file with tensors of these names, or None for another file."""
    for kind, each in KINDS.items():
        if any(prefix + sign in names for prefix in NETWORK_PREFIXES for sign in each.signs):
            return kind
    return None


def detect(name: str, shapes: Shapes) -> str | None:
    """Return the family of a file by its tensors, and by its `name` if there are several with the same shapes.

    Returns None for a file without a transformer of KINDS. Raises ModelError for a transformer that is not supported.
    """
    kind = kind_of(shapes)
    if kind is None:
        return None
    _refuse(name, kind, shapes)
    return _family_of(kind, name, shapes)


def _family_of(kind: str, name: str, shapes: Shapes) -> str:
    return next(family for family, each in FAMILIES.items() if each.kind == kind and _is(each, name, shapes))


def _is(family: Family, name: str, shapes: Shapes) -> bool:
    if family.word not in name.lower() and not (family.mark and _first(shapes, family.mark) is not None):
        return False
    found = [_first(shapes, each) for each in (family.tensor, _DIFFUSERS.get(family.tensor, family.tensor))]
    return not family.tensor or any(each is not None and each == (family.shape or each) for each in found)


_UNSUPPORTED = {
    "nerf_blocks.": "it is Chroma1-Radiance, which has no VAE",
    "cfg_embedder.": "it is Sana Sprint",
    "control_img_": "it is a ControlNet",
    "controlnet_": "it is a ControlNet",
}
_PATCHES = 4096
"""Those of the position embedding of a PixArt of 1024 pixels."""


def _refuse(name: str, kind: str, shapes: Shapes) -> None:
    what = next((words for sign, words in _UNSUPPORTED.items() if any(sign in each for each in shapes)), None)
    guided = any("guidance_in." in each or "guidance_embedder." in each for each in shapes)
    if guided and kind in ("flux2", "sana"):
        what = "it is FLUX.2 [dev]" if kind == "flux2" else "it is Sana Sprint"
    inputs = [_first(shapes, each) for each in ("img_in.weight", "x_embedder.weight")]
    if kind == "flux" and any(each and each[1] > 64 and each[1] % 64 == 0 for each in inputs):
        what = "it is a Flux model that takes an image besides the text"
    positions = _first(shapes, "pos_embed")
    if kind == "pixart" and positions is not None and positions[-2] != _PATCHES:
        what = f"it is a PixArt of {round(positions[-2] ** 0.5) * 16} pixels"
    if what is not None:
        raise ModelError(f"{name} is not a supported model: {what}", _SUPPORTED)
    if kind == "qwen_image" and "edit" in name.lower() and _family_of(kind, name, shapes) == "qwen-image":
        what = f"{name} is the first Qwen-Image-Edit, which is not supported, or a later one without its version"
        raise ModelError(what, "if it is a later one, put 2509 or 2511 into its name, or add family to its entry")


_SUPPORTED = (
    "supported are Z-Image, FLUX.1 dev, schnell and Kontext, FLUX.2 [klein], Stable Diffusion 3 and 3.5, Qwen-Image, "
    "Qwen-Image-Edit-2509 and -2511, Krea 2, Chroma1, Lumina-Image 2.0, Sana, and PixArt of 1024 pixels"
)


def _first(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    return next((shapes[prefix + name] for prefix in NETWORK_PREFIXES if prefix + name in shapes), None)


def own_names(names: Collection[str], part: str, encoder: str = "") -> list[str]:
    """Return the names of a part's tensors in a file with tensors of these names; none if it does not have the part."""
    prefix = prefix_of(names, part, encoder)
    if prefix is None:
        return []
    return [each for each in names if each.startswith(prefix) and (prefix or not each.startswith(OF_OTHERS))]


def prefix_of(names: Iterable[str], part: str, encoder: str = "") -> str | None:
    """Return the prefix of a part's tensors in a file with tensors of these names, or None if the file has others only.

    A text encoder has `encoder` in its name, such as `clip_l`. A file with one part has no prefix.
    """
    names = list(names)
    if part.startswith("text_encoder"):
        for match in filter(None, map(_TEXT.match, names)):
            if encoder in match[1]:
                return match[0]
        usual: tuple[str, ...] = ("",)
    else:
        usual = VAE_PREFIXES if part == "vae" else NETWORK_PREFIXES
    for prefix in filter(None, usual):
        if any(name.startswith(prefix) for name in names):
            return prefix
    if part not in ("transformer", "unet") and (kind_of(names) or any(name.startswith(OF_OTHERS) for name in names)):
        return None
    return ""
