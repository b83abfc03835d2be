"""Models and add-ons that a worker needs: named by the caller, and found on the worker's machine by their digests.

The same files can be anywhere: at the caller's path, where this machine's entry of the same name is, or among those
that were copied here (see `shipping`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.files.user_files import cache_folder
from sdcli.making.cluster import shipping
from sdcli.models import addons, registry
from sdcli.models.source import Source
from sdcli.models.weights import Weights

MODEL = "model"


@dataclass(frozen=True)
class Wanted:
    """A model, or an add-on of a `kind`: its name, its absolute location on the caller's machine, and its digest."""

    kind: str
    name: str
    source: Source
    sha256: str

    @property
    def title(self) -> str:
        """How messages name it."""
        kind = "model" if self.kind == MODEL else addons.KINDS[self.kind].title
        return f"{kind} {self.name!r} (sha256 {self.sha256[:12]}…)"


def of(weights: Weights, name: str) -> tuple[Wanted, ...]:
    """Return what `weights` consist of, the model first, whose name is `name`."""
    kinds = [(MODEL, name), *((each.kind, each.name) for each in weights.addons)]
    sources = weights.absolute().sources  # new objects, so that no digest that was computed here travels with them
    return tuple(
        Wanted(kind, name, source, digest)
        for (kind, name), source, digest in zip(kinds, sources, weights.digests, strict=True)
    )


def missing(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return those that are not on this machine."""
    return [each for each in wanted if find(each) is None]


def find(wanted: Wanted) -> Source | None:
    """Find the files with the digest of `wanted` on this machine; their digests are computed here."""
    for locate in _candidates(wanted):
        with suppress(SdcliError, OSError):
            source = locate()
            source = replace(source, variant=wanted.source.variant, family=wanted.source.family)
            if source.sha256 == wanted.sha256:
                return source
    return None


def shipped_folder(wanted: Wanted) -> Path:
    """Return the folder of this machine for a copy of `wanted`."""
    return cache_folder() / "shipped" / wanted.sha256


def _candidates(wanted: Wanted) -> Iterator[Callable[[], Source]]:
    yield lambda: wanted.source
    yield lambda: shipping.copy_of(wanted.source, shipped_folder(wanted))
    if wanted.kind == MODEL:
        yield lambda: registry.locate(registry.find(wanted.name))
    else:
        yield lambda: addons.find_addon(wanted.kind, wanted.name)
