"""What is loaded to make pictures: a model and its add-ons. Imports no torch.

`Weights` is the key of loaded models, part of a request to the warm process, of a picture's metadata, and of the
identity of a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sdcli.models.source import Source


@dataclass(frozen=True)
class Addon:
    """Weights that are loaded together with a model, such as a ControlNet. `name` is its name in the recipe.

    `scale` is the scale with which it is merged into the model's weights, or None for a kind that is not merged; the
    recipe has the scale of such a kind.
    """

    kind: str
    name: str
    source: Source
    scale: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return kind, name, scale if there is one, and digest, for JSON."""
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"kind": self.kind, "name": self.name, **scale, "sha256": self.source.sha256}


@dataclass(frozen=True)
class Weights:
    """The locations of a model and its add-ons. Equal values have the same paths."""

    model: Source
    addons: tuple[Addon, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """All locations, the model's first."""
        return self.model, *(each.source for each in self.addons)

    @property
    def digests(self) -> tuple[str, ...]:
        """The sha256 of each of `sources`."""
        return tuple(each.sha256 for each in self.sources)

    def of_kind(self, kind: str) -> tuple[Addon, ...]:
        """Return the add-ons of one kind, in order."""
        return tuple(each for each in self.addons if each.kind == kind)

    def check_unchanged(self) -> None:
        """Raise ModelCorrupt if files have changed since `digests` was computed."""
        for each in self.sources:
            each.check_unchanged()

    def absolute(self) -> Self:
        """Return the same with absolute paths."""
        addons = tuple(replace(each, source=each.source.absolute()) for each in self.addons)
        return replace(self, model=self.model.absolute(), addons=addons)

    def metadata(self) -> dict[str, Any]:
        """Return the entries of a picture's metadata."""
        addons = [each.describe() for each in self.addons]
        return {"model_digest": self.model.sha256, **({"addons": addons} if addons else {})}

    def to_wire(self) -> dict[str, Any]:
        """Convert to JSON for `from_wire` in another process on this machine."""
        addons = [
            {"kind": each.kind, "name": each.name, "scale": each.scale, "source": _to_wire(each.source)}
            for each in self.absolute().addons
        ]
        return {"model": _to_wire(self.model.absolute()), "addons": addons}

    @classmethod
    def from_wire(cls, recorded: Mapping[str, Any]) -> Self:
        """Convert from the JSON of `to_wire`. Raises KeyError, TypeError or ValueError for anything else."""
        addons = [
            Addon(str(each["kind"]), str(each["name"]), _from_wire(each["source"]), each["scale"])
            for each in recorded["addons"]
        ]
        return cls(_from_wire(recorded["model"]), tuple(addons))


def _to_wire(source: Source) -> dict[str, Any]:
    parts = {part: str(folder) for part, folder in source.parts}
    return {"path": str(source.path), "variant": source.variant, "family": source.family, "parts": parts}


def _from_wire(recorded: Mapping[str, Any]) -> Source:
    parts = tuple((str(part), Path(folder)) for part, folder in sorted(recorded["parts"].items()))
    return Source(Path(recorded["path"]), recorded["variant"], recorded["family"], parts)
