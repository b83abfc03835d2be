"""Which parameters of a model a LoRA file changes, by the names and shapes of both. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sdcli.models.loading.lora_names import places, plain
from sdcli.models.lora_file import LoraFile
from sdcli.models.weights import Addon

_VECTORS = {"diff_b": "bias", "up_bias": "bias", "w_norm": "weight", "b_norm": "bias"}
"""The roles of differences of vectors, and the parameters that they change."""


@dataclass(frozen=True)
class Change:
    """What a file does to a parameter: by all tensors of a layer together, or by the one with `role`."""

    addon: Addon
    file: LoraFile
    layer: str
    role: str | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    """The rows of the file's layer that belong to the parameter; None is all of them."""
    total: int = 0
    """The number of all rows of the file's layer, if it is divided."""


Plan = dict[str, dict[str, list[Change]]]
"""The changes of each parameter, by its part and its name."""


def plan_of(
    parts: Mapping[str, nn.Module], architecture: str, addon: Addon, file: LoraFile
) -> tuple[Plan, list[str], list[str]]:
    """Return the changes of each parameter by a file, its tensors without a place, and layers that it has twice.

    A file can have queries, keys and values both in one layer and in three. Then the three are used, as in diffusers.
    """
    known = places(parts, architecture)
    names = {part: set(module.state_dict()) for part, module in parts.items()}
    plan: Plan = {part: {} for part in parts}
    unused, twice = list(file.unknown), list[str]()
    for layer, tensors in file.groups.items():
        found = known.get(plain(layer), ())
        vectors = [role for role in tensors if role in _VECTORS]
        for role in [*vectors, *([None] if len(tensors) > len(vectors) else [])]:
            leaf = _VECTORS.get(role or "", "weight")
            total = max((end for each in found for _, end in each.rows or ()), default=0)
            fitting = [each for each in found if f"{each.module}.{leaf}" in names[each.part]]
            for place in fitting:
                changes = plan[place.part].setdefault(f"{place.module}.{leaf}", [])
                change = Change(addon, file, layer, role, place.rows, total)
                rival = next((each for each in changes if each.role == role), None)
                if rival is not None and (rival.rows is None) == (change.rows is None):
                    unused += [f"{layer} (it is also {rival.layer})"]
                    continue
                if rival is not None:
                    twice.append(rival.layer if change.rows is None else layer)
                if rival is None or change.rows is None:
                    changes[:] = [*(each for each in changes if each is not rival), change]
            if not found or len(fitting) != len(found):
                unused += [tensors[role]] if role else [tensors[each] for each in tensors if each not in vectors]
    return plan, unused, list(dict.fromkeys(twice))
