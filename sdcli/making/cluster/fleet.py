"""The interface of a cluster: where workers can run, and calling them. Knows nothing of pictures and of Ray."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol


class WorkerDied(Exception):
    """A worker ended before it answered: it was killed, its machine is gone, or it could not start."""


@dataclass(frozen=True)
class Place:
    """A part of a machine for one worker: `cpus` of the machine `node`, whose name is `name`, and perhaps a GPU.

    With `index` several places of a machine are told apart.
    """

    node: str
    name: str
    cpus: int
    gpu: bool = False
    index: int = 0


class Remote(Protocol):
    """A worker process, which runs one call at a time, in order."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of its `worker.Worker`. The future has WorkerDied if the worker ends before it answers."""

    def kill(self) -> None:
        """End the process now."""


class Fleet(Protocol):
    """A cluster."""

    def places(self, threads: int, device: str) -> list[Place]:
        """Return where workers with so many CPU threads can run; 0 gives each worker a whole machine.

        A machine with GPUs has one place for each GPU, unless the `device` of the pictures is the CPU.
        """

    def start(self, place: Place) -> Remote:
        """Start a worker. Where that fails, its calls do."""

    def close(self) -> None:
        """Leave the cluster."""
