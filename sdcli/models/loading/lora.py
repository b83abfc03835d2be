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

from sdcli.diffusion import packed
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import loading, lora_file
from sdcli.models.loading.find import Finder
from sdcli.models.loading.lora_change import Misfit, changed, changed_vector, factors, of_rows, scaling
from sdcli.models.loading.lora_plan import Change, Plan, plan_of
from sdcli.models.loading.quantised import QuantisedLinear
from sdcli.models.loading.weights import read, read_headers
from sdcli.models.source import Source
from sdcli.models.weights import Addon

_LISTED = 3
"""So many tensors that do not fit are listed in a message."""


def merge(model: LatentDiffusionModel, source: Source, addons: Sequence[Addon]) -> LatentDiffusionModel:
    """Merge `addons`, in order, into the model that was loaded from `source`, in place of those that are merged.

    Changes the modules of `model`; those on the meta device are checked, and stay there. Raises ModelCorrupt for
    numbers that are not finite, and ModelError for a file with tensors that do not fit, unless it is `partial`, or
    without effect.
    """
    parts = dict(zip((source.denoiser, *loading.text_parts(source.index())), _modules(model), strict=True))
    plan: Plan = {part: {} for part in parts}
    left_out, twice = dict[Addon, list[str]](), dict[Addon, list[str]]()
    for each in addons:
        own, left_out[each], twice[each] = plan_of(parts, model.architecture, each, lora_file.read(each.source.path))
        _refuse(each, left_out[each])
        for part, of_part in own.items():
            for name, of_name in of_part.items():
                plan[part].setdefault(name, []).extend(of_name)
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
    notes = [note for each in addons for note in _notes(each, left_out[each], twice[each], each in effective)]
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
    weight: Tensor, change: Change, part: str, tensors: Mapping[str, Tensor], into: Tensor | None = None
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


def _group(change: Change, part: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a change by role, float32, and how they are scaled. Raises ModelCorrupt and Misfit."""
    asked, file = change.addon.asked, change.file
    scale = asked.text_scale if part.startswith("text") else asked.scale
    group = {role: tensors[key].float() for role, key in file.groups[change.layer].items()}
    if not all(tensor.isfinite().all() for tensor in group.values()):
        raise _not_finite(change)
    if change.rows is not None:
        group = dict(of_rows(group, change.rows, change.total))
    scaling = file.scaling_of(change.layer)
    alpha = scaling.alpha_of(change.layer)
    return group, {"scale": scale, "alpha": alpha, "rank_stabilized": scaling.rank_stabilized}


def _add(
    layer: QuantisedLinear, changes: Sequence[Change], part: str, files: Mapping[Addon, Mapping[str, Tensor]]
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
    weight: Tensor, changes: Sequence[Change], part: str, files: Mapping[Addon, Mapping[str, Tensor]]
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
    device = value.device if packed.is_packed(owner) else old.device
    new = torch.empty(value.shape, device=device, dtype=old.dtype)
    setattr(owner, leaf, nn.Parameter(new.copy_(value), requires_grad=False))


def _refuse(addon: Addon, left_out: Sequence[str]) -> None:
    """Raise ModelError if there are tensors that do not fit, unless the add-on may be used without them."""
    if left_out and not addon.asked.partial:
        message = f"the LoRA {addon.name} does not fit this model: {_misfits(left_out)}"
        raise ModelError(message, "use a LoRA for this family of models, or --no-strict-lora to use what fits")


def _notes(addon: Addon, left_out: Sequence[str], twice: Sequence[str], effective: bool) -> Iterator[str]:
    """Yield the warnings about a merged add-on. Raises ModelError for one without effect."""
    if not effective and (addon.asked.scale or addon.asked.text_scale):
        raise ModelError(
            f"the LoRA {addon.name} has no effect on this model", "check that its training has saved its result"
        )
    if left_out:
        yield f"the LoRA {addon.name} is used in part: {_misfits(left_out)}"
    if twice:
        also = "is not used, as the LoRA has its queries, keys and values apart too"
        yield f"the LoRA {addon.name}: {_listed(twice)} {also}"


def _misfits(left_out: Sequence[str]) -> str:
    return f"the model has no place for {len(left_out)} of its tensors or layers: {_listed(left_out)}"


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def _not_finite(change: Change) -> ModelCorrupt:
    return ModelCorrupt(
        f"the LoRA {change.addon.name}: {change.layer} has numbers that are not finite",
        "download the file again, or use another one",
    )
