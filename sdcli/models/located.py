"""A model on this machine: its entry, location and facts. Located once per command, and then passed on.

A second lookup could give another model, if `sdcli models pull` has changed the commit meanwhile. Reads JSON, no
weights; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from sdcli.models import registry
from sdcli.models.registry import ModelEntry, ModelFacts
from sdcli.models.source import Source
from sdcli.recipe.recipe import loading_of


@dataclass(frozen=True)
class LocatedModel:
    """A model that is on this machine. Its digest is `source.sha256`."""

    entry: ModelEntry
    source: Source
    facts: ModelFacts

    @cached_property
    def denoiser_config(self) -> Mapping[str, Any]:
        """The config of the model's U-Net or transformer. Raises ModelCorrupt if it cannot be read."""
        return self.source.config(self.source.denoiser)


def find(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> LocatedModel:
    """Locate a model by its name, with the parts that flat keys of a recipe have.

    Raises what `registry.find` and `locate` raise, and InvalidRecipe for invalid parts.
    """
    return locate(registry.with_parts(registry.find(name), loading_of(options).places))


def locate(entry: ModelEntry) -> LocatedModel:
    """Locate the model of `entry`.

    Raises InvalidRecipe for a ControlNet, ModelNotFound if the model is not on this machine, and ModelCorrupt if its
    configs cannot be read.
    """
    registry.check_is_model(entry)
    source = registry.locate(entry)
    return LocatedModel(entry, source, registry.read_facts(source))
