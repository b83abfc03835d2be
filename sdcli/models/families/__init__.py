"""The families of Stable Diffusion: their configs, as JSON in this folder, and detecting the family of a single file.

A diffusers folder has its configs. A single `.safetensors` file in the CompVis/SGM key layout has none: its family is
detected from the names and shapes in its header, and `config_folder` has the configs. Reads only headers and JSON: no
weights, no pickles, and no torch.
"""

from __future__ import annotations

import math
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, ModelUnsafe
from sdcli.files.json_files import load_json, parse_json

HERE = Path(__file__).parent
NAMES = (
    *("sd15", "sd21-base", "sd21-v", "sd-turbo", "sdxl", "sdxl-turbo", "sdxl-v"),
    *("sd15-inpaint", "sd2-inpaint", "sdxl-inpaint"),
    "ldm-imagenet",
)
CLIP_MERGES = HERE / "clip" / "merges.txt"
"""OpenAI CLIP's byte-pair merges, which all Stable Diffusion models share (MIT licence, in the same folder)."""

STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers call the weights of a component
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLASSES = "cond_stage_model.embedding."
MAX_HEADER = 100_000_000  # the limit of the safetensors format itself

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_DOWNLOAD_AGAIN = "download the file again: it is damaged or incomplete"
_INCOMPLETE = "download the complete folder again: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/"


@dataclass(frozen=True)
class Entry:
    """A tensor of a `.safetensors` file: its dtype in the format's notation, its shape and its offset."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """The offset of its first byte in the file."""


@dataclass(frozen=True)
class Header:
    """The header of a `.safetensors` file: its tensors by name, and its metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def config_folder(family: str) -> Path:
    """Return the folder with a family's configs, in diffusers' layout. Raises ModelNotFound."""
    if family not in NAMES:
        raise ModelNotFound(f"no model family {family!r}", f"the families are {', '.join(NAMES)}")
    return HERE / family


def refuse_pickle(path: Path) -> None:
    """Raise ModelUnsafe for a file with the suffix of a pickle."""
    if path.suffix.lower() in PICKLES:
        raise ModelUnsafe(
            f"{path} is a pickle, and loading one can run code",
            "use the .safetensors file of the same model, or convert it with: "
            f"sdcli models convert {shlex.quote(str(path))} {shlex.quote(f'{path.stem}.safetensors')}",
        )


