"""Finds the tensors of a model's components, by their names in the loaded module. Reads headers, no weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from sdcli.diffusion import architectures
from sdcli.errors import ModelCorrupt
from sdcli.models import families
from sdcli.models.families import flow
from sdcli.models.loading import part_file, scales, single_file
from sdcli.models.loading.match import pick, within
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


class Finder:
    """Finds the tensors of components in a single file, in files of their own or in their folders."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stored: dict[Path, Mapping[str, Stored]] = {}

    def __call__(self, part: str, module: nn.Module) -> Mapping[str, Stored]:
        """Return the tensors of a component by their names in its empty `module`."""
        source, file = self._source, self._source.file(part)
        if file is None:
            return find_in_folder(source.folder(part), source.variant, module)
        stored = self._read(file)
        if file == source.path and flow.kind_of(stored) is None:
            return find_in_file(file, stored, source.base, part, module)
        config = families.read_json(source.folder(part) / "config.json")
        return part_file.find(file, stored, part, module, config, self._encoders.get(part, ""))

    def count(self, part: str) -> int:
        """Return the number of tensors in the files of a component."""
        file = self._source.file(part)
        return len(read_headers(self._source.weights(part)) if file is None else self._read(file))

    @cached_property
    def _encoders(self) -> Mapping[str, str]:
        """What the names of the text encoders have in a file of several parts."""
        if self._source.denoiser == "unet":
            return {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
        kind = flow.KINDS.get(architectures.find("transformer", self._source.config("transformer")))
        return {} if kind is None else kind.encoders

    def _read(self, file: Path) -> Mapping[str, Stored]:
        if file not in self._stored:
            self._stored[file] = scales.fold(read_headers([file]))
        return self._stored[file]


def find_in_folder(folder: Path, variant: str | None, module: nn.Module) -> Mapping[str, Stored]:
    """Find the tensors of a component in its folder, under current or older names."""
    files = families.component_files(folder, variant)
    return within(scales.fold(read_headers(files)), module, files[0])


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
        return {name: pick(stored, families.CLASSES + name, path) for name in module.state_dict()}
    config = families.read_json(base / part / "config.json")
    prefix, original = (families.VAE, single_file.vae) if part == "vae" else (families.UNET, single_file.unet)
    names = {name: prefix + original(name, config) for name in module.state_dict()}
    if part == "vae":
        families.check_has_vae(path, stored)
    found = {name: pick(stored, key, path) for name, key in names.items()}
    _check_known(path, part, prefix, stored, found)
    return {
        name: replace(each, view=single_file.as_linear) if ".mid.attn_1." in each.key else each
        for name, each in found.items()
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
        return stored[prefix + name] if prefix + name in stored else pick(stored, full, path)
    key, third = single_file.open_clip(name)
    found = pick(stored, prefix + key, path)
    if key == "text_projection":
        return replace(found, view=torch.t)
    return found if third is None else replace(found, view=lambda tensor: tensor.chunk(3)[third])
