"""A model as a command found it: its entry, where it lies, what its configs say. Found once, and passed on from there.

Whoever looks a model up a second time may find another one: `sdcli models pull` may have moved the name to another
commit in between. Reads JSON, never weights; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sdcli.models import families, registry
from sdcli.models.registry import ModelEntry, ModelFacts
from sdcli.models.source import Source


@dataclass(frozen=True)
class LocatedModel:
    """A model that is on this machine. Its digest is `source.sha256`."""

    entry: ModelEntry
    source: Source
    facts: ModelFacts

    @cached_property
    def denoiser_config(self) -> Mapping[str, Any]:
        """The config of the model's U-Net, or transformer. Raises ModelCorrupt where it cannot be read."""
        return families.read_json(self.source.folder(self.source.denoiser) / "config.json")


def find(name: str) -> LocatedModel:
    """The model that `name` stands for. Raises what `registry.find` and `locate` raise."""
    return locate(registry.find(name))


def locate(entry: ModelEntry) -> LocatedModel:
    """The model of `entry`.

    Raises InvalidRecipe for a ControlNet, ModelNotFound where the model is not on this machine, and ModelCorrupt where
    its configs cannot be read.
    """
    registry.check_is_model(entry)
    source = registry.locate(entry)
    return LocatedModel(entry, source, registry.read_facts(source))
