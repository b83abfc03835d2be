"""The models in memory, and making pictures with them. For one thread only; knows nothing of HTTP."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import OutOfMemory
from sdcli.making import delivery
from sdcli.making.remote import Picture
from sdcli.models.digest import model_digest
from sdcli.models.registry import ModelEntry, locate
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.files.inputs import Inputs


Controls = tuple[tuple[str, Source], ...]
"""ControlNets by the names that a recipe calls them, and where they are."""
Key = tuple[Source, Controls, str, str, str]
"""A source, the ControlNets beside it, the name, the device and the dtype of a model in memory."""


@dataclass(frozen=True)
class _Kept:
    model: LatentDiffusionModel
    stamp: tuple[Any, ...]


def source_of(entry: ModelEntry) -> Source:
    """Where the model of `entry` is, wherever this process stands. Raises ModelNotFound for an absent repository."""
    source = locate(entry)
    parts = tuple((part, _absolute(folder)) for part, folder in source.parts)
    return replace(source, path=_absolute(source.path), parts=parts)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute() keeps `..`


class Models:
    """At most `keep` loaded models, the least recently used put away for a new one.

    A model whose files have changed since is loaded anew, and all others are put away where memory runs out: in every
    case the picture is that of a process of its own.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._kept: dict[Key, _Kept] = {}  # the least recently used first

    def load(self, source: Source, recipe: Recipe) -> None:
        """Have the model in memory for recipes like `recipe`."""
        self._get(source, (), self._resolve(recipe))

    def make(
        self,
        source: Source,
        recipes: Sequence[Recipe],
        on_step: Callable[[Any], None] = lambda step: None,
        *,
        processors: int | None = None,
        given: Inputs | None = None,
        directory: Path = Path(),
        controls: Mapping[str, Source] | None = None,
    ) -> tuple[Picture, ...]:
        """The pictures of `recipes`, which differ in nothing but their seeds, as a cold run in `directory` makes them.

        `given` are the image and the mask they start from, where the recipes name files that are not here, and
        `controls` where their ControlNets are.

        `processors` is the number that a cold run could use, which bounds the number of threads that torch would
        take by itself. Where memory runs out, all models are put away and it is tried once more. Raises what
        `assemble.load` and `pipeline.run` raise.
        """
        from sdcli.files import metadata

        work = partial(
            self._make, source, tuple((controls or {}).items()), recipes, on_step, processors=processors, given=given
        )
        with metadata.relative_to(directory):
            try:
                return work()
            except OutOfMemory:
                if not self._kept:
                    raise
            self._put_away_all()  # only here, for the exception holds on to what it met
            return work()

    def _make(
        self,
        source: Source,
        controls: Controls,
        recipes: Sequence[Recipe],
        on_step: Callable[[Any], None],
        *,
        processors: int | None,
        given: Inputs | None,
    ) -> tuple[Picture, ...]:
        from sdcli.diffusion import pipeline
        from sdcli.files import images

        resolved = self._resolve(recipes[0], processors)
        model = self._get(source, controls, resolved)
        execution = {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}
        digest = model_digest(source)
        results = pipeline.run(model, [recipe.replace(**execution) for recipe in recipes], on_step, given=given)
        return tuple(
            Picture(
                delivery.png_bytes(each, digest),
                images.pixels_sha256(each.image),
                each.recipe,
                each.seconds,
                each.warnings,
                each.flat,
                delivery.latents_bytes(each, digest),
            )
            for each in results
        )

    def _resolve(self, recipe: Recipe, processors: int | None = None) -> Recipe:
        """`resolve_execution`, with no more threads than `processors` where the recipe leaves them open."""
        from sdcli.diffusion import device

        threads = recipe.execution.threads or min(device.DEFAULT_THREADS, processors or device.DEFAULT_THREADS)
        return device.resolve_execution(recipe.replace(threads=threads))

    def _get(self, source: Source, controls: Controls, resolved: Recipe) -> LatentDiffusionModel:
        from sdcli.models import assemble

        key = source, controls, resolved.model, resolved.execution.device, resolved.execution.dtype
        stamp = tuple(_stamp(each) for each in (source, *dict(controls).values()))
        found = self._kept.pop(key, None)
        if found is None or found.stamp != stamp:
            found = None  # gone before the new one comes
            while len(self._kept) >= self.keep:
                del self._kept[next(iter(self._kept))]
            model = assemble.load(source, resolved, dict(controls))
            found = _Kept(model, stamp)
        self._kept[key] = found
        return found.model

    def _put_away_all(self) -> None:
        import torch

        self._kept.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stamp(source: Source) -> tuple[Any, ...]:
    """What changes when a model's files do: their names, sizes and times."""
    stats = [(name, file.stat()) for name, file in source.files().items() if file.exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
