"""Upscalers: networks that enlarge pictures, for a second pass or `sdcli upscale`. They take pictures of any model.

Reads only headers, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.models.addons import files_by_name
from sdcli.models.located import LocatedModel
from sdcli.models.registry import UPSCALER
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.recipe import enlarging_of, hires_of

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = UPSCALER
NAMES = files_by_name.Names("upscaler", "upscaler_dir", KIND)


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the upscalers in flat keys of a recipe: those of an image and of the second pass."""
    names = (enlarging_of(options).network, hires_of(options).network)
    return [Asked(name) for name in dict.fromkeys(names) if name is not None]


def locate(name: str) -> Source:
    """Locate an upscaler. Raises ModelNotFound, and ModelError for an add-on of another kind."""
    return NAMES.locate(name)


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Accept every model: an upscaler takes pixels. What is in its file is told when it is loaded."""


def files(source: Source) -> list[Path]:
    """Return the weight files of an upscaler."""
    return [source.path]


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Replace the upscalers of `model` by those of `weights`."""
    from sdcli.models.loading import upscaler as loading

    found = weights.of_kind(KIND)
    loaded = {each.name: loading.load(each.source.path, device=model.storage) for each in found}
    return replace(model, upscalers=loaded)
