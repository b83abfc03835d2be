"""The maker that assigns tasks to the workers of a cluster. Knows nothing of Ray.

Each worker has one task at a time, preferably of the model that it has in memory. A worker that ends is replaced, and
its task is done by another one. One thread handles whatever happens; `submit` and `choose` are called by others.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from sdcli.errors import OutOfMemory, SdcliError, ServerUnavailable
from sdcli.files.reading import file_bytes
from sdcli.making.cluster import wanted
from sdcli.making.cluster.fleet import Fleet, Place, Remote, WorkerDied
from sdcli.making.cluster.worker import Failure, Greeting, RemoteTask
from sdcli.making.maker import OnStep, Task, group_of
from sdcli.making.picture import Picture
from sdcli.making.warm import BUG_HINT, error_from_wire, with_threads
from sdcli.models.weights import Weights
from sdcli.recipe.paths import paths_of
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import streams

MOST_ATTEMPTS = 5
"""So many workers may end while they make the same picture."""
MOST_DEATHS = 5
"""So many times in a row may a worker end without finishing a task, until its place is given up."""


@dataclass(eq=False)
class Slot:
    """A worker, or the one that replaced it. It is `ready` when it has answered; `group` is that of its last task."""

    place: Place
    remote: Remote
    ready: bool = False
    group: Hashable = None
    deaths: int = 0
    job: Job | None = None

    @property
    def idle(self) -> bool:
        """Whether it has no task."""
        return self.job is None


@dataclass(eq=False)
class Job:
    """A task that waits or runs, and the future of its pictures."""

    task: Task
    group: Hashable
    future: Future[list[Picture]] = field(default_factory=Future)
    attempts: int = 0


class ClusterMaker:
    """Makes pictures with the workers of `slots`; see `sdcli.making.maker.Maker`.

    `slots` have the answers of their workers to `greet`, which asks what they have (see `worker.Greeting`). Inputs are
    read when a task is given to a worker, and travel as bytes. A future has ServerUnavailable if no worker is left.
    """

    reads_inputs = True

    def __init__(
        self, fleet: Fleet, slots: Mapping[Slot, Future[Greeting]], *, greet: Callable[[Slot], Future[Greeting]]
    ) -> None:
        self._fleet = fleet
        self._greet = greet
        self._slots = list(slots)
        self._waiting: deque[Job] = deque()
        self._lock = threading.RLock()
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for slot, greeting in slots.items():
            self._expect(slot, greeting)
        self._thread = threading.Thread(target=self._handle, name="cluster", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """The number of workers, at least one."""
        return max(1, len(self._slots))

    def load(self, weights: Weights, recipes: Sequence[Recipe]) -> None:
        """Do nothing: workers load models when they are used."""

    def choose(self, left: Mapping[Hashable, int]) -> Hashable:
        """Return the group of an idle worker's model, or the one with the most tasks left for each worker."""
        with self._lock:
            for slot in self._slots:
                if slot.ready and slot.idle and slot.group in left:
                    return slot.group
            workers = Counter(slot.group for slot in self._slots) + Counter(job.group for job in self._waiting)
        return max(left, key=lambda group: left[group] / (1 + workers[group]))

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Give the task to an idle worker, or to the first that is idle later. `on_step` is not called."""
        first = with_threads(task.recipes[0])
        recipes = [each.replace(threads=first.execution.threads) for each in task.recipes]
        job = Job(Task(task.weights, recipes), group_of(task.weights, task.recipes[0]))
        with self._lock:
            self._waiting.append(job)
        self._events.put(self._assign)
        return job.future

    def close(self) -> None:
        """End all workers now, and leave the cluster."""
        self._events.put(None)
        self._thread.join()
        for slot in self._slots:
            slot.remote.kill()
        self._fleet.close()

    def _handle(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event()
            except Exception as error:  # noqa: BLE001  otherwise those who wait for a future would wait forever
                self._break(error)

    def _assign(self) -> None:
        """Give waiting tasks to idle workers: to each one of its model if there is one, otherwise the first."""
        with self._lock:
            idle = [slot for slot in self._slots if slot.ready and slot.idle] if self._waiting else []
            same = {slot.group: slot for slot in reversed(idle)}
            for job in [each for each in self._waiting if each.group in same]:
                slot = same.pop(job.group, None)
                if slot is not None:
                    self._give(slot, job)
            for slot in (each for each in idle if each.idle):
                if self._waiting:
                    self._give(slot, self._waiting[0])
            if not self._slots:
                self._give_up()

    def _give(self, slot: Slot, job: Job) -> None:
        self._waiting.remove(job)
        try:
            task = remote_task(job.task)
        except Exception as error:  # noqa: BLE001  the job's failure, such as a file that is gone
            job.future.set_exception(error)
            return
        slot.job, slot.group = job, job.group
        job.attempts += 1
        called = slot.remote.call("make", task)
        called.add_done_callback(lambda done: self._events.put(partial(self._done, slot, job, done)))

    def _done(self, slot: Slot, job: Job, done: Future[Any]) -> None:
        """Finish a job with what its worker answered, or put it first in line again if the worker ended."""
        error = done.exception()
        slot.job = None
        if isinstance(error, WorkerDied):
            if job.attempts < MOST_ATTEMPTS:
                streams.note(f"a worker on {slot.place.name} ended; its task is repeated")
                with self._lock:
                    self._waiting.appendleft(job)
            else:
                job.future.set_exception(_lost(error))
            self._replace(slot)
        else:
            slot.deaths = 0
        self._assign()
        if error is not None and not isinstance(error, WorkerDied):
            job.future.set_exception(error)
        elif error is None:
            _settle(job, done.result())

    def _replace(self, slot: Slot) -> None:
        """Start another worker at the place of one that ended, or give the place up."""
        slot.ready, slot.group = False, None
        slot.deaths += 1
        if slot.deaths >= MOST_DEATHS:
            self._remove(slot, f"a worker on {slot.place.name} ended {slot.deaths} times in a row and is not replaced")
            return
        slot.remote = self._fleet.start(slot.place)
        self._expect(slot, self._greet(slot))

    def _expect(self, slot: Slot, greeting: Future[Greeting]) -> None:
        greeting.add_done_callback(lambda done: self._events.put(partial(self._greeted, slot, done)))

    def _greeted(self, slot: Slot, done: Future[Greeting]) -> None:
        error = done.exception()
        trouble = str(error) if error is not None else done.result().trouble
        if isinstance(error, WorkerDied):
            self._replace(slot)
        elif trouble is not None:
            self._remove(slot, f"a worker on {slot.place.name} cannot be used: it {trouble}")
        slot.ready = trouble is None
        self._assign()

    def _remove(self, slot: Slot, why: str) -> None:
        streams.warn(why)
        with self._lock:
            self._slots.remove(slot)
        slot.remote.kill()

    def _break(self, error: Exception) -> None:
        """Fail all jobs, and use no worker any more."""
        with self._lock:
            self._waiting.extend(slot.job for slot in self._slots if slot.job is not None)
            for slot in self._slots:
                slot.remote.kill()
            self._slots.clear()
            self._give_up(f"the cluster cannot be used any more: {type(error).__name__}: {error}")

    def _give_up(self, why: str = "no worker of the cluster is left") -> None:
        error = ServerUnavailable(why, "see what happened: ray status, and Ray's logs")
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(error)


def remote_task(task: Task) -> RemoteTask:
    """Return `task` for another machine, with the content of its files. Raises InputError if one cannot be read."""
    recipe = task.recipes[0]
    paths = dict.fromkeys(path for _, path, _ in paths_of(recipe.to_dict()))
    return RemoteTask(
        wanted.of(task.weights, recipe.model),
        tuple(each.asked for each in task.weights.addons),
        task.recipes,
        {path: file_bytes(path) for path in paths},
    )


def _settle(job: Job, answer: list[Picture] | Failure) -> None:
    if isinstance(answer, Failure):
        source = job.task.weights.model
        error = error_from_wire(answer.recorded, str(source.absolute().path), str(source.path))
        error.add_note(answer.traceback)
        job.future.set_exception(error)
    else:
        job.future.set_result(answer)


def _lost(error: WorkerDied) -> SdcliError:
    reason = f"{MOST_ATTEMPTS} workers ended while they made this picture: {error}"
    if "memory" in str(error).lower():
        return OutOfMemory(reason, "make a smaller picture, or use fewer workers on each machine: --threads")
    return SdcliError(reason, BUG_HINT)
