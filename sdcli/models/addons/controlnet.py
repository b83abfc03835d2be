"""ControlNets: where they are, what they are made for, whether they fit a model, and how they are attached to one.

Reads JSON alone; only `attach` reads weights, and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import InvalidRecipe, ModelError, ModelNotFound
from sdcli.files import palette
from sdcli.files.palette import Class
from sdcli.models import families, located, registry
from sdcli.models.located import LocatedModel
from sdcli.models.registry import CONTROLNET, ModelEntry
from sdcli.models.source import Source
from sdcli.models.weights import Addon
from sdcli.recipe.recipe import layout_of
from sdcli.terminal.spelling import did_you_mean

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = CONTROLNET
CLASS_NAME = "ControlNetModel"
_FAMILIES = {768: ("sd15", "SD 1.x"), 2048: ("sdxl", "SDXL")}
"""What ControlNets are made for, and what people call it, by the features of a token that the U-Net takes."""

# What must be alike in a ControlNet's config and a U-Net's, with diffusers' defaults, and how a user may know it.
_ALIKE: Mapping[str, tuple[Any, str]] = {
    "cross_attention_dim": (1280, "text of {} features a token"),
    "block_out_channels": ((320, 640, 1280, 1280), "U-Nets of {} channels"),
    "layers_per_block": (2, "U-Nets of {} layers a level"),
    "addition_embed_type": (None, "added conditions of the kind {}"),
}


def asked(options: Mapping[str, Any]) -> list[tuple[str, None]]:
    """The ControlNets that flat keys of a recipe ask for; they are not merged, and have no scale of their own."""
    return [(name, None) for name in layout_of(options).nets]


def find(name: str) -> ModelEntry:
    """The entry of a ControlNet: a name, a folder or a repository in the hub cache.

    Raises ModelNotFound for what is not here, InvalidRecipe for what is no ControlNet, and ModelError for one of a
    kind that sdcli does not run.
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
    class_name = families.read_json(source.path / "config.json").get("_class_name")
    if class_name != CLASS_NAME:
        raise ModelError(
            f"{name} is a {class_name}, which sdcli does not run", f"use a {CLASS_NAME} for SD 1.x or SDXL"
        )
    return entry


def _no_controlnet(name: str, named: tuple[str, ...]) -> InvalidRecipe:
    hint = f"use one such as {', '.join(named)}, or a folder with a {CLASS_NAME} in diffusers' format"
    return InvalidRecipe(f"{name} is no ControlNet", hint, "control")


def names() -> tuple[str, ...]:
    """The names of ControlNets."""
    return tuple(name for name, each in registry.entries().items() if each.kind == CONTROLNET)


def locate(name: str) -> Source:
    """Where a ControlNet lies. Raises what `find` raises."""
    return registry.locate(find(name))


def classes(source: Source | None) -> tuple[Class, ...]:
    """The classes of the maps that a ControlNet reads: its folder's, else ADE20K's, and those where it is not here.

    That is the palette which the segmentation ControlNets that are published were trained with.
    """
    return (() if source is None else palette.read(source.path)) or palette.shipped(palette.ADE20K)


def for_maps(model: LocatedModel) -> str:
    """The shipped ControlNet that reads maps for `model`, by name, where nobody says which.

    Raises InvalidRecipe, saying what the model takes, where there is none.
    """
    unet, facts = model.denoiser_config, model.facts
    family, _ = _family(unet)
    for name, each in registry.shipped().items():
        if each.classes and each.family == family:
            return name
    taking = registry.for_maps()
    hints = [f"use -m {taking}"] if located.find(taking).facts.classes else []
    if facts.takes_controlnets:
        hints.append(f"name with --control a ControlNet that reads maps; {_taken(unet)}")
    raise InvalidRecipe(
        f"this model takes a {'text' if facts.labels is None else 'class label'}, and no segmentation map",
        ", or ".join(hints) or "use another model",
        "segmentation_map",
    )


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise InvalidRecipe, saying what the model takes, unless the ControlNet at `source` fits it."""
    unet, facts = model.denoiser_config, model.facts
    config = families.read_json(source.path / "config.json")
    if not facts.takes_controlnets:
        hint = "omit --control, or use a model with a U-Net, such as sd15"
        raise InvalidRecipe("this model takes no ControlNet", hint, "control")
    for key, (default, words) in _ALIKE.items():
        theirs, ours = (_plain(each.get(key, default)) for each in (config, unet))
        if theirs != ours:
            said = f"it is made for {words.format(theirs)}, and the model's is {ours}"
            raise InvalidRecipe(f"the ControlNet {name} does not fit this model: {said}", _taken(unet), "control")
    vae_scale_factor = 2 ** (len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1)
    theirs = config.get("in_channels", 4), config.get("conditioning_channels", 3), vae_scale_factor
    ours = facts.latent_space.channels, 3, facts.latent_space.vae_scale_factor
    if theirs != ours:
        said = "it takes latents of {} channels and pictures of {} channels, {} pixels a latent".format(*theirs)
        hint = "this model has latents of {} channels, and pictures {} channels, {} pixels a latent".format(*ours)
        raise InvalidRecipe(f"the ControlNet {name} does not fit this model: {said}", hint, "control")


def takes(source: Source) -> dict[str, Any]:
    """What must be alike in the U-Net of a model beside the ControlNet at `source`, by the keys of their configs."""
    config = families.read_json(source.path / "config.json")
    return {key: _plain(config.get(key, default)) for key, (default, _) in _ALIKE.items()}


def _taken(unet: Mapping[str, Any]) -> str:
    """What the model takes: ControlNets by name, where some are made for its family, else by their config."""
    family, called = _family(unet)
    named = registry.entries().items()
    known = [name for name, each in named if family and each.kind == CONTROLNET and each.family == family]
    if known:
        return f"this model takes ControlNets made for {called}, such as {', '.join(known)}"
    config = ", ".join(f"{key} {_plain(unet.get(key, default))}" for key, (default, _) in _ALIKE.items())
    return f"this model takes ControlNets with {config}"


def _family(unet: Mapping[str, Any]) -> tuple[str | None, str]:
    return _FAMILIES.get(unet.get("cross_attention_dim", 0), (None, ""))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def files(source: Source) -> list[Path]:
    """The files of weights in the folder of a ControlNet. Raises ModelError where they are missing or unsafe."""
    return families.component_files(source.path, source.variant)


def attach(model: LatentDiffusionModel, addons: Sequence[Addon]) -> LatentDiffusionModel:
    """`model` with these ControlNets beside it, on its device and in its dtype, by the names that a recipe uses."""
    from sdcli.diffusion.model import ControlNet
    from sdcli.models.loading import controlnet as loading

    nets = {each.name: loading.load(each.source, device=model.device, dtype=model.dtype) for each in addons}
    palettes = {each.name: classes(each.source) for each in addons}
    return replace(model, controlnets={name: ControlNet(net, palettes[name]) for name, net in nets.items()})
