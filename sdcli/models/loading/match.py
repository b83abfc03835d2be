"""Matches the tensors of files with those of a module, by the names of current and older versions of the libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sdcli.errors import ModelCorrupt
from sdcli.models.loading.weights import Stored

_DOWNLOAD_AGAIN = "download the model's folder again; its parts must belong together"


def within(
    stored: Mapping[str, Stored], module: nn.Module, where: Path, hint: str = _DOWNLOAD_AGAIN
) -> Mapping[str, Stored]:
    """Return the tensors of `stored` by their names in `module`; `where` is the file in messages.

    Raises ModelCorrupt, with the tensor's name, for one that is missing or unknown.
    """
    current = {_current_name(key): each for key, each in stored.items()}
    names = {name: _current_name(name) for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    known = set(names.values())
    unknown = [each.key for key, each in current.items() if key not in known and not _UNUSED.search(key)]
    if unknown:
        raise ModelCorrupt(f"{where}: its config has no tensor {unknown[0]}", hint)
    return {name: pick(current, key, where) for name, key in names.items()}


def _current_name(key: str) -> str:
    """Rename a key to a name that all versions share.

    transformers 4 has a prefix `text_model.` for CLIP, `model.` for language models with a head and none inside of
    Qwen2.5-VL; T5 has one embedding under two names. diffusers before 0.17 had other attention names.
    """
    for prefix in ("text_model.", "model.", "language_model."):
        key = key.removeprefix(prefix)
    key = key.replace("encoder.embed_tokens.", "shared.")
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        key = key.replace(old, new)
    return key


# Unused tensors in files: buffers, the other half of CLIP, the head of a language model, which predicts words, a
# tokenizer that ComfyUI keeps with its weights, and its mark of Qwen-Image-Edit-2511.
_UNUSED = re.compile(
    r"position_ids$|^lm_head\.|num_batches_tracked$|^text_projection\.|^logit_scale$|^vision_model\.|"
    r"^visual_projection\.|^(spiece_model|tekken_model|__index_timestep_zero__)$"
)


def pick(stored: Mapping[str, Stored], key: str, where: Path) -> Stored:
    """Return a tensor. Raises ModelCorrupt if it is missing."""
    if key not in stored:
        raise ModelCorrupt(f"{where} has no tensor {key}", "download the model again, or use a complete one")
    return stored[key]
