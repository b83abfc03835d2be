"""The names of a text encoder's tensors in GGUF files, as llama.cpp writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdcli.errors import ModelError
from sdcli.models.loading.weights import Stored

_ARCHITECTURES = {"qwen3": "QWEN3", "qwen2vl": "QWEN2VL", "t5encoder": "T5ENCODER", "t5": "T5ENCODER"}
_ARCHITECTURES |= {"qwen3vl": "QWEN3VL", "gemma2": "GEMMA2"}
_SUFFIXES = (".weight", ".bias")
_UNUSED = ("output.weight", "rope_freqs.weight")


def renamed(file: Path, own: Mapping[str, Stored], module: Any, architecture: str) -> Mapping[str, Stored]:
    """Return `own` under the names of transformers. Raises ModelError for an architecture that is not supported."""
    import gguf

    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"{file} has a text encoder of the architecture {architecture}", f"supported are {known}")
    config = getattr(module.config, "text_config", module.config)
    layers = getattr(config, "num_hidden_layers", None) or config.num_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[_ARCHITECTURES[architecture]], layers)
    ours: dict[str, str] = {}
    for name in module.state_dict():
        full = name.removeprefix("language_model.")
        for each in (full, f"model.{full}"):
            theirs = names.get_name(each, try_suffixes=_SUFFIXES)
            if theirs is not None:
                ours.setdefault(theirs, name)
    found = {ours.get(key, key): each for key, each in own.items() if key not in _UNUSED}
    if architecture != "gemma2":
        return found
    return {name: replace(each, view=_less_one) if "norm" in name else each for name, each in found.items()}


def _less_one(weight: Tensor) -> Tensor:
    """Gemma's norms multiply by 1 + weight; llama.cpp stores the sum."""
    return weight - 1
