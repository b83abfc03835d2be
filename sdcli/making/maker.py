"""Makers turn recipes into finished pictures, in this process or elsewhere. Imports nothing heavy at the top."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from sdcli.errors import NotDecoded, OutOfMemory
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.making.kept import Kept, fit, load, of_the_model
from sdcli.making.picture import Picture
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run, memory, timings
from sdcli.planning.memory import MemoryPlan, Sizes
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from sdcli.diffusion.finish import Result
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.diffusion.watching import Watch

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


def group_of(weights: Weights, recipe: Recipe) -> Hashable:
    """Return what the tasks have in common that one loaded model makes."""
    execution = recipe.execution
    return weights, recipe.model, execution.device, execution.dtype


class Maker(Protocol):
    """Makes the pictures of tasks. A command uses one maker, so that it can keep loaded models."""

    @property
    def capacity(self) -> int:
        """How many tasks it can run at once; further tasks wait."""

    @property
    def reads_inputs(self) -> bool:
        """Whether it reads the files of recipes itself, so that tasks need no inputs."""

    def choose(self, left: Mapping[Hashable, int]) -> Hashable:
        """Return the group (see `group_of`) of the task to submit next; `left` has their numbers of tasks."""

    def load(self, weights: Weights, recipes: Sequence[Recipe]) -> Any:
        """Load `weights` for `recipes` in advance, if that saves time. Raises what loading raises."""

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


class InOrder:
    """A maker that runs one task at a time, one group after the other."""

    capacity = 1
    reads_inputs = False

    def choose(self, left: Mapping[Hashable, int]) -> Hashable:
        """Return the first group."""
        return next(iter(left))


_Key = tuple[Source, str, str, str, str, str, str, bool]
"""The model and its name, the device, the dtype, the format to which it is quantised, how much memory to use, the
engine, and whether it is compiled."""


class LocalMaker(InOrder):
    """Makes pictures in this process and thread, and keeps the `keep` most recently used models in memory.

    A model is loaded as `planning.memory` plans it. If memory runs out nevertheless, it unloads all models and tries
    once more; pictures that were sampled are only decoded again. A kept model is only used while its files are
    unchanged. Pictures with other add-ons use the same kept model, whose add-ons are replaced.
    """

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep
        self._kept: dict[_Key, Kept] = {}  # least recently used first
        self._expected: Sequence[Recipe] = ()

    def load(self, weights: Weights, recipes: Sequence[Recipe]) -> LatentDiffusionModel:
        """Load the model on the device of the first of `recipes`, which are those to come.

        If its text encoders have to be dropped, they encode the prompts of `recipes` before. Raises what
        `assemble.load` raises, and ModelCorrupt if files change while they are read.
        """
        self._expected = recipes
        return self._ready(weights, _resolve(recipes[0]), None).model

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Make the pictures of `task` now; see `Maker`."""
        return finished(lambda: self.make(task, on_step))

    def make(self, task: Task, on_step: OnStep = lambda step: None, *, watch: Watch | None = None) -> list[Picture]:
        """Make the pictures of `task`; `watch` sees what the loop does.

        Raises what `load` and `pipeline.run` raise, and NotDecoded.
        """
        resolved = _resolve(task.recipes[0], task.processors)
        try:
            return self._make(task, resolved, on_step, watch)
        except OutOfMemory as error:
            if isinstance(error, NotDecoded) or all(each == _key(task.weights, resolved) for each in self._kept):
                raise
        self._unload()  # not in the except block, because the exception keeps references
        return self._make(task, resolved, on_step, watch)

    def _make(self, task: Task, resolved: Recipe, on_step: OnStep, watch: Watch | None) -> list[Picture]:
        kept = self._ready(task.weights, resolved, task.inputs)
        execution = {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}
        recipes = [recipe.replace(**execution) for recipe in task.recipes]
        with of_the_model(task.weights.model):
            results = self._results(kept, recipes, task.inputs, on_step, watch)
        for result in results:
            timings.record(result.recipe, task.weights, result.seconds)
        plan = kept.plan
        return [Picture.of(each, task.weights, replace(plan, tiling=each.recipe.execution.tiling)) for each in results]

    def _results(
        self, kept: Kept, recipes: Sequence[Recipe], inputs: Inputs, on_step: OnStep, watch: Watch | None
    ) -> list[Result]:
        """Sample and decode. If there is no memory to decode, unload other models and decode again; raises NotDecoded
        with the latents if that fails.
        """
        from sdcli.diffusion import finish, pipeline
        from sdcli.files import latent_files

        how: dict[str, Any] = {"inputs": inputs, "tiling": kept.plan.tiling}
        try:
            contexts = kept.contexts_of(recipes[0], inputs)
            return pipeline.run(kept.model, recipes, on_step, contexts=contexts, watch=watch, **how)
        except finish.Undecoded as error:
            sampled, message = error.sampled, error.message
        if self._unload(apart_from=kept):  # not in the except block, because the exception keeps references
            try:
                return finish.finish(kept.model, recipes, sampled, **how)
            except finish.Undecoded as error:
                message = error.message
        scaling, digest = kept.model.latent_space.scaling_factor, kept.weights.model.sha256
        raise NotDecoded(
            message,
            "free some memory, or use --device cpu, and decode the latents with sdcli decode",
            [
                latent_files.file_of(z[None], digest, model=each.model, scaling_factor=scaling, recipe=each)
                for z, each in zip(sampled.latents.cpu(), recipes, strict=True)
            ],
        )

    def _ready(self, weights: Weights, resolved: Recipe, inputs: Inputs | None) -> Kept:
        """Return the model, loaded as planned for `resolved`, and with its contexts if there are `inputs`."""
        from sdcli.models import assemble

        key, digests = _key(weights, resolved), weights.digests  # computed before the files are read
        before = self._kept.pop(key, None)  # kept again when it is complete
        if before is not None and before.weights.digests[0] != digests[0]:
            before = None
        plan, sizes, room = plan_for(weights, resolved)
        kept = None if before is None else fit(before, weights, resolved, plan, encode=inputs is not None)
        if kept is None:
            same = before is not None and before.weights == weights and before.weights.digests == digests
            known = before.contexts if before is not None and same else None
            before = None  # frees its memory
            self._make_room(plan.peak, room)
            coming = self._coming(resolved)
            kept = load(weights, resolved, plan, inputs=inputs, coming=coming, known=known)
            kept.size = sizes.weights - (sizes.text if plan.staged else 0)
        if inputs is not None:
            kept.contexts_of(resolved, inputs)
        if plan.staged and kept.model.has_text_encoders:
            assemble.drop_text_encoders(kept.model)
        weights.check_unchanged()
        self._kept[key] = kept
        return kept

    def _coming(self, resolved: Recipe) -> Sequence[Recipe]:
        """Return the announced recipes from one like `resolved` on."""
        from sdcli.diffusion import pipeline

        asked, coming = pipeline.encoded_by(resolved), self._expected
        place = next((index for index, each in enumerate(coming) if pipeline.encoded_by(each) == asked), len(coming))
        return coming[place:]

    def _make_room(self, size: int, room: int | None) -> None:
        """Unload the least recently used models until there is a place for another one, and `size` bytes of `room`."""
        others = [each.size for each in self._kept.values()]
        while self._kept and (len(others) >= self.keep or (room is not None and sum(others) + size > room)):
            del self._kept[next(iter(self._kept))]
            del others[0]

    def _unload(self, apart_from: Kept | None = None) -> bool:
        """Unload all models but one, and return whether there was any."""
        from sdcli.diffusion.device import free_memory

        others = [key for key, each in self._kept.items() if each is not apart_from]
        for key in others:
            del self._kept[key]
        free_memory()
        return bool(others)


