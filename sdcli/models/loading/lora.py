"""Merges LoRAs into the weights of a loaded model, and takes them out again.

Each changed tensor is read again from the model's file, all changes are added in float32, and the result is converted
to the model's dtype: a picture does not depend on what was merged before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import loading, lora_file
from sdcli.models.loading.find import Finder
from sdcli.models.loading.lora_change import Misfit, changed, changed_vector, of_rows, scaling
from sdcli.models.loading.lora_names import Place, places, plain
from sdcli.models.loading.weights import read, read_headers
from sdcli.models.lora_file import LoraFile
from sdcli.models.source import Source
from sdcli.models.weights import Addon

_VECTORS = {"diff_b": "bias", "up_bias": "bias", "w_norm": "weight", "b_norm": "bias"}
"""The roles of differences of vectors, and the parameters that they change."""
_LISTED = 3
"""So many tensors that do not fit are listed in a message."""


@dataclass(frozen=True)
class _Change:
    """What a file does to a parameter: by all tensors of a layer together, or by the one with `role`."""

    addon: Addon
    file: LoraFile
    layer: str
    role: str | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    """The rows of the file's layer that belong to the parameter; None is all of them."""


_Plan = dict[str, dict[str, list[_Change]]]
"""The changes of each parameter, by its part and its name."""


def merge(model: LatentDiffusionModel, source: Source, addons: Sequence[Addon]) -> LatentDiffusionModel:
    """Merge `addons`, in order, into the model that was loaded from `source`, in place of those that are merged.

    Changes the modules of `model`; those on the meta device are checked, and stay there. Raises ModelCorrupt for
    numbers that are not finite, and ModelError for a file with tensors that do not fit, unless it is `partial`, or
    without effect.
    """
    parts = dict(zip((source.denoiser, *loading.text_parts(source.index())), _modules(model), strict=True))
    if addons and any(map(_is_quantised, parts.values())):
        hint = "omit the LoRAs, or use a model of float weights"
        raise ModelError("LoRAs cannot be merged into quantised weights", hint)
    known = places(parts, model.architecture)
    plan, left_out = _plan(parts, known, [(each, lora_file.read(each.source.path)) for each in addons])
    for each in addons:
        _refuse(each, left_out[each])
    files = {each: dict(read(read_headers([each.source.path]))) for each in addons}
    find, effective = Finder(source), set()
    for part, module in parts.items():
        changes = {**{name: [] for name in model.merged.get(part, ())}, **plan[part]}
        stored = find(part, module) if changes else {}
        for name, original in read({name: stored[name] for name in changes}):
            weight = original.float()
            for change in changes[name]:
                try:
                    before, weight = weight, _applied(weight, change, part, files[change.addon])
                except Misfit as error:
                    left_out[change.addon].append(f"{change.layer} ({error})")
                    _refuse(change.addon, left_out[change.addon])
                    continue
                if change.addon not in effective and not torch.equal(weight, before):
                    effective.add(change.addon)
            _replace(module, name, weight)
    notes = [note for each in addons for note in _notes(each, left_out[each], each in effective)]
    merged = {part: tuple(changes) for part, changes in plan.items()}
    return replace(model, merged=merged, notes=tuple(notes))


def _is_quantised(module: nn.Module) -> bool:
    return any(each.dtype == torch.int8 for each in module.parameters())


def _modules(model: LatentDiffusionModel) -> list[nn.Module]:
    return [model.network, *(each.model for each in model.text_encoders)]


def _plan(
    parts: Mapping[str, nn.Module],
    known: Mapping[str, tuple[Place, ...]],
    files: Sequence[tuple[Addon, LoraFile]],
) -> tuple[_Plan, dict[Addon, list[str]]]:
    """Return the changes of each parameter, and the tensors of each file for which the model has none."""
    names = {part: set(module.state_dict()) for part, module in parts.items()}
    plan: _Plan = {part: {} for part in parts}
    left_out: dict[Addon, list[str]] = {}
    for addon, file in files:
        unused = left_out.setdefault(addon, list(file.unknown))
        for layer, tensors in file.groups.items():
            found = known.get(plain(layer), ())
            vectors = [role for role in tensors if role in _VECTORS]
            for role in [*vectors, *([None] if len(tensors) > len(vectors) else [])]:
                leaf = _VECTORS.get(role or "", "weight")
                fitting = [each for each in found if f"{each.module}.{leaf}" in names[each.part]]
                for place in fitting:
                    change = _Change(addon, file, layer, role, place.rows)
                    plan[place.part].setdefault(f"{place.module}.{leaf}", []).append(change)
                if not found or len(fitting) != len(found):
                    unused += [tensors[role]] if role else [tensors[each] for each in tensors if each not in vectors]
    return plan, left_out


def _applied(weight: Tensor, change: _Change, part: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return `weight` with `change`. Raises Misfit."""
    asked, file = change.addon.asked, change.file
    scale = asked.text_scale if part.startswith("text") else asked.scale
    assert scale is not None
    group = {role: tensors[key].float() for role, key in file.groups[change.layer].items()}
    if not all(tensor.isfinite().all() for tensor in group.values()):
        raise _not_finite(change)
    alpha = file.alpha_of(change.layer)
    if change.rows is not None:
        group = dict(of_rows(group, change.rows))
    if change.role is None:
        return changed(weight, group, scale=scale, alpha=alpha, rank_stabilized=file.rank_stabilized)
    difference = group[change.role]
    if change.role == "up_bias":
        rank = group["up"].shape[1]
        difference = difference * scaling(rank, group, alpha, file.rank_stabilized)
    return changed_vector(weight, difference, scale=scale)


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter by `value` in its dtype and on its device. The old one can be a view of a file."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(value.to(device=old.device, dtype=old.dtype), requires_grad=False))


def _refuse(addon: Addon, left_out: Sequence[str]) -> None:
    """Raise ModelError if there are tensors that do not fit, unless the add-on may be used without them."""
    if left_out and not addon.asked.partial:
        message = f"the LoRA {addon.name} does not fit this model: {_listed(left_out)}"
        raise ModelError(message, "use a LoRA for this family of models, or --no-strict-lora to use what fits")


def _notes(addon: Addon, left_out: Sequence[str], effective: bool) -> list[str]:
    """Return the warnings about a merged add-on. Raises ModelError for one without effect."""
    if not effective and (addon.asked.scale or addon.asked.text_scale):
        raise ModelError(
            f"the LoRA {addon.name} has no effect on this model", "check that its training has saved its result"
        )
    return [f"the LoRA {addon.name} is used in part: {_listed(left_out)}"] if left_out else []


def _listed(left_out: Sequence[str]) -> str:
    shown = ", ".join(left_out[:_LISTED])
    more = f", and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
    return f"the model has no place for {len(left_out)} of its tensors or layers: {shown}{more}"


def _not_finite(change: _Change) -> ModelCorrupt:
    return ModelCorrupt(
        f"the LoRA {change.addon.name}: {change.layer} has numbers that are not finite",
        "download the file again, or use another one",
    )
