"""What runs in each worker process of a cluster. Knows nothing of Ray: another process calls its methods, in order."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sdcli import NUMERICS_VERSION, __version__
from sdcli.errors import ModelError, ModelNotFound
from sdcli.files.reading import Files
from sdcli.making import deliver
from sdcli.making.cluster import shipping, wanted
from sdcli.making.cluster.shipping import Piece
from sdcli.making.cluster.wanted import Wanted
from sdcli.making.maker import LocalMaker, Task, group_of
from sdcli.making.picture import Picture
from sdcli.making.warm import to_wire
from sdcli.models.registry import read_facts
from sdcli.models.weights import Addon, Asked, Weights
from sdcli.planning.resolve import inputs_of
from sdcli.recipe.recipe import Recipe

Version = tuple[str, int]
"""The versions of sdcli and of its numerics."""
VERSION: Version = (__version__, NUMERICS_VERSION)


@dataclass(frozen=True)
class Greeting:
    """What a worker has, when it starts: its version, what pixels depend on, and what it lacks of what is wanted."""

    version: Version
    arithmetic: str
    missing: tuple[Wanted, ...] = ()

    @property
    def trouble(self) -> str | None:
        """Why the worker cannot be used, or None."""
        if self.version != VERSION:
            return f"has sdcli {self.version[0]}, and this is sdcli {VERSION[0]}"
        return f"lacks the {', the '.join(each.title for each in self.missing)}" if self.missing else None


@dataclass(frozen=True)
class RemoteTask:
    """A `Task` for another machine: `wanted` are the model and its add-ons, as which `asked` uses them.

    `files` has the content of input files by their paths in the recipes.
    """

    wanted: tuple[Wanted, ...]
    asked: tuple[Asked, ...]
    recipes: Sequence[Recipe]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An exception as JSON, as the warm process sends it, and its traceback."""

    recorded: Mapping[str, Any]
    traceback: str


class Worker:
    """Makes pictures with models of this machine, and keeps the last model in memory.

    Without `threads`, pictures have PyTorch's own number of them, whatever the cluster sets for its `cpus`.
    """

    def __init__(self, cpus: int, threads: int) -> None:
        deliver.prepare_libraries()
        if not threads and os.environ.get("OMP_NUM_THREADS") == str(cpus):
            del os.environ["OMP_NUM_THREADS"]
        self._maker = LocalMaker()
        self._unusable: dict[Any, Failure] = {}

    def greet(self, needed: Sequence[Wanted]) -> Greeting:
        """Return what this worker has; imports torch, which the first picture needs anyway."""
        return Greeting(VERSION, _arithmetic(), tuple(wanted.missing(needed)))

    def receive(self, each: Wanted, piece: Piece) -> None:
        """Write a piece of the files of a model."""
        shipping.write(wanted.shipped_folder(each), piece)

    def make(self, task: RemoteTask) -> list[Picture] | Failure:
        """Make the pictures of a task, or return why that failed. A model that cannot be loaded is not tried again."""
        key: Any = None
        try:
            weights, recipe = _weights(task), task.recipes[0]
            key = group_of(weights, recipe)
            if key in self._unusable:
                return self._unusable[key]
            files = Files(streams=dict(task.files))
            facts = _facts(weights.model)
            inputs = inputs_of(recipe, facts, weights, files=files)
            return self._maker.make(Task(weights, task.recipes, inputs))
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets it
            failure = Failure(to_wire(error)["error"], "".join(traceback.format_exception(error)))
            if isinstance(error, ModelError):
                self._unusable[key] = failure
            return failure


_facts = lru_cache(maxsize=16)(read_facts)
_find = lru_cache(maxsize=64)(wanted.find)


def _weights(task: RemoteTask) -> Weights:
    """Return the weights of a task on this machine. Raises ModelNotFound."""
    found = [_find(each) for each in task.wanted]
    lacking = [each.title for each, source in zip(task.wanted, found, strict=True) if source is None]
    if lacking:
        _find.cache_clear()
        raise ModelNotFound(f"a worker lacks the {', the '.join(lacking)}", "copy it there, or use --ship-models")
    model, *others = (source for source in found if source is not None)
    kinds = (each.kind for each in task.wanted[1:])
    return Weights(model, tuple(Addon(*each) for each in zip(kinds, task.asked, others, strict=True)))


def _arithmetic() -> str:
    """Return what the pixels of a recipe can depend on, apart from its keys."""
    import torch

    from sdcli.diffusion import device

    first = device.devices()[0]
    name = torch.cuda.get_device_name() if first == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{first} {name}, torch {torch.__version__}"
