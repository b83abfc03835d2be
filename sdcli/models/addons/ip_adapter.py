"""IP-Adapters, with which images are prompts, and the image encoders that they need: finding, checking, attaching them.

Reads only headers and configs, except `attach` and `attach_encoder`, which read weights and import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import architectures
from sdcli.errors import ModelError, ModelNotFound
from sdcli.models import configs, families, ip_adapter_file, registry
from sdcli.models.addons import files_by_name
from sdcli.models.located import LocatedModel
from sdcli.models.registry import IP_ADAPTER
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.recipe import image_prompts_of

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = IP_ADAPTER
ENCODER = "image-encoder"
NAMES = files_by_name.Names("IP-Adapter", "ip_adapter_dir", KIND)
_PLACES = ("image_encoder", "../models/image_encoder", "../sdxl_models/image_encoder")
"""Where the image encoder is, seen from the folder of the adapter, in h94/IP-Adapter."""


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the IP-Adapter in flat keys of a recipe."""
    name = image_prompts_of(options).ip_adapter
    return [] if name is None else [Asked(name)]


def encoder_asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the image encoder in flat keys of a recipe, or the one that is near the IP-Adapter."""
    prompts = image_prompts_of(options)
    if prompts.ip_adapter is None:
        return []
    return [Asked(prompts.image_encoder or _near(locate(prompts.ip_adapter).path))]


def locate(name: str) -> Source:
    """Locate an IP-Adapter. Raises ModelNotFound, and ModelError for an add-on of another kind."""
    return NAMES.locate(name)


def locate_encoder(name: str) -> Source:
    """Locate the folder of an image encoder, or a repository in the hub cache. Raises ModelNotFound."""
    path = registry.existing(name)
    source = Source(path) if path is not None else registry.locate(registry.find(name))
    if not (source.path / "config.json").is_file():
        hint = "give the folder of a CLIPVisionModelWithProjection, with config.json and model.safetensors"
        raise ModelNotFound(f"{name} is no image encoder", hint)
    return source


def _near(adapter: Path) -> str:
    """Return the folder of the image encoder that is near an adapter and fits it. Raises ModelNotFound."""
    made = ip_adapter_file.read(adapter)
    found = [folder for folder in _folders(adapter) if _features(folder, made.patches) == made.image_features]
    if found:
        return str(found[0])
    hint = f"give one of {made.image_features} features with --image-encoder FOLDER"
    raise ModelNotFound(f"there is no image encoder for {adapter} near it", hint)


def _folders(adapter: Path) -> Iterator[Path]:
    for place in _PLACES:
        up = adapter.parent.parent if place.startswith("../") else adapter.parent
        folder = up / place.removeprefix("../")
        if (folder / "config.json").is_file():
            yield folder


def _features(folder: Path, patches: bool) -> Any:
    """Return the features of each patch, or of the whole image, that an encoder gives; transformers' defaults."""
    config = configs.read(folder / "config.json")
    return config.get("hidden_size", 768) if patches else config.get("projection_dim", 512)


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise ModelError unless the file at `source` is an IP-Adapter for `model`."""
    made = ip_adapter_file.read(source.path)
    if architectures.find(model.source.denoiser, model.denoiser_config) != "unet" or model.facts.labels is not None:
        raise ModelError(f"{model.entry.name} does not support IP-Adapters", "use a model of SD 1.x or SDXL")
    takes = model.denoiser_config.get("cross_attention_dim")
    if made.token_features != takes:
        what = f"the IP-Adapter {name} is made for {made.made_for}, and {model.entry.name} is not one of them"
        raise ModelError(what, f"use an IP-Adapter for models whose text has {takes} features per token")


def check_encoder_fits(name: str, source: Source, model: LocatedModel) -> None:
    """Raise ModelError unless the folder has an image encoder; whether it fits the adapter is told on loading."""
    config = configs.read(source.path / "config.json")
    listed = config.get("architectures") or ["CLIPVisionModelWithProjection"]
    if listed[0] != "CLIPVisionModelWithProjection":
        raise ModelError(f"{name} is a {listed[0]}, no image encoder", "use a CLIPVisionModelWithProjection")


def files(source: Source) -> list[Path]:
    """Return the weight files of an IP-Adapter."""
    return [source.path]


def encoder_files(source: Source) -> list[Path]:
    """Return the weight files of an image encoder. Raises ModelError if they are missing or unsafe."""
    return families.component_files(source.path, source.variant)


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Replace the IP-Adapter of `model` by that of `weights`. Raises ModelError for tensors that do not fit."""
    from sdcli.models.loading import ip_adapter as loading

    return loading.attach(model, [each.source.path for each in weights.of_kind(KIND)])


def attach_encoder(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Replace the image encoder of `model` by that of `weights`."""
    from sdcli.models.loading import ip_adapter as loading

    found = [loading.load_encoder(each.source, model.storage, model.dtype) for each in weights.of_kind(ENCODER)]
    return replace(model, image_encoder=found[0] if found else None)
