"""The families of models: their configs, as JSON in this folder, and detecting the family of a single file.

A diffusers folder has its configs. A single file has none: its family is detected from the names and shapes in its
header, and `config_folder` has the configs. Reads only headers and JSON: no weights, no pickles, and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, ModelUnsafe
from sdcli.files.json_files import load_json, read_bounded
from sdcli.models.families import flow, marks
from sdcli.models.families.header import PICKLES, Entry, Header, read_header, refuse_pickle, what_instead

__all__ = ["PICKLES", "Entry", "Header", "read_header", "refuse_pickle"]

HERE = Path(__file__).parent
NAMES = (
    *("sd15", "sd21-base", "sd21-v", "sd-turbo", "sdxl", "sdxl-turbo"),
    *("sd15-inpaint", "sd2-inpaint", "sdxl-inpaint"),
    *("sd15-v", "sdxl-v", "sd15-v-zsnr", "sd21-v-zsnr", "sdxl-v-zsnr"),
    "ldm-imagenet",
    *flow.FAMILIES,
)
CLIP_MERGES = HERE / "clip" / "merges.txt"
"""OpenAI CLIP's byte-pair merges, which all Stable Diffusion models share (MIT licence, in the same folder)."""

QWEN = HERE / "qwen"
"""The folder with the merges of Qwen's tokenizer (Apache-2.0, see NOTICE there)."""

STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers call the weights of a component
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLASSES = "cond_stage_model.embedding."
_INCOMPLETE = "download the complete folder again: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/"


def config_folder(family: str) -> Path:
    """Return the folder with a family's configs, in diffusers' layout. Raises ModelNotFound."""
    if family not in NAMES:
        raise ModelNotFound(f"no model family {family!r}", f"the families are {', '.join(NAMES)}")
    return HERE / family


VARIANTS = ("fp16", "bf16")
"""Variants that are loaded if there are no default weights: the same weights in another precision."""


