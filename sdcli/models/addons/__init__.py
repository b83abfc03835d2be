"""Add-ons: weights that are loaded together with a model. To add a kind, add a module like controlnet.py and a row in
KINDS.

The module has the keys of a recipe that name an add-on, finds its files, checks whether it fits a model, and attaches
it to a loaded model. Digests, metadata, replay, dry runs, batches and the warm process use the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.models.addons import controlnet, embedding, ip_adapter, lora, refiner, upscaler
from sdcli.models.located import LocatedModel
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel


@dataclass(frozen=True)
class Kind:
    """A kind of add-on."""

    title: str
    """Its name in messages."""
    asked: Callable[[Mapping[str, Any]], Sequence[Asked]]
    """From flat keys of a recipe to the add-ons that they name."""
    locate: Callable[[str], Source]
    """Finds an add-on by its name. Raises ModelNotFound, ModelError, InvalidRecipe."""
    check_fit: Callable[[str, Source, LocatedModel], None]
    """Raises InvalidRecipe, with what the model takes in the hint, unless the add-on fits it."""
    files: Callable[[Source], Sequence[Path]]
    """The weight files of an add-on. Raises ModelError if they are missing or unsafe."""
    attach: Callable[[LatentDiffusionModel, Weights], LatentDiffusionModel]
    """Attaches the add-ons of the kind to a loaded model, in place of those that are attached. Can import torch."""
    merged: bool = False
    """Whether it is merged into the model's weights and needs no memory of its own."""
    has_text: bool = False
    """Whether it has text encoders, which encode the prompt too."""
    activations: float = 0.0
    """Its activations in memory as a fraction of the U-Net's."""


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
    lora.KIND: Kind(
        title="LoRA",
        asked=lora.asked,
        locate=lora.locate,
        check_fit=lora.check_fit,
        files=lora.files,
        attach=lora.attach,
        merged=True,
    ),
    embedding.KIND: Kind(
        title="embedding",
        asked=embedding.asked,
        locate=embedding.locate,
        check_fit=embedding.check_fit,
        files=embedding.files,
        attach=embedding.attach,
        merged=True,
    ),
    refiner.KIND: Kind(
        title="refiner",
        asked=refiner.asked,
        locate=refiner.locate,
        check_fit=refiner.check_fit,
        files=refiner.files,
        attach=refiner.attach,
        has_text=True,
    ),
    upscaler.KIND: Kind(
        title="upscaler",
        asked=upscaler.asked,
        locate=upscaler.locate,
        check_fit=upscaler.check_fit,
        files=upscaler.files,
        attach=upscaler.attach,
    ),
    ip_adapter.KIND: Kind(
        title="IP-Adapter",
        asked=ip_adapter.asked,
        locate=ip_adapter.locate,
        check_fit=ip_adapter.check_fit,
        files=ip_adapter.files,
        attach=ip_adapter.attach,
    ),
    ip_adapter.ENCODER: Kind(
        title="image encoder",
        asked=ip_adapter.encoder_asked,
        locate=ip_adapter.locate_encoder,
        check_fit=ip_adapter.check_encoder_fits,
        files=ip_adapter.encoder_files,
        attach=ip_adapter.attach_encoder,
    ),
}

Find = Callable[[str, str], Source]
"""From a kind and a name to the location of the add-on."""


def find_addon(kind: str, name: str) -> Source:
    """Find an add-on by kind and name. Raises what the kind's `locate` raises."""
    return KINDS[kind].locate(name)


def locate(model: LocatedModel, options: Mapping[str, Any], find: Find | None = None) -> Weights:
    """Return the weights for flat keys of a recipe: the model and its add-ons, after checking that they fit.

    `find` replaces `find_addon`, for callers that cache. Raises what it and the kinds' `check_fit` raise.
    """
    find = find or find_addon
    addons = tuple(
        Addon(kind, each, find(kind, each.name)) for kind, row in KINDS.items() for each in row.asked(options)
    )
    for each in addons:
        KINDS[each.kind].check_fit(each.name, each.source, model)
    return Weights(model.source, addons)


def attach(model: LatentDiffusionModel, weights: Weights, before: Weights | None = None) -> LatentDiffusionModel:
    """Attach the add-ons of `weights` to a loaded model, which has those of `before` if that is given.

    Kinds with the same add-ons and files stay as they are. Raises ModelError if add-ons cannot be read; the model
    cannot be used then.
    """
    for kind, row in KINDS.items():
        if _identity(weights, kind) != (_identity(before, kind) if before else []):
            model = row.attach(model, weights)
    return model


def for_text(weights: Weights) -> Weights:
    """Return `weights` with only the add-ons that are needed to encode prompts."""
    used = (each for each in weights.addons if KINDS[each.kind].merged or KINDS[each.kind].has_text)
    return Weights(weights.model, tuple(used))


def _identity(weights: Weights, kind: str) -> list[tuple[Addon, str]]:
    return [(each, each.source.sha256) for each in weights.of_kind(kind)]
