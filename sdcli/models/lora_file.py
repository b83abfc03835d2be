"""What is in a LoRA file: the names of its tensors, grouped by the layer that they change. Reads headers, no weights.

A LoRA here is every kind of change that such files hold: LoRA and LoCon (Hu et al. 2021, "LoRA"), LoHa and LoKr
(Yeh et al. 2023, "Navigating Text-To-Image Customization", LyCORIS), DoRA (Liu et al. 2024, "DoRA"), (IA)³ (Liu et al.
2022), and whole differences. The names are those of kohya-ss/sd-scripts, LyCORIS, diffusers and PEFT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcli.errors import ModelError
from sdcli.files.user_files import stamp
from sdcli.models import families

# The ends of tensors' names, and the tensor's role in its group.
_ROLES: Mapping[str, str] = {
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1",
    ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
    ".lokr_t2": "lokr_t2",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".on_input": "on_input",
    ".weight": "weight",
}
_PEFT_CONFIG = "adapter_config.json"
_ENDS = sorted(_ROLES, key=len, reverse=True)
_FACTOR = re.compile(r"\.lora_(A|B|down|up)(?:\.\w+)?\.(weight|bias)$|\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?$")
"""The factors of a LoRA and the norms of DoRA, after which PEFT can write the name of the adapter."""
_FACTORS = {
    ("A", "weight"): "down",
    ("down", "weight"): "down",
    ("B", "weight"): "up",
    ("up", "weight"): "up",
    ("B", "bias"): "up_bias",
    ("up", "bias"): "up_bias",
    (None, None): "magnitude",
}
_XLABS = re.compile(r"_lora[12](\.(down|up)\.weight)$")
"""XLabs' names, whose number tells image and text apart."""
_OTHER = re.compile(r"\.(oft_\w+|a[12]\.weight|b[12]\.weight|reshape_weight|bias_(indices|values|size)|set_weight)$")
"""Ends of tensors of kinds that are not supported: OFT, BOFT, GLoRA, sparse biases."""
_MODEL_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
_CROSS = re.compile(r"(attn2[._]to_k|attn2[._]processor[._]to_k)$")
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "flux": ("FLUX.1",),
    "flux2": ("FLUX.2", "FLUX.1"),
    "chroma": ("Chroma", "FLUX.1"),
    "sd3": ("SD 3", "FLUX.1", "Qwen-Image"),
    "qwen_image": ("Qwen-Image",),
    "z_image": ("Z-Image",),
    "lumina2": ("Lumina 2", "Z-Image"),
    "krea2": ("Krea 2",),
}
"""What the names in a LoRA for each architecture can look like; the first is its name."""
MADE_FOR = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
TRANSFORMERS = {
    "FLUX.2": re.compile(r"to_qkv_mlp_proj|single_stream_modulation"),  # it and Chroma have all names of FLUX.1
    "Chroma": re.compile(r"distilled_guidance_layer"),
    "FLUX.1": re.compile(r"(double_blocks|single_blocks)[._]\d|single_transformer_blocks[._]\d"),
    "SD 3": re.compile(r"joint_blocks[._]\d"),
    "Qwen-Image": re.compile(r"transformer_blocks[._]\d+[._]img_mlp"),
    "Z-Image": re.compile(r"context_refiner[._]\d|noise_refiner[._]\d"),
    "Krea 2": re.compile(r"txtfusion|text_fusion|blocks[._]\d+[._]attn[._](w[qkvo]|gate|to_gate)$"),
    "Anima": re.compile(r"blocks[._]\d+[._](self|cross)_attn[._](q|k|v|output)_proj$|llm_adapter"),
    "Wan": re.compile(r"blocks[._]\d+[._](self|cross)_attn[._][qkvo]$"),
}
"""The families of transformers by names that only their LoRAs have."""


@dataclass(frozen=True)
class Scaling:
    """How PEFT scales the changes of a part of a model."""

    alpha: float | None = None
    """Alpha of layers whose own the file does not have; None is the rank."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Alphas of layers by a pattern of their names, which precede `alpha` (PEFT's alpha_pattern)."""
    rank_stabilized: bool = False
    """Whether the scale is alpha / √rank (Kalajdzievski 2023, "rsLoRA") instead of alpha / rank."""

    def alpha_of(self, layer: str) -> float | None:
        """Return the alpha of a layer without a tensor of it."""
        matches = (value for pattern, value in self.alphas.items() if re.search(rf"(^|\.){pattern}$", layer))
        return next(matches, self.alpha)