def component_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the `.safetensors` files of a component: those of `variant`, or the default ones, or fp16.

    Raises ModelUnsafe if there are only pickles, and ModelCorrupt if there are no weights or a shard is missing.
    """
    for wanted in dict.fromkeys((variant, None, "fp16")):
        for stem in STEMS:
            whole = folder / (f"{stem}.{wanted}.safetensors" if wanted else f"{stem}.safetensors")
            index = folder / f"{stem}.safetensors.index.{f'{wanted}.' if wanted else ''}json"
            if whole.exists():
                return [whole]
            if index.exists():
                return _shards(index)
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        refuse_pickle(pickles[0])
    raise ModelCorrupt(f"{folder} has no .safetensors weights", "download the complete folder again")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map", {})
    shards = [index.parent / name for name in sorted(set(map(str, names.values())))]
    for shard in shards:
        if shard.parent != index.parent:
            raise ModelUnsafe(f"{index} refers to {shard}, outside its folder", "use a model from a trusted source")
        refuse_pickle(shard)
        if not shard.exists():
            raise ModelCorrupt(f"{shard} is missing", f"download it again; it is listed in {index.name}")
    return shards


def read_header(path: Path) -> Header:
    """Read the header of a `.safetensors` file and check it against the size of the file.

    Raises ModelUnsafe for a pickle, ModelNotFound, and ModelCorrupt for an invalid or truncated file.
    """
    refuse_pickle(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            if length > min(MAX_HEADER, size - 8):
                raise ModelCorrupt(f"{path} is not a safetensors file, or its header is truncated", _DOWNLOAD_AGAIN)
            raw = file.read(length)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error
    try:
        return _parse(parse_json(raw), 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(
            f"{path}: {error}" if str(error) else f"{path} has an invalid header", _DOWNLOAD_AGAIN
        ) from error


def _parse(listed: dict[str, Any], data_start: int, size: int) -> Header:
    """Parse the header. Raises ValueError unless the tensors fill the file without gaps."""
    metadata = listed.pop("__metadata__", {})
    tensors, end = {}, 0
    for name, facts in sorted(listed.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape, (begin, finish) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"tensor {name} has the shape {list(shape)}")
        if begin != end or (dtype in _BYTES and finish - begin != _BYTES[dtype] * math.prod(shape)):
            raise ValueError(f"tensor {name} has wrong offsets")
        tensors[name], end = Entry(dtype, shape, data_start + begin), finish
    if data_start + end != size:
        raise ValueError(f"the file has {size - data_start} bytes of tensors, and its header lists {end}")
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def read_json(path: Path, hint_if_missing: str = _INCOMPLETE) -> dict[str, Any]:
    """Read the JSON object in a config file. Raises ModelCorrupt if it is missing or invalid."""
    try:
        value = load_json(path)
    except FileNotFoundError:
        raise ModelCorrupt(f"{path} is missing", hint_if_missing) from None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}", _INCOMPLETE) from error
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path} is not a JSON object", _INCOMPLETE)
    return value


def keeps_float32(vae: Mapping[str, Any], dtype: str) -> bool:
    """Whether the VAE of this config computes in float32 in a model of `dtype`.

    Configs of VAEs that overflow in float16 have `force_upcast`. A VAE with a codebook would select wrong entries at
    low precision, and torch does not compute the distances in bfloat16 on the CPU.
    """
    return "num_vq_embeddings" in vae or (dtype == "float16" and bool(vae.get("force_upcast")))


def detect(path: Path) -> str:
    """Detect the family of a single `.safetensors` file in the CompVis/SGM layout from its header.

    v-prediction does not show in names and shapes. It is read from the metadata (`modelspec.prediction_type`) or a
    `v_pred` tensor. If an SD 2.x file has neither, `global_step` decides, as in diffusers (875,000 is the 2.0 base
    model, which predicts noise); otherwise the file is assumed to be 2.1 at 768 pixels, which predicts v. SDXL, SD 1.x
    and inpainting models predict noise by default. A distilled model looks like the model it was distilled from. A
    family in models.toml takes precedence over detection.

    The first convolution of an inpainting U-Net has 9 input channels: latents, mask, and the masked image's latents.
    The U-Net of latent diffusion of ImageNet has 3, and attends to 512 features per class.

    Raises ModelError for another layout, and what `read_header` raises.
    """
    header = read_header(path)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    width = shapes.get(UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    width = width or shapes.get(UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight")
    kind = _KINDS.get(width[1] if width and len(width) == 2 else 0)
    channels = next(iter(shapes.get(UNET + "input_blocks.0.0.weight", ())[1:2]), 0)
    known = _BY_CHANNELS.get(channels, {}).get(kind)
    if known is None:
        raise ModelError(f"{path} is not a supported model: {_what(shapes)}", _SUPPORTED)
    family = known[_predicts_v(path, header)]
    if family is None:
        raise ModelError(
            f"{path} predicts v, which is not supported for this kind of model", "use a model that predicts noise"
        )
    return family


_KINDS = {512: "ldm-imagenet", 768: "sd15", 1024: "sd21", 2048: "sdxl"}
"""By the number of features per token that the U-Net attends to."""
_BY_CHANNELS: Mapping[int, Mapping[str | None, Mapping[bool | None, str | None]]] = {
    3: {"ldm-imagenet": {None: "ldm-imagenet", False: "ldm-imagenet", True: None}},
    4: {
        "sd15": {None: "sd15", False: "sd15", True: None},
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
    "in the original key layout"
)


def _what(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe a file that is not a supported model."""
    names = list(shapes)
    signs = {
        "lora_": "it is a LoRA, which is used with --lora",
        "double_blocks.": "it is a Flux model",
        "joint_blocks.": "it is a Stable Diffusion 3 model",
        "control_model.": "it is a ControlNet",
        "down_blocks.": "it is one part of a diffusers folder",
        UNET + "input_blocks.": "it has another kind of U-Net (a refiner, an upscaler, a depth model, or a pruned one)",
    }
    for sign, words in signs.items():
        if any(sign in name for name in names):
            return words
    return "its tensor names are unknown"


def _predicts_v(path: Path, header: Header) -> bool | None:
    """Whether the file records v-prediction; None if it records nothing."""
    recorded = header.metadata.get("modelspec.prediction_type", "").lower()
    if recorded:
        return recorded.startswith("v")
    if "v_pred" in header.tensors:
        return True
    step = header.tensors.get("global_step")
    if step is not None and step.dtype == "I64" and math.prod(step.shape) == 1:
        with path.open("rb") as file:
            file.seek(step.start)
            return False if struct.unpack("<q", file.read(8))[0] == 875_000 else None
    return None
