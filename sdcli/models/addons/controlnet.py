"""ControlNets: finding them, checking whether they fit a model, and attaching them.

Reads only JSON, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import InvalidRecipe, ModelError, ModelNotFound
from sdcli.files import palette
from sdcli.files.palette import Class
from sdcli.models import configs, families, located, registry
from sdcli.models.located import LocatedModel
from sdcli.models.registry import CONTROLNET, ModelEntry
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.recipe import layout_of
from sdcli.terminal.spelling import did_you_mean

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = CONTROLNET
CLASS_NAME = "ControlNetModel"
_FAMILIES = {768: ("sd15", "SD 1.x"), 2048: ("sdxl", "SDXL")}
"""Families of ControlNets and their names in messages, by the features per token of the U-Net."""

# Keys that must be equal in the configs of a ControlNet and a U-Net, with diffusers' defaults and a description.
_EQUAL: Mapping[str, tuple[Any, str]] = {
    "cross_attention_dim": (1280, "text with {} features per token"),
    "block_out_channels": ((320, 640, 1280, 1280), "U-Nets with {} channels"),
    "layers_per_block": (2, "U-Nets with {} layers per level"),
    "addition_embed_type": (None, "added conditions of the kind {}"),
}


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the ControlNets in flat keys of a recipe."""
    return [Asked(name) for name in layout_of(options).nets]


def find(name: str) -> ModelEntry:
    """Find the entry of a ControlNet: a name, a folder or a repository in the hub cache.

    Raises ModelNotFound if it is missing, InvalidRecipe if it is not a ControlNet, and ModelError for an unsupported
    kind.
    """
    named = names()
    try:
        entry = registry.find(name)
    except ModelNotFound:
        known = f"the named ones are {', '.join(named)}; a folder or OWNER/NAME in the hub cache works too"
        raise ModelNotFound(f"no ControlNet {name!r}", did_you_mean(name, named, known)) from None
    if name in registry.shipped() and entry.kind != CONTROLNET:
        raise _no_controlnet(name, named)
    source = registry.locate(entry)
    source.check()
    if not source.is_controlnet:
        raise _no_controlnet(name, named)
    class_name = configs.read(source.path / "config.json").get("_class_name")
    if class_name != CLASS_NAME:
        raise ModelError(f"{name} is a {class_name}, which is not supported", f"use a {CLASS_NAME} for SD 1.x or SDXL")
    return entry


def _no_controlnet(name: str, named: tuple[str, ...]) -> InvalidRecipe:
    hint = f"use one such as {', '.join(named)}, or a folder with a {CLASS_NAME} in diffusers' format"
    return InvalidRecipe(f"{name} is not a ControlNet", hint, "control")


def names() -> tuple[str, ...]:
    """Return the names of ControlNets."""
    return tuple(name for name, each in registry.entries().items() if each.kind == CONTROLNET)


def locate(name: str) -> Source:
    """Locate a ControlNet. Raises what `find` raises."""
    return registry.locate(find(name))


def classes(source: Source | None) -> tuple[Class, ...]:
    """Return the classes of the maps that a ControlNet reads: those in its folder, or ADE20K's.

    Published ControlNets for segmentation are trained with ADE20K's palette.
    """
    return (() if source is None else palette.read(source.path)) or palette.shipped(palette.ADE20K)


def for_maps(model: LocatedModel) -> str:
    """Return the name of the default ControlNet that reads maps for `model`.

    Raises InvalidRecipe, with what the model takes in the hint, if there is none.
    """
    unet, facts = model.denoiser_config, model.facts
    family, _ = _family(unet)
    for name, each in registry.shipped().items():
        if each.classes and each.family == family:
            return name
    taking = registry.for_maps()
    hints = [f"use -m {taking}"] if located.find(taking).facts.classes else []
    if facts.takes_controlnets:
        hints.append(f"use --control with a ControlNet that reads maps; {_taken(unet)}")
    raise InvalidRecipe(
        f"this model takes a {'text' if facts.labels is None else 'class label'}, not a segmentation map",
        ", or ".join(hints) or "use another model",
        "segmentation_map",
    )


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise InvalidRecipe, with what the model takes in the hint, unless the ControlNet at `source` fits it."""
    unet, facts = model.denoiser_config, model.facts
    config = configs.read(source.path / "config.json")
    if not facts.takes_controlnets:
        hint = "omit --control, or use a model with a U-Net, such as sd15"
        raise InvalidRecipe("this model does not support ControlNets", hint, "control")
    for key, (default, words) in _EQUAL.items():
        theirs, ours = (_plain(each.get(key, default)) for each in (config, unet))
        if theirs != ours:
            recorded = f"it is made for {words.format(theirs)}, and the model's is {ours}"
            raise InvalidRecipe(f"the ControlNet {name} does not fit this model: {recorded}", _taken(unet), "control")
    vae_scale_factor = 2 ** (len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1)
    theirs = config.get("in_channels", 4), config.get("conditioning_channels", 3), vae_scale_factor
    ours = facts.latent_space.channels, 3, facts.latent_space.vae_scale_factor
    if theirs != ours:
        recorded = "it takes latents with {} channels and images with {} channels, {} pixels per latent".format(*theirs)
        hint = "this model has latents with {} channels and images with {} channels, {} pixels per latent".format(*ours)
        raise InvalidRecipe(f"the ControlNet {name} does not fit this model: {recorded}", hint, "control")


def takes(source: Source) -> dict[str, Any]:
    """Return the values of a U-Net's config that the ControlNet at `source` requires."""
    config = configs.read(source.path / "config.json")
    return {key: _plain(config.get(key, default)) for key, (default, _) in _EQUAL.items()}


def _taken(unet: Mapping[str, Any]) -> str:
    """Describe the ControlNets that fit a model: by name, or by their config."""
    family, called = _family(unet)
    named = registry.entries().items()
    known = [name for name, each in named if family and each.kind == CONTROLNET and each.family == family]
    if known:
        return f"this model takes ControlNets made for {called}, such as {', '.join(known)}"
    config = ", ".join(f"{key} {_plain(unet.get(key, default))}" for key, (default, _) in _EQUAL.items())
    return f"this model takes ControlNets with {config}"


def _family(unet: Mapping[str, Any]) -> tuple[str | None, str]:
    width = unet.get("cross_attention_dim", 0)
    return _FAMILIES.get(width, (None, "")) if isinstance(width, int) else (None, "")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def files(source: Source) -> list[Path]:
    """Return the weight files of a ControlNet. Raises ModelError if they are missing or unsafe."""
    return families.component_files(source.path, source.variant)


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Replace the ControlNets of `model` by those of `weights`, on its device and in its dtype."""
    from sdcli.diffusion.model import ControlNet
    from sdcli.models.loading import controlnet as loading

    found = {each.name: each.source for each in weights.of_kind(KIND)}
    nets = {name: loading.load(source, device=model.storage, dtype=model.dtype) for name, source in found.items()}
    return replace(model, controlnets={name: ControlNet(net, classes(found[name])) for name, net in nets.items()})