@dataclass(frozen=True)
class LoraFile:
    """The header of a LoRA file. `groups` has the tensors by layer, as the file names it, and role."""

    path: Path
    groups: Mapping[str, Mapping[str, str]]
    unknown: tuple[str, ...]
    """Tensors of no known role."""
    shapes: Mapping[str, tuple[int, ...]]
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    """How layers are scaled, by the part that their names begin with; "" is all others."""

    words: frozenset[str] = frozenset()
    """The words of the captions that it was trained with, in lower case, as far as sd-scripts' metadata tells."""

    def scaling_of(self, layer: str) -> Scaling:
        """Return how a layer is scaled besides its tensors."""
        part = max((part for part in self.scalings if layer.startswith(part)), key=len, default=None)
        return Scaling() if part is None else self.scalings[part]

    @property
    def is_control(self) -> bool:
        """Whether it is one of FLUX.1's control LoRAs, for a transformer with a control picture as further channels."""
        return any(name.endswith(".query_norm.scale") for name in self.unknown)

    @property
    def made_for(self) -> str | None:
        """The family of models that it is made for, as far as its names and shapes tell."""
        for name, pattern in TRANSFORMERS.items():
            if any(pattern.search(layer) for layer in self.groups):
                return name
        return None if self.token_features is None else MADE_FOR.get(self.token_features)

    @property
    def token_features(self) -> int | None:
        """The features per token of the text that it is made for, if it changes a cross-attention."""
        for layer, tensors in self.groups.items():
            if _CROSS.search(layer) and "down" in tensors:
                return self.shapes[tensors["down"]][1]
        return None


def is_lora(header: families.Header) -> bool:
    """Whether the tensors of a file are those of a LoRA."""
    ends = tuple(end for end in _ENDS if _ROLES[end] not in ("weight", "alpha"))
    return any(name.endswith(ends) or _FACTOR.search(name) or _XLABS.search(name) for name in header.tensors)


def kind_of(path: Path) -> str | None:
    """Return the kind of add-on that a file is, "lora" or "embedding", or None. Raises what `read_header` raises."""
    header = families.read_header(path)
    if is_lora(header):
        return "lora"
    shapes = [entry.shape for entry in header.tensors.values()]
    return "embedding" if 0 < len(shapes) <= 2 and all(len(shape) <= 2 for shape in shapes) else None


def read(path: Path) -> LoraFile:
    """Read the header of a LoRA file, once while it is unchanged: each job of a batch asks.

    Raises what `families.read_header` raises, and ModelError for a file that is something else.
    """
    return _read(path, stamp(path), stamp(path.parent / _PEFT_CONFIG))


@lru_cache(maxsize=16)
def _read(path: Path, *stamps: tuple[int, int] | None) -> LoraFile:
    """Read the header; `stamps` change when the file or PEFT's config does."""
    header = families.read_header(path)
    if not is_lora(header) or any(name.startswith(_MODEL_PREFIXES) and ".lora" not in name for name in header.tensors):
        whole = any(name.startswith(_MODEL_PREFIXES) for name in header.tensors)
        what = "a whole model" if whole else "an empty file" if not header.tensors else "no LoRA"
        hint = "use it with -m" if whole else "a LoRA has tensors such as NAME.lora_down.weight"
        raise ModelError(f"{path} is {what}, not a LoRA" if whole else f"{path} is {what}", hint)
    groups: dict[str, dict[str, str]] = {}
    unknown = []
    for name in header.tensors:
        layer, role = _split(name)
        if role is None or _OTHER.search(name):
            unknown.append(name)
        else:
            groups.setdefault(layer, {})[role] = name
    for layer in [layer for layer, tensors in groups.items() if "weight" in tensors and "on_input" not in tensors]:
        unknown.append(groups[layer].pop("weight"))  # `weight` alone has no role: only (IA)³ has it, with on_input
        if not groups[layer]:
            del groups[layer]
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    scalings, words = _scalings(path, header.metadata), _words(header.metadata)
    return LoraFile(path, groups, tuple(unknown), shapes, scalings, words)


def _split(name: str) -> tuple[str, str | None]:
    """Return the layer that a tensor belongs to, and its role, or None if it has no known one."""
    factor = _FACTOR.search(name)
    if factor is not None:
        return name[: factor.start()], _FACTORS.get((factor[1], factor[2]))
    numbered = _XLABS.search(name)
    if numbered is not None:
        return name[: numbered.start(1)], numbered[2]
    end = next((end for end in _ENDS if name.endswith(end)), "")
    return name.removesuffix(end), _ROLES.get(end)


def _scalings(path: Path, metadata: Mapping[str, str]) -> dict[str, Scaling]:
    """Read how the changes are scaled: from diffusers' metadata, or PEFT's adapter_config.json in the same folder.

    diffusers writes the name of the part before each key. LyCORIS writes an alpha that includes its own `rs_lora`.
    """
    adapter = _json(metadata.get("lora_adapter_metadata"))
    if not adapter:
        beside = path.parent / _PEFT_CONFIG
        if path.name == "adapter_model.safetensors" and beside.is_file():
            adapter = dict(families.read_json(beside))
    parts: dict[str, dict[str, Any]] = {}
    for key, value in adapter.items():
        part, dot, name = key.rpartition(".")
        parts.setdefault(part + dot, {})[name] = value
    return {part: _scaling(found) for part, found in parts.items()}


def _scaling(found: Mapping[str, Any]) -> Scaling:
    alpha, pattern = found.get("lora_alpha"), found.get("alpha_pattern")
    return Scaling(
        float(alpha) if isinstance(alpha, int | float) else None,
        {str(key): float(value) for key, value in pattern.items()} if isinstance(pattern, dict) else {},
        found.get("use_rslora") is True,
    )


def _words(metadata: Mapping[str, str]) -> frozenset[str]:
    folders = [each for each in _json(metadata.get("ss_tag_frequency")).values() if isinstance(each, dict)]
    return frozenset(word for tags in folders for tag in tags for word in re.findall(r"\w+", tag.casefold()))


def _json(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
