"""Merges LoRAs into the weights of a loaded model, and takes them out again.

Each changed tensor is read again from the model's file, all changes are added in float32, and the result is converted
to the model's dtype: a picture does not depend on what was merged before. Weights that are quantised stay as they are,
and the changes are added in each call of their layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import loading, lora_file
from sdcli.models.loading.find import Finder
from sdcli.models.loading.lora_change import Misfit, changed, changed_vector, factors, of_rows, scaling
from sdcli.models.loading.lora_names import Place, places, plain
from sdcli.models.loading.quantised import QuantisedLinear
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
    known = places(parts, model.architecture)
    plan, left_out = _plan(parts, known, [(each, lora_file.read(each.source.path)) for each in addons])
    for each in addons:
        _refuse(each, left_out[each])
    files = {each: dict(read(read_headers([each.source.path]))) for each in addons}
    find, effective, scratch = Finder(source), set[Addon](), _Scratch()
    for part, module in parts.items():
        changes = {**{name: [] for name in model.merged.get(part, ())}, **plan[part]}
        for name, original in _originals(module, part, list(changes), find):
            weight, fitting = scratch.copy(original), []
            for change in changes[name]:
                before = None if change.addon in effective else weight.clone()
                try:
                    weight = _applied(weight, change, part, files[change.addon], into=weight)
                except Misfit as error:
                    left_out[change.addon].append(f"{change.layer} ({error})")
                    _refuse(change.addon, left_out[change.addon])
                    continue
                fitting.append(change)
                if before is not None and not torch.equal(weight, before):
                    effective.add(change.addon)
            layer = _quantised(module, name)
            if layer is not None:
                _add(layer, fitting, part, files)
            else:
                _replace(module, name, weight, owned=name in model.merged.get(part, ()))
    notes = [note for each in addons for note in _notes(each, left_out[each], each in effective)]
    merged = {part: tuple(changes) for part, changes in plan.items()}
    return replace(model, merged=merged, notes=tuple(notes))


def _originals(module: nn.Module, part: str, names: Sequence[str], find: Finder) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters without changes by their names: from the file, and quantised ones from memory."""
    layers = {name: _quantised(module, name) for name in names}
    plain = [name for name in names if layers[name] is None]
    if plain:
        stored = find(part, module)
        yield from read({name: stored[name] for name in plain})
    for name, layer in layers.items():
        if layer is not None:
            yield name, layer.dequantised(torch.float32).cpu()


def _quantised(module: nn.Module, name: str) -> QuantisedLinear | None:
    """Return the layer whose quantised weight is the parameter `name`, or None."""
    path, _, leaf = name.rpartition(".")
    layer = module.get_submodule(path)
    return layer if leaf == "weight" and isinstance(layer, QuantisedLinear) else None


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


@dataclass
class _Scratch:
    """Memory for one weight after another: new memory for each would take longer than the additions."""

    memory: Tensor = field(default_factory=lambda: torch.empty(0))

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy in float32, which is valid until the next call."""
        if self.memory.numel() < tensor.numel():
            self.memory = torch.empty(tensor.numel())
        return self.memory[: tensor.numel()].view(tensor.shape).copy_(tensor)


def _applied(
    weight: Tensor, change: _Change, part: str, tensors: Mapping[str, Tensor], into: Tensor | None = None
) -> Tensor:
    """Return `weight` with `change`, in the memory of `into` where the kind can do that. Raises Misfit."""
    group, how = _group(change, part, tensors)
    group = {role: tensor.to(weight.device) for role, tensor in group.items()}
    if change.role is None:
        return changed(weight, group, **how, into=into)
    difference = group[change.role]
    if change.role == "up_bias":
        rank = group["up"].shape[1]
        difference = difference * scaling(rank, group, how["alpha"], how["rank_stabilized"])
    return changed_vector(weight, difference, scale=how["scale"])


def _group(change: _Change, part: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a change by role, float32, and how they are scaled. Raises ModelCorrupt and Misfit."""
    asked, file = change.addon.asked, change.file
    scale = asked.text_scale if part.startswith("text") else asked.scale
    group = {role: tensors[key].float() for role, key in file.groups[change.layer].items()}
    if not all(tensor.isfinite().all() for tensor in group.values()):
        raise _not_finite(change)
    if change.rows is not None:
        group = dict(of_rows(group, change.rows))
    alpha = file.alpha_of(change.layer)
    return group, {"scale": scale, "alpha": alpha, "rank_stabilized": file.rank_stabilized}


def _add(
    layer: QuantisedLinear, changes: Sequence[_Change], part: str, files: Mapping[Addon, Mapping[str, Tensor]]
) -> None:
    """Have a quantised layer add `changes` in each call: to its output if all are LoRAs, otherwise to its weight."""
    pairs = []
    for change in changes:
        group, how = _group(change, part, files[change.addon])
        pair = factors(group, **how)
        if pair is None:
            layer.change(changed=partial(_all_applied, changes=changes, part=part, files=files))
            return
        pairs.append(pair)
    layer.change(pairs)


def _all_applied(
    weight: Tensor, changes: Sequence[_Change], part: str, files: Mapping[Addon, Mapping[str, Tensor]]
) -> Tensor:
    for change in changes:
        weight = _applied(weight, change, part, files[change.addon])
    return weight


@torch.no_grad()
def _replace(module: nn.Module, name: str, value: Tensor, *, owned: bool) -> None:
    """Replace a parameter by `value`, in its dtype and on its device. If not `owned`, it can be a view of a file."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf)
    if owned and not old.is_meta:
        old.copy_(value)
        return
    new = torch.empty(value.shape, device=old.device, dtype=old.dtype)
    setattr(owner, leaf, nn.Parameter(new.copy_(value), requires_grad=False))


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
