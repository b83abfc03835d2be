"""Add-ons: weights that stand beside a model's. To add a kind: a module like controlnet.py, and its row in KINDS.

Such a module says which options of a recipe ask for the kind, where an add-on lies, whether it fits a model, and how it
is attached to a loaded one; digests, metadata, replay, dry runs, batches and the warm process take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.models.addons import controlnet
from sdcli.models.located import LocatedModel
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Weights

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel


@dataclass(frozen=True)
class Kind:
    """What there is to know of a kind of add-on."""

    title: str
    """What people call it."""
    asked: Callable[[Mapping[str, Any]], Sequence[tuple[str, float | None]]]
    """From flat keys of a recipe to the names that they ask for, each with its scale where the kind is merged."""
    locate: Callable[[str], Source]
    """Where an add-on of that name lies. Raises ModelNotFound, ModelError, InvalidRecipe."""
    check_fit: Callable[[str, Source, LocatedModel], None]
    """Raises InvalidRecipe, saying what the model takes, unless the add-on at that place fits it."""
    files: Callable[[Source], Sequence[Path]]
    """The files of weights of an add-on. Raises ModelError where they are missing or unsafe."""
    attach: Callable[[LatentDiffusionModel, Sequence[Addon]], LatentDiffusionModel]
    """The loaded model with these add-ons of the kind. May import torch."""
    activations: float = 0.0
    """What it keeps in memory while it runs, as a share of what the U-Net keeps."""


KINDS: Mapping[str, Kind] = {
    controlnet.KIND: Kind(
        title="ControlNet",
        asked=controlnet.asked,
        locate=controlnet.locate,
        check_fit=controlnet.check_fit,
        files=controlnet.files,
        attach=controlnet.attach,
        activations=1.0,
    ),
}

Find = Callable[[str, str], Source]
"""From a kind and a name to where the add-on lies."""


def find_addon(kind: str, name: str) -> Source:
    """Where the add-on of that kind and name lies. Raises what the kind's `locate` raises."""
    return KINDS[kind].locate(name)


def locate(model: LocatedModel, options: Mapping[str, Any], find: Find | None = None) -> Weights:
    """What is loaded for flat keys of a recipe: the model, and the add-ons that they ask for, all of which fit it.

    `find` takes the place of `find_addon`, for who asks for the same add-ons often. Raises what it and
    the kinds' `check_fit` raise.
    """
    find = find or find_addon
    addons = tuple(
        Addon(kind, name, find(kind, name), scale) for kind, row in KINDS.items() for name, scale in row.asked(options)
    )
    for each in addons:
        KINDS[each.kind].check_fit(each.name, each.source, model)
    return Weights(model.source, addons)


def attach(model: LatentDiffusionModel, addons: Sequence[Addon]) -> LatentDiffusionModel:
    """The loaded `model` with its add-ons. Raises ModelError where they cannot be read."""
    for kind, row in KINDS.items():
        found = [each for each in addons if each.kind == kind]
        if found:
            model = row.attach(model, found)
    return model
