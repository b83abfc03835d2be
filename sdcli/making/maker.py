"""Makers turn recipes into finished pictures, in this process or elsewhere. Imports nothing heavy at the top."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdcli.errors import ModelCorrupt, OutOfMemory, SdcliError
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.making.picture import Picture
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import timings
from sdcli.recipe.recipe import Recipe
from sdcli.terminal.printable import one_line

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

OnStep = Callable[[Any], None]
"""Called after each step with an object that has an `index`, from 1, and a `total`."""


@dataclass(frozen=True)
class Task:
    """Pictures that are made in one call of the network: `recipes` only differ in their seeds.

    `processors` is the number of processors of the caller, which limits torch's default number of threads.
    """

    weights: Weights
    recipes: Sequence[Recipe]
    inputs: Inputs = NO_INPUTS
    processors: int | None = None


class Maker(Protocol):
    """Makes the pictures of tasks. A command uses one maker, so that it can keep loaded models."""

    @property
    def capacity(self) -> int:
        """How many tasks it can run at once; further tasks wait."""

    def load(self, weights: Weights, recipe: Recipe) -> Any:
        """Load `weights` for recipes like this one in advance, if that saves time. Raises what loading raises."""

    def submit(self, task: Task, on_step: OnStep = ...) -> Future[list[Picture]]:
        """Start making the pictures of `task`. The future can be done already; it has the exception of a failure.

        KeyboardInterrupt and similar exceptions are raised immediately.
        """


def finished(make: Callable[[], list[Picture]]) -> Future[list[Picture]]:
    """Return a finished future with the result of `make` or its exception."""
    future: Future[list[Picture]] = Future()
    try:
        future.set_result(make())
    except Exception as error:  # noqa: BLE001  raised by `result`
        future.set_exception(error)
    return future


_Key = tuple[Source, str, str, str, str]
"""The model and its name, the device, the dtype, and the format to which it is quantised."""


_Kept = tuple["LatentDiffusionModel", Weights]
"""A loaded model with its add-ons, and what it was loaded from; their digests are already computed."""


class LocalMaker:
    """Makes pictures in this process and thread, and keeps the `keep` most recently used models in memory.

    If memory runs out, it unloads all models and tries once more. A kept model is only used while its files are
    unchanged. Pictures with other add-ons use the same kept model, whose add-ons are replaced.
    """

    capacity = 1

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep
        self._kept: dict[_Key, _Kept] = {}  # least recently used first

    def load(self, weights: Weights, recipe: Recipe) -> LatentDiffusionModel:
        """Load the model on the recipe's device. Raises what `assemble.load` raises, and ModelCorrupt if files change
        while they are read.
        """
        return self._loaded(weights, _resolve(recipe))

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Make the pictures of `task` now; see `Maker`."""
        return finished(lambda: self.make(task, on_step))

    def make(self, task: Task, on_step: OnStep = lambda step: None) -> list[Picture]:
        """Make the pictures of `task`. Raises what `load` and `pipeline.run` raise."""
        resolved = _resolve(task.recipes[0], task.processors)
        try:
            return self._make(task, resolved, on_step)
        except OutOfMemory:
            if all(each == _key(task.weights, resolved) for each in self._kept):
                raise
        self._unload_all()  # not in the except block, because the exception keeps references
        return self._make(task, resolved, on_step)

    def _make(self, task: Task, resolved: Recipe, on_step: OnStep) -> list[Picture]:
        from sdcli.diffusion import pipeline

        model = self._loaded(task.weights, resolved)
        execution = {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}
        recipes = [recipe.replace(**execution) for recipe in task.recipes]
        with _of_the_model(task.weights.model):
            results = pipeline.run(model, recipes, on_step, inputs=task.inputs)
        for result in results:
            timings.record(result.recipe, task.weights, result.seconds)
        return [Picture.of(result, task.weights) for result in results]

    def _loaded(self, weights: Weights, resolved: Recipe) -> LatentDiffusionModel:
        from sdcli.models import assemble

        key, digests = _key(weights, resolved), weights.digests  # computed before the files are read
        model, before = self._kept.pop(key, (None, None))  # kept again when it is complete
        if model is not None and before is not None and (before.addons, before.digests) == (weights.addons, digests):
            self._kept[key] = model, weights
            return model
        if model is not None and before is not None and before.digests[0] == digests[0]:
            model = assemble.change(model, before, weights, resolved)
        else:
            model = None  # frees its memory
            while len(self._kept) >= self.keep:
                del self._kept[next(iter(self._kept))]
            model = assemble.load(weights, resolved)
        weights.check_unchanged()
        self._kept[key] = model, weights
        return model

    def _unload_all(self) -> None:
        import torch

        self._kept.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_MAX_REASON = 300  # characters
_OF_LIBRARIES = ("torch/nn/modules/module.py", "diffusers/models/", "diffusers/schedulers/", "transformers/models/")
"""What runs a network and a scheduler, whose configs are the model's."""


@contextmanager
def _of_the_model(source: Source) -> Iterator[None]:
    """Convert what a network or a scheduler raises to ModelCorrupt: not every config that can be loaded can be run."""
    try:
        yield
    except (SdcliError, MemoryError):
        raise
    except Exception as error:
        frames = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if not any(part in Path(name).as_posix() for name in frames for part in _OF_LIBRARIES):
            raise
        reason = one_line(str(error))[:_MAX_REASON] or type(error).__name__
        raise ModelCorrupt(
            f"{source.path} can be loaded, but not run: {reason}",
            "a config does not fit the weights; download the model again, or see which one with --debug",
        ) from error


def _key(weights: Weights, resolved: Recipe) -> _Key:
    execution = resolved.execution
    return weights.model, resolved.model, execution.device, execution.dtype, resolved.loading.quantize


def _resolve(recipe: Recipe, processors: int | None = None) -> Recipe:
    """Resolve the execution, with at most `processors` threads unless the recipe sets their number."""
    from sdcli.diffusion import device  # imports torch, which takes seconds

    threads = recipe.execution.threads or min(device.DEFAULT_THREADS, processors or device.DEFAULT_THREADS)
    return device.resolve_execution(recipe.replace(threads=threads))
