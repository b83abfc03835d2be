"""What is loaded to make pictures, a model and its add-ons, as one value. Imports no torch.

Everything that has to tell one set of weights from another asks this: what keeps loaded models, what a warm process is
asked for, what a picture records, and what a batch knows a job by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sdcli.models.source import Source


@dataclass(frozen=True)
class Addon:
    """Weights that are of use only beside a model's own, such as a ControlNet. `name` is what the recipe calls it.

    `scale` is how strongly it is merged into the model's weights, None for a kind that is not merged: how much such a
    one counts is the recipe's to say, and needs no loading.
    """

    kind: str
    name: str
    source: Source
    scale: float | None = None

    def describe(self) -> dict[str, Any]:
        """Kind, name, scale if there is one, and digest, for JSON."""
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"kind": self.kind, "name": self.name, **scale, "sha256": self.source.sha256}


@dataclass(frozen=True)
class Weights:
    """A model and its add-ons, each where it lies. Equal values are the same files by their paths."""

    model: Source
    addons: tuple[Addon, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where everything lies, the model first."""
        return self.model, *(each.source for each in self.addons)

    @property
    def digests(self) -> tuple[str, ...]:
        """The sha256 of each of `sources`. With the value itself it tells whether the same files are asked for."""
        return tuple(each.sha256 for each in self.sources)

    def of_kind(self, kind: str) -> tuple[Addon, ...]:
        """The add-ons of one kind, in order."""
        return tuple(each for each in self.addons if each.kind == kind)

    def check_unchanged(self) -> None:
        """Raise ModelCorrupt where files are no longer those that `digests` was computed from."""
        for each in self.sources:
            each.check_unchanged()

    def absolute(self) -> Self:
        """The same with paths that mean the same wherever a process stands."""
        addons = tuple(replace(each, source=each.source.absolute()) for each in self.addons)
        return replace(self, model=self.model.absolute(), addons=addons)

    def metadata(self) -> dict[str, Any]:
        """What a picture records of them."""
        addons = [each.describe() for each in self.addons]
        return {"model_digest": self.model.sha256, **({"addons": addons} if addons else {})}

    def to_wire(self) -> dict[str, Any]:
        """JSON from which `from_wire` makes the same value in another process on this machine."""
        addons = [
            {"kind": each.kind, "name": each.name, "scale": each.scale, "source": _to_wire(each.source)}
            for each in self.absolute().addons
        ]
        return {"model": _to_wire(self.model.absolute()), "addons": addons}

    @classmethod
    def from_wire(cls, said: Mapping[str, Any]) -> Self:
        """The value that `to_wire` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        addons = [
            Addon(str(each["kind"]), str(each["name"]), _from_wire(each["source"]), each["scale"])
            for each in said["addons"]
        ]
        return cls(_from_wire(said["model"]), tuple(addons))


def _to_wire(source: Source) -> dict[str, Any]:
    parts = {part: str(folder) for part, folder in source.parts}
    return {"path": str(source.path), "variant": source.variant, "family": source.family, "parts": parts}


def _from_wire(said: Mapping[str, Any]) -> Source:
    parts = tuple((str(part), Path(folder)) for part, folder in sorted(said["parts"].items()))
    return Source(Path(said["path"]), said["variant"], said["family"], parts)
