"""The warm process from start to exit: sockets, models, signals, idle exit."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import uvicorn
from fastapi import FastAPI

from sdcli.errors import ExitStatus
from sdcli.making import deliver
from sdcli.making.maker import LocalMaker
from sdcli.models import located, registry
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe
from sdcli.serving import native, openai, sockets
from sdcli.serving.line import Line
from sdcli.serving.sockets import Listener
from sdcli.terminal import streams

_SECONDS_TO_READ = 5.0
"""Time for a client to read its response after the last picture."""
_SECONDS_TO_ASK = 0.1
"""Time for a client to send its request if it has just found the socket of a process that is stopping."""


@dataclass(frozen=True)
class Service:
    """Options of the process."""

    socket: str | None
    port: int | None
    models: Sequence[str]
    keep: int
    queue: int
    idle_exit: float | None
    debug: bool
    max_megapixels: float


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, because two servers and the queue share them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(service: Service) -> ExitStatus:
    """Serve until the idle time is over (OK), or a signal arrives (INTERRUPTED, TERMINATED).

    Prints its addresses on stdout, one per line, when the models are loaded. Raises what loading raises, and
    OutputError if it cannot listen.
    """
    entries = {name: registry.find(name) for name in service.models}
    to_load = []
    for name, entry in entries.items():
        model = located.locate(entry)
        recipe = resolve.resolve(model, {**resolve.any_words(model.facts), "model": name}).recipe
        to_load.append((Weights(model.source).absolute(), recipe))
    deliver.prepare_libraries()
    with streams.results() as out, ExitStack() as stack:
        line = Line(service.queue)
        stack.callback(line.end)
        maker = LocalMaker(max(service.keep, len(entries)))
        doors: list[tuple[FastAPI, Listener]] = []
        if service.socket is not None:
            listener = stack.enter_context(sockets.unix_socket(service.socket))
            doors.append((native.make_app(line, maker, debug=service.debug), listener))
        if service.port is not None:
            listener = stack.enter_context(sockets.loopback_port(service.port))
            pixels = int(service.max_megapixels * 1e6)
            app = openai.make_app(line, maker, _offered(entries), max_pixels=pixels, debug=service.debug)
            doors.append((app, listener))
        return asyncio.run(_serve(doors, line, _live(line, maker, to_load, doors, out, service.idle_exit)))


def _offered(named: Mapping[str, registry.ModelEntry]) -> Mapping[str, registry.ModelEntry]:
    """Return the given models, then those of models.toml that are on this machine."""
    models = {name: registry.entries()[name] for name in registry.names()}
    return {**named, **{name: entry for name, entry in models.items() if registry.is_present(entry)}}


async def _serve(doors: Sequence[tuple[FastAPI, Listener]], line: Line, life: Coroutine[Any, Any, None]) -> ExitStatus:
    """Serve until `life` ends or a signal arrives."""
    signals: list[ExitStatus] = []
    told = asyncio.Event()

    def stop(status: ExitStatus) -> None:
        """On the first signal finish the current picture, on the second one cancel it."""
        line.close()
        if signals:
            line.cancel()
        signals.append(status)
        told.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop, ExitStatus.INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, ExitStatus.TERMINATED)
    servers = [_Server(_config(app)) for app, _ in doors]
    open_doors = [
        asyncio.create_task(server.serve(sockets=[listener.socket]))
        for server, (_, listener) in zip(servers, doors, strict=True)
    ]
    living, telling = asyncio.create_task(life), asyncio.create_task(told.wait())
    done, _ = await asyncio.wait({living, telling, *open_doors}, return_when=asyncio.FIRST_COMPLETED)
    for _, listener in doors:
        listener.withdraw()
    await asyncio.sleep(_SECONDS_TO_ASK)
    await _shut(servers, open_doors, line)
    for task in done | set(open_doors):
        task.result()  # raises its exception
    return signals[0] if signals else ExitStatus.OK


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(app, lifespan="off", ws="none", log_config=None, log_level="warning", access_log=False)


async def _live(
    line: Line,
    maker: LocalMaker,
    to_load: Sequence[tuple[Weights, Recipe]],
    doors: Sequence[tuple[FastAPI, Listener]],
    out: BinaryIO,
    idle_exit: float | None,
) -> None:
    """Load the models, print the addresses, and wait until `idle_exit` seconds pass without a request."""
    for weights, recipe in to_load:
        job = line.join(partial(_load, maker, weights, recipe), under_way=True)
        async for _ in line.follow(job):
            pass
    for _, listener in doors:
        streams.write_line(out, listener.address)
    line.idle_since = time.monotonic()
    while idle_exit is None or line.busy or line.idle_since + idle_exit > time.monotonic():
        left = 60.0 if idle_exit is None else line.idle_since + idle_exit - time.monotonic()
        await asyncio.sleep(min(max(left, 0.05), 60.0))


def _load(maker: LocalMaker, weights: Weights, recipe: Recipe, on_step: object) -> tuple[()]:
    maker.load(weights, recipe)
    return ()


async def _shut(servers: Sequence[_Server], open_doors: Sequence[asyncio.Task[None]], line: Line) -> None:
    """Refuse new requests and wait until all responses are sent, with a time limit for slow clients."""
    for server in servers:
        server.should_exit = True
    left: set[asyncio.Task[None]] = set(open_doors)
    while left:
        was_busy = line.busy
        _, left = await asyncio.wait(left, timeout=_SECONDS_TO_READ)
        for server in servers:
            server.force_exit = not was_busy
