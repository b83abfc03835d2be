"""Makers: what turns recipes into finished pictures, in this process or elsewhere. Imports nothing heavy by itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sdcli.errors import OutOfMemory
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.making.picture import Picture
from sdcli.models.weights import Weights
from sdcli.planning import timings
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

OnStep = Callable[[Any], None]
"""Told after each step; what it is told has an `index`, from 1, and a `total`."""


@dataclass(frozen=True)
class Task:
    """Pictures that are made in one call of the network: `recipes` differ in nothing but their seeds.

    `processors` is the number that whoever asks could use, which bounds the threads that torch would take by itself.
    """

    weights: Weights
    recipes: Sequence[Recipe]
    inputs: Inputs = NO_INPUTS
    processors: int | None = None


class Maker(Protocol):
    """What makes the pictures of tasks. One is used for all of a command, so that it can keep what it has loaded."""

    @property
    def capacity(self) -> int:
        """How many tasks it can have in hand at once; one that is submitted beyond that waits for the others."""

    def load(self, weights: Weights, recipe: Recipe) -> Any:
        """Have `weights` ready for recipes like this one, if that saves time. Raises what loading them raises."""

    def submit(self, task: Task, on_step: OnStep = ...) -> Future[list[Picture]]:
        """Begin to make the pictures of `task`. The future may be done already; it holds what kept them, if anything.

        KeyboardInterrupt and the like are raised at once.
        """


def finished(make: Callable[[], list[Picture]]) -> Future[list[Picture]]:
    """A future that is done: with what `make` returns, or the exception that it raises."""
    future: Future[list[Picture]] = Future()
    try:
        future.set_result(make())
    except Exception as error:  # noqa: BLE001  it is for whoever asks for the result
        future.set_exception(error)
    return future


_Key = tuple[Weights, tuple[str, ...], str, str, str]
"""What is loaded and its digests, the name it goes by, the device and the dtype."""


class LocalMaker:
    """Makes pictures in this process and thread, and keeps at most `keep` loaded models: those used last.

    Where memory runs out, all others are put away and it is tried once more. A picture is always what it would be if
    its model had just been loaded from the files as they are.
    """

    capacity = 1

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep
        self._kept: dict[_Key, LatentDiffusionModel] = {}  # the least recently used first

    def load(self, weights: Weights, recipe: Recipe) -> LatentDiffusionModel:
        """The loaded model, on the device that the recipe asks for. Raises what `assemble.load` raises, and
        ModelCorrupt where files change while they are read.
        """
        return self._loaded(weights, _resolve(recipe))

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Make the pictures of `task` now; see `Maker`."""
        return finished(lambda: self.make(task, on_step))

    def make(self, task: Task, on_step: OnStep = lambda step: None) -> list[Picture]:
        """The pictures of `task`. Raises what `load` and `pipeline.run` raise."""
        resolved = _resolve(task.recipes[0], task.processors)
        try:
            return self._make(task, resolved, on_step)
        except OutOfMemory:
            if all(each == _key(task.weights, resolved) for each in self._kept):
                raise
        self._put_away_all()  # only here, for the exception holds on to what it met
        return self._make(task, resolved, on_step)

    def _make(self, task: Task, resolved: Recipe, on_step: OnStep) -> list[Picture]:
        from sdcli.diffusion import pipeline

        model = self._loaded(task.weights, resolved)
        execution = {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}
        recipes = [recipe.replace(**execution) for recipe in task.recipes]
        results = pipeline.run(model, recipes, on_step, inputs=task.inputs)
        for result in results:
            timings.record(result.recipe, task.weights, result.seconds)
        return [Picture.of(result, task.weights) for result in results]

    def _loaded(self, weights: Weights, resolved: Recipe) -> LatentDiffusionModel:
        from sdcli.models import assemble

        key = _key(weights, resolved)
        model = self._kept.pop(key, None)
        if model is None:
            for each in [old for old in self._kept if old[0] == weights and old[1] != key[1]]:
                del self._kept[each]  # its files are other ones now
            while len(self._kept) >= self.keep:
                del self._kept[next(iter(self._kept))]
            model = assemble.load(weights, resolved)
            weights.check_unchanged()
        self._kept[key] = model
        return model

    def _put_away_all(self) -> None:
        import torch

        self._kept.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _key(weights: Weights, resolved: Recipe) -> _Key:
    return weights, weights.digests, resolved.model, resolved.execution.device, resolved.execution.dtype


def _resolve(recipe: Recipe, processors: int | None = None) -> Recipe:
    """`device.resolve_execution`, with no more threads than `processors` where the recipe leaves them open."""
    from sdcli.diffusion import device  # torch and all that follows: seconds, under the bar

    threads = recipe.execution.threads or min(device.DEFAULT_THREADS, processors or device.DEFAULT_THREADS)
    return device.resolve_execution(recipe.replace(threads=threads))
