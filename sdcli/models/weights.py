"""What is loaded to make pictures: a model and its add-ons. Imports no torch.

`Weights` is the key of loaded models, part of a request to the warm process, of a picture's metadata, and of the
identity of a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sdcli.files.user_files import from_home
from sdcli.models.source import Source


@dataclass(frozen=True)
class Asked:
    """What a recipe asks of an add-on: its name there, and how it is merged into the model's weights.

    A kind that is not merged, such as ControlNets, has no scales here; the recipe has them.
    """

    name: str
    scale: float | None = None
    text_scale: float | None = None
    """The scale for the text encoders."""
    partial: bool = False
    """Whether tensors that do not fit the model are left out with a warning, instead of being an error."""


@dataclass(frozen=True)
class Addon:
    """Weights that are loaded together with a model, such as a ControlNet."""

    kind: str
    asked: Asked
    source: Source

    @property
    def name(self) -> str:
        """Its name in the recipe."""
        return self.asked.name

    def describe(self) -> dict[str, Any]:
        """Return kind, name, scales if it is merged, and digest, for JSON."""
        asked = {key: value for key, value in vars(self.asked).items() if value is not None and value is not False}
        return {"kind": self.kind, **asked, "sha256": self.source.sha256}


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

    @property
    def identity(self) -> str:
        """What the tensors of a loaded model depend on: the digests, and how add-ons are merged."""
        return "\n".join((*self.digests, *(repr(each.asked) for each in self.addons)))

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
        addons = [{**each.describe(), "name": from_home(each.name)} for each in self.addons]
        return {"model_digest": self.model.sha256, **({"addons": addons} if addons else {})}

    def to_wire(self) -> dict[str, Any]:
        """Convert to JSON for `from_wire` in another process on this machine."""
        addons = [
            {"kind": each.kind, "asked": vars(each.asked), "source": _to_wire(each.source)}
            for each in self.absolute().addons
        ]
        return {"model": _to_wire(self.model.absolute()), "addons": addons}

    @classmethod
    def from_wire(cls, recorded: Mapping[str, Any]) -> Self:
        """Convert from the JSON of `to_wire`. Raises KeyError, TypeError or ValueError for anything else."""
        addons = [
            Addon(str(each["kind"]), Asked(**each["asked"]), _from_wire(each["source"])) for each in recorded["addons"]
        ]
        return cls(_from_wire(recorded["model"]), tuple(addons))


def _to_wire(source: Source) -> dict[str, Any]:
    parts = {part: str(folder) for part, folder in source.parts}
    return {"path": str(source.path), "variant": source.variant, "family": source.family, "parts": parts}


def _from_wire(recorded: Mapping[str, Any]) -> Source:
    parts = tuple((str(part), Path(folder)) for part, folder in sorted(recorded["parts"].items()))
    return Source(Path(recorded["path"]), recorded["variant"], recorded["family"], parts)
