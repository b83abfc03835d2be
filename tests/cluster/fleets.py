"""Clusters without Ray: workers in threads of this process, and workers whose answers a test gives."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli.making.cluster.fleet import Place, WorkerDied
from sdcli.making.cluster.wanted import Wanted
from sdcli.making.cluster.worker import VERSION, Greeting, RemoteTask, Worker


def _one_thread() -> None:
    import torch  # only for workers that make pictures

    torch.set_num_threads(1)


class Fleet:
    """A fleet whose workers `make` makes; it records the places asked for, and whether it was closed."""

    def __init__(self, count: int, make: Callable[[Place], Any]) -> None:
        self.count, self.make = count, make
        self.asked: list[tuple[int, str]] = []
        self.started: list[Any] = []
        self.closed = False

    def places(self, threads: int, device: str) -> list[Place]:
        self.asked.append((threads, device))
        return [Place(f"node{index}", f"machine{index}", threads) for index in range(self.count)]

    def start(self, place: Place) -> Any:
        self.started.append(self.make(place))
        return self.started[-1]

    def close(self) -> None:
        self.closed = True


class Threaded:
    """A real worker in a thread. It ends at the calls of `make` whose numbers, from 1, are in `dies`.

    With `elsewhere` the caller's paths mean nothing to it, as on another machine.
    """

    def __init__(self, dies: list[int] | None = None, *, elsewhere: bool = False) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_one_thread)
        self._worker = self._thread.submit(Worker, 1, 1).result()
        self._dies, self._elsewhere = dies if dies is not None else [], elsewhere
        self.made: list[RemoteTask] = []
        self.killed = False

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        if method == "make":
            self.made += arguments
            self._dies[:] = [each - 1 for each in self._dies]
        dead = self.killed or (method == "make" and 0 in self._dies)
        self.killed = dead
        given = [self._abroad(each) for each in arguments] if self._elsewhere else arguments
        return self._thread.submit(self._run, method, given, dead)

    def kill(self) -> None:
        self.killed = True
        self._thread.shutdown(wait=False)

    def _run(self, method: str, arguments: Any, dead: bool) -> Any:
        if dead:
            raise WorkerDied("it was killed")
        return getattr(self._worker, method)(*arguments)

    def _abroad(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self._abroad, value))
        if isinstance(value, RemoteTask):
            return replace(value, wanted=self._abroad(value.wanted))
        if not isinstance(value, Wanted):
            return value
        source = value.source
        parts = tuple((part, Path("/elsewhere") / place.name) for part, place in source.parts)
        path = Path("/elsewhere") / source.path.name
        return replace(value, name=Path(value.name).name, source=replace(source, path=path, parts=parts))


class Manual:
    """A worker that greets at once, and whose tasks a test finishes: `running` has them with their futures."""

    def __init__(self, greeting: Greeting | None = None) -> None:
        self.running: list[tuple[RemoteTask, Future[Any]]] = []
        self.killed = False
        self._greeting = greeting or Greeting(VERSION, "cpu")

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if method == "greet":
            future.set_result(self._greeting)
        else:
            self.running.append((arguments[0], future))
        return future

    def kill(self) -> None:
        self.killed = True