def load_vae(weights: Weights, recipe: Recipe) -> tuple[LatentDiffusionModel, Recipe]:
    """Load only the VAE of a model, and return it with the recipe on this machine.

    Raises what `LocalMaker.load` raises.
    """
    from sdcli.models import assemble

    resolved, _ = _resolve(recipe), weights.digests  # computed before the files are read
    model = assemble.load(weights, resolved, stage="vae")
    weights.check_unchanged()
    return model, resolved


def way_to_decode(model: LatentDiffusionModel, resolved: Recipe) -> str:
    """Plan how one picture is decoded by a VAE that is loaded alone; see the `tiling` of a recipe."""
    from sdcli.diffusion.device import room_for

    numbers = list(model.vae.parameters())
    count, size = sum(each.numel() for each in numbers), numbers[0].element_size()
    sizes = memory.sizes_of_vae({**model.vae.config, "_class_name": type(model.vae).__name__}, count, resolved, size)
    return memory.plan(sizes, resolved, model.device.type, room=room_for(model.device.type), host=None).tiling


def plan_for(weights: Weights, resolved: Recipe) -> tuple[MemoryPlan, Sizes, int | None]:
    """Plan how the pictures of `resolved` fit into memory; also returns the sizes and the usable bytes, if known."""
    from sdcli.diffusion.device import room_for

    device = resolved.execution.torch_device
    parts, room = dry_run.find_parts(weights).sizes, room_for(device)
    sizes = memory.sizes_of(weights, parts, resolved, resolved.execution.dtype)
    return memory.plan(sizes, resolved, device, room=room, host=room_for("cpu")), sizes, memory.usable(room, device)


def _key(weights: Weights, resolved: Recipe) -> _Key:
    execution = resolved.execution
    quantize = resolved.loading.quantize
    how = execution.device, execution.dtype, quantize, execution.memory, execution.engine, execution.compile
    return weights.model, resolved.model, *how


def _resolve(recipe: Recipe, processors: int | None = None) -> Recipe:
    """Resolve the execution, with at most `processors` threads unless the recipe sets their number."""
    from sdcli.diffusion import device  # imports torch, which takes seconds

    threads = recipe.execution.threads or min(device.DEFAULT_THREADS, processors or device.DEFAULT_THREADS)
    return device.resolve_execution(recipe.replace(threads=threads))
