"""Finds the tensors of a model's components, by their names in the loaded module. Reads headers, no weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sdcli.errors import ModelCorrupt
from sdcli.models import families
from sdcli.models.loading import single_file
from sdcli.models.loading.weights import Stored, read_headers
from sdcli.models.source import Source

TEXT_PREFIXES = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_DOWNLOAD_AGAIN = "download the model's folder again; its parts must belong together"


class Finder:
    """Finds the tensors of components in a single file or in their folders."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stored = read_headers([source.path]) if source.is_file else {}

    def __call__(self, part: str, module: nn.Module) -> Mapping[str, Stored]:
        """Return the tensors of a component by their names in its empty `module`."""
        source = self._source
        if source.is_file and not source.is_elsewhere(part):
            return find_in_file(source.path, self._stored, source.base, part, module)
        return find_in_folder(source.folder(part), source.variant, module)

    def count(self, part: str) -> int:
        """Return the number of tensors in the files of a component."""
        source = self._source
        if source.is_file and not source.is_elsewhere(part):
            return len(self._stored)
        return len(read_headers(families.component_files(source.folder(part), source.variant)))


def find_in_folder(folder: Path, variant: str | None, module: nn.Module) -> Mapping[str, Stored]:
    """Find the tensors of a component in its folder, under current or older names."""
    files = families.component_files(folder, variant)
    stored = {_current_name(key): each for key, each in read_headers(files).items()}
    names = {name: _current_name(name) for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    unknown = [each.key for key, each in stored.items() if key not in names.values() and not _UNUSED.search(key)]
    if unknown:
        raise ModelCorrupt(f"{files[0]}: its config has no tensor {unknown[0]}", _DOWNLOAD_AGAIN)
    return {name: _pick(stored, key, files[0]) for name, key in names.items()}


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


# Unused tensors in files: buffers, the other half of CLIP, and the head of a language model, which predicts words.
_UNUSED = re.compile(
    r"position_ids$|^lm_head\.|num_batches_tracked$|^text_projection\.|^logit_scale$|^vision_model\.|^visual_projection\."
)


def find_in_file(
    path: Path, stored: Mapping[str, Stored], base: Path, part: str, module: nn.Module
) -> Mapping[str, Stored]:
    """Find the tensors of a component in a single file in the CompVis/SGM layout."""
    if part.startswith("text"):
        prefix = next((each for each in TEXT_PREFIXES[part] if any(key.startswith(each) for key in stored)), None)
        if prefix is None:
            raise ModelCorrupt(f"{path} has no {part}", "use a file with the complete model")
        found = {
            name: _find_text(path, stored, prefix, name.removeprefix("text_model.")) for name in module.state_dict()
        }
        _check_known(path, part, prefix, stored, found)
        return found
    if part == "class_embedder":
        return {name: _pick(stored, families.CLASSES + name, path) for name in module.state_dict()}
    config = families.read_json(base / part / "config.json")
    prefix, original = (families.VAE, single_file.vae) if part == "vae" else (families.UNET, single_file.unet)
    names = {name: prefix + original(name, config) for name in module.state_dict()}
    if part == "vae":
        families.check_has_vae(path, stored)
    found = {name: _pick(stored, key, path) for name, key in names.items()}
    _check_known(path, part, prefix, stored, found)
    return {
        name: replace(each, view=_as_linear) if ".mid.attn_1." in each.key else each for name, each in found.items()
    }


_UNUSED_IN_FILE: Mapping[str, re.Pattern[str]] = {
    # buffers; CLIP's other half; the layer after the penultimate one that SD 2.x uses, and what follows it
    "text": re.compile(
        r"position_ids$|(^|\.)(text_projection|logit_scale|attn_mask)(\.weight)?$|(^|\.)visual\."
        r"|^(text_model\.)?transformer\.resblocks\.23\.[\w.]+(weight|bias)$"
    ),
    "vae": re.compile(r"^loss\.|^model_ema\."),  # of its training
}
"""What files have besides the tensors of a part, after the part's prefix. Anything else could change numbers."""


def _check_known(path: Path, part: str, prefix: str, stored: Mapping[str, Stored], used: Mapping[str, Stored]) -> None:
    """Raise ModelCorrupt for a tensor of a part in a single file that is neither used nor known to be unused."""
    keys = {each.key for each in used.values()}
    unused = _UNUSED_IN_FILE.get("text" if part.startswith("text") else part)
    for key in sorted(stored):
        if key.startswith(prefix) and key not in keys and not (unused and unused.search(key.removeprefix(prefix))):
            hint = "use a file without quantised weights, of the family that its model has"
            title = _TITLES.get(part, part.replace("_", " "))
            raise ModelCorrupt(f"{path}: its family's {title} has no tensor {key}", hint)


_TITLES = {"unet": "U-Net", "vae": "VAE"}


def _find_text(path: Path, stored: Mapping[str, Stored], prefix: str, name: str) -> Stored:
    if prefix.endswith("transformer."):
        full = f"{prefix}text_model.{name}"
        return stored[prefix + name] if prefix + name in stored else _pick(stored, full, path)
    key, third = single_file.open_clip(name)
    found = _pick(stored, prefix + key, path)
    if key == "text_projection":
        return replace(found, view=torch.t)
    return found if third is None else replace(found, view=lambda tensor: tensor.chunk(3)[third])


def _as_linear(tensor: Tensor) -> Tensor:
    """Convert the original VAE's attention, which is stored as 1×1 convolutions."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _pick(stored: Mapping[str, Stored], key: str, where: Path) -> Stored:
    if key not in stored:
        raise ModelCorrupt(f"{where} has no tensor {key}", "download the model again, or use a complete one")
    return stored[key]