def component_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the `.safetensors` files of a component: those of `variant`, or the default ones, or those of VARIANTS.

    If there are both shards and a whole file, diffusers takes the shards, and transformers the whole file. Raises
    ModelUnsafe if there are only pickles, and ModelCorrupt if there are no weights or a shard is missing.
    """
    for wanted in dict.fromkeys((variant, None, *VARIANTS)):
        for stem in STEMS:
            whole = folder / (f"{stem}.{wanted}.safetensors" if wanted else f"{stem}.safetensors")
            index = folder / f"{stem}.safetensors.index.{f'{wanted}.' if wanted else ''}json"
            if index.exists() and (shards_first(stem) or not whole.exists()):
                return _shards(index)
            if whole.exists():
                return [whole]
    for stem in STEMS:
        if (folder / f"{stem}.gguf").exists():
            return [folder / f"{stem}.gguf"]
    raise _no_weights(folder)


def shards_first(stem: str) -> bool:
    """Whether shards are used if there is a whole file too."""
    return stem == STEMS[0]


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        refuse_pickle(pickles[0])
    others = sorted({match[1] for each in folder.glob("*.safetensors") if (match := re.fullmatch(_VARIANT, each.name))})
    if others:
        named = ", ".join(others)
        hint = f'use them with variant = "{others[0]}" in the entry of the model: sdcli models add NAME FOLDER'
        return ModelCorrupt(f"{folder} only has the weights of the variant {named}", hint)
    return ModelCorrupt(f"{folder} has no .safetensors weights", "download the complete folder again")


_VARIANT = rf"(?:{'|'.join(STEMS)})\.(\w+)(?:-\d+-of-\d+)?\.safetensors"


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ModelCorrupt(f"{index} lists no shards", _INCOMPLETE)
    shards = [index.parent / name for name in sorted(set(listed.values()))]
    for shard in shards:
        if shard.parent != index.parent or shard.name in ("", ".."):
            raise ModelUnsafe(f"{index} refers to {shard}, outside its folder", "use a model from a trusted source")
        refuse_pickle(shard)
        if not _is_file(shard):
            raise ModelCorrupt(f"{shard} is missing", f"download it again; it is listed in {index.name}")
    return shards


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_json(path: Path, hint_if_missing: str = _INCOMPLETE) -> dict[str, Any]:
    """Read the JSON object in a config file. Raises ModelCorrupt if it is missing or invalid."""
    try:
        value = load_json(path)
    except FileNotFoundError:
        raise ModelCorrupt(f"{path} is missing", hint_if_missing) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path} is not a JSON object", _INCOMPLETE)
    return value


def _unreadable(path: Path, error: OSError | ValueError) -> ModelCorrupt:
    try:
        instead = what_instead(read_bounded(path)[:64])
    except (OSError, ValueError):
        instead = None
    if instead is not None and not instead[0].startswith("JSON"):
        return ModelCorrupt(f"{path} is {instead[0]}, not JSON", instead[1])
    return ModelCorrupt(f"{path} cannot be read: {error}", _INCOMPLETE)


def check_has_vae(path: Path, tensors: Iterable[str]) -> None:
    """Raise ModelCorrupt if a single file with these tensors has no VAE."""
    if not any(name.startswith(VAE) for name in tensors):
        hint = "add one: --part vae=FILE.safetensors, or --part vae=FOLDER"
        raise ModelCorrupt(f"{path} has no VAE ({VAE}*)", hint)


def keeps_float32(vae: Mapping[str, Any], dtype: str) -> bool:
    """Whether the VAE of this config computes in float32 in a model of `dtype`.

    Configs of VAEs that overflow in float16 have `force_upcast`. A VAE with a codebook would select wrong entries at
    low precision, and torch does not compute the distances in bfloat16 on the CPU.
    """
    return "num_vq_embeddings" in vae or (dtype == "float16" and bool(vae.get("force_upcast")))


def detect(path: Path) -> str:
    """Detect the family of a single file from its header: a whole model, or a transformer of flow matching.

    How it was trained does not show in names and shapes: see `marks`. An SD 2.x file without marks is assumed to be 2.1
    at 768 pixels, which predicts v; others predict noise. A distilled model looks like the model it was distilled from.
    A family in models.toml takes precedence over detection.

    The first convolution of an inpainting U-Net has 9 input channels: latents, mask, and the masked image's latents.
    The U-Net of latent diffusion of ImageNet has 3, and attends to 512 features per class.

    Raises ModelError for another layout, and what `read_header` raises.
    """
    header = read_header(path)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    family = flow.detect(path.name, shapes)
    if family is not None:
        return family
    width = shapes.get(UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    width = width or shapes.get(UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight")
    kind = _KINDS.get(width[1] if width and len(width) == 2 else 0)
    channels = next(iter(shapes.get(UNET + "input_blocks.0.0.weight", ())[1:2]), 0)
    known = _BY_CHANNELS.get(channels, {}).get(kind)
    if known is None:
        raise ModelError(f"{path} is not a supported model: {_what(shapes)}", _SUPPORTED)
    found = marks.read(path, header)
    family = known[found.predicts_v]
    if family is None:
        raise ModelError(
            f"{path} predicts v, which is not supported for this kind of model", "use a model that predicts noise"
        )
    family = f"{family}-zsnr" if found.zero_snr else family
    if found.values:
        folder = config_folder(family)
        scheduler, vae = folder / "scheduler" / "scheduler_config.json", folder / "vae" / "config.json"
        marks.check_values(path, found.values, read_json(scheduler), read_json(vae))
    return family


_KINDS = {512: "ldm-imagenet", 768: "sd15", 1024: "sd21", 2048: "sdxl"}
"""By the number of features per token that the U-Net attends to."""
_BY_CHANNELS: Mapping[int, Mapping[str | None, Mapping[bool | None, str | None]]] = {
    3: {"ldm-imagenet": {None: "ldm-imagenet", False: "ldm-imagenet", True: None}},
    4: {
        "sd15": {None: "sd15", False: "sd15", True: "sd15-v"},
        "sd21": {None: "sd21-v", False: "sd21-base", True: "sd21-v"},
        "sdxl": {None: "sdxl", False: "sdxl", True: "sdxl-v"},
    },
    9: {
        "sd15": {None: "sd15-inpaint", False: "sd15-inpaint", True: None},
        "sd21": {None: "sd2-inpaint", False: "sd2-inpaint", True: None},
        "sdxl": {None: "sdxl-inpaint", False: "sdxl-inpaint", True: None},
    },
}
"""The families by the U-Net's input channels, the kind, and whether the file records v-prediction."""
_SUPPORTED = (
    "a single file must be a whole SD 1.x, SD 2.x or SDXL base or inpainting model, or LDM's of ImageNet classes, "
    "in the original key layout; or a transformer of Z-Image, FLUX.1, FLUX.2 [klein], SD 3, Qwen-Image, Krea 2, "
    "Chroma, Lumina-Image 2.0, Sana or PixArt"
)


def _what(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe a file that is not a supported model."""
    names = list(shapes)
    if not any(name.startswith(UNET) for name in names):
        for words, starts in _WITHOUT_UNET.items():
            if any(name.startswith(starts) for name in names):
                return words
    signs = {
        "lora_": "it is a LoRA, which is used with --lora",
        "double_blocks.": "it is a Flux model",
        "joint_blocks.": "it is an incomplete Stable Diffusion 3 model",
        "control_model.": "it is a ControlNet",
        "down_blocks.": "it is one part of a diffusers folder",
        UNET + "input_blocks.": "it has another kind of U-Net (a refiner, an upscaler, a depth model, or a pruned one)",
    }
    for sign, words in signs.items():
        if any(sign in name for name in names):
            return words
    return "its tensor names are unknown"


_WITHOUT_UNET: Mapping[str, tuple[str, ...]] = {
    "it has only EMA weights": ("model_ema.",),
    "it is a VAE, which is only one part of a model": (VAE, "decoder.conv_in.", "decoder.up."),
    "it is a textual inversion embedding": ("emb_params", "string_to_param", "clip_l", "clip_g"),
    "it is a text encoder, which is only one part of a model": ("text_model.", "cond_stage_model.", "conditioner."),
}
"""What a file without a U-Net in the original layout is, by how some tensor's name starts."""
