"""The warm process from start to exit: sockets, models, signals, idle exit."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import uvicorn
from fastapi import FastAPI

from sdcli.errors import ExitStatus, OutputError
from sdcli.making import deliver
from sdcli.making.maker import LocalMaker
from sdcli.models import located, registry
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe
from sdcli.serving import native, openai, sockets
from sdcli.serving.connections import Connection
from sdcli.serving.limits import BACKLOG, Limits
from sdcli.serving.line import Line
from sdcli.serving.log import RequestLog
from sdcli.serving.sockets import Listener
from sdcli.terminal import streams
from sdcli.terminal.streams import show_traceback

_SECONDS_TO_READ = 5.0
"""Time for a client to read its response after the last picture."""
_SECONDS_TO_ASK = 0.1
"""Time for a client to send its request if it has just found the socket of a process that is stopping."""
_SECONDS_TO_REPEAT = 60.0
"""Time until the same exception outside of requests is printed again."""


@dataclass(frozen=True)
class Service:
    """Options of the process."""

    socket: str | None
    port: int | None
    models: Sequence[str]
    keep: int
    queue: int
    idle_exit: float | None
    limits: Limits
    pid_file: str | None
    quiet: bool
    debug: bool
    on_ready: Callable[[], None] = lambda: None
    """Called when the models are loaded, before the addresses are printed."""
    hosts: Sequence[str] = ()
    """Further names of this host, for requests to the port."""
    key: str | None = None
    """What requests to the port must have."""


@dataclass(frozen=True)
class Door:
    """An application and the address that it is served at. `is_open` to every user of this machine, or to its owner."""

    app: FastAPI
    listener: Listener
    is_open: bool


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, because two servers and the queue share them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(service: Service) -> ExitStatus:
    """Serve until the idle time is over or SIGTERM arrives (OK), or SIGINT does (INTERRUPTED).

    Prints its addresses on stdout, one per line, when the models are loaded; SIGTERM before that is TERMINATED. Raises
    what loading raises, OutputError if it cannot listen, and UsageError if it may not open enough files.
    """
    entries = {name: registry.find(name) for name in service.models}
    to_load = []
    for name, entry in entries.items():
        model = located.locate(entry)
        recipe = resolve.resolve(model, {**resolve.any_words(model.facts), "model": name}, to_load=True).recipe
        to_load.append((Weights(model.source).absolute(), recipe))
    deliver.prepare_libraries()
    with streams.results() as out, ExitStack() as stack:
        line, ready = Line(service.queue), asyncio.Event()
        stack.callback(line.end)
        maker = LocalMaker(max(service.keep, len(entries)))
        doors = _doors(service, line, maker, entries, ready, stack)
        service.limits.reserve_files(len(doors))
        if service.pid_file is not None:
            stack.enter_context(_pid_file(Path(service.pid_file)))
        life = _live(service, line, maker, to_load, [door.listener.address for door in doors], ready, out)
        return asyncio.run(_serve(service, doors, line, ready, life))


def _doors(
    service: Service,
    line: Line,
    maker: LocalMaker,
    entries: Mapping[str, registry.ModelEntry],
    ready: asyncio.Event,
    stack: ExitStack,
) -> list[Door]:
    """Listen at the addresses until `stack` is closed."""
    doors = []
    if service.socket is not None:
        listener = stack.enter_context(sockets.unix_socket(service.socket))
        doors.append(Door(native.make_app(line, maker, debug=service.debug), listener, is_open=False))
    if service.port is not None:
        listener = stack.enter_context(sockets.loopback_port(service.port))
        offered = _offered(entries)
        access: dict[str, Any] = {"hosts": service.hosts, "key": service.key}
        app = openai.make_app(line, maker, offered, limits=service.limits, ready=ready, debug=service.debug, **access)
        doors.append(Door(app, listener, is_open=True))
    return doors


@contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    """Write the number of this process to `path`, and remove the file at the end."""
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "choose another --pid-file") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _offered(named: Mapping[str, registry.ModelEntry]) -> Mapping[str, registry.ModelEntry]:
    """Return the given models, then those of models.toml that are on this machine."""
    models = {name: registry.entries()[name] for name in registry.names()}
    return {**named, **{name: entry for name, entry in models.items() if registry.is_present(entry)}}


async def _serve(
    service: Service, doors: Sequence[Door], line: Line, ready: asyncio.Event, life: Coroutine[Any, Any, None]
) -> ExitStatus:
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
    loop.set_exception_handler(partial(_report, service.debug, {}))
    loop.add_signal_handler(signal.SIGINT, stop, ExitStatus.INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, ExitStatus.TERMINATED)
    servers = [_Server(_config(service, door)) for door in doors]
    open_doors = [
        asyncio.create_task(server.serve(sockets=[door.listener.socket]))
        for server, door in zip(servers, doors, strict=True)
    ]
    living, telling = asyncio.create_task(life), asyncio.create_task(told.wait())
    done, _ = await asyncio.wait({living, telling, *open_doors}, return_when=asyncio.FIRST_COMPLETED)
    for door in doors:
        door.listener.withdraw()
    await asyncio.sleep(_SECONDS_TO_ASK)
    await _shut(servers, open_doors, line)
    for task in done | set(open_doors):
        task.result()  # raises its exception
    if not signals or (signals[0] == ExitStatus.TERMINATED and ready.is_set()):  # how services are stopped
        return ExitStatus.OK
    return signals[0]


def _report(debug: bool, told: dict[str, float], loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Print an exception outside of any request, and the same one only once a minute."""
    error = context.get("exception")
    message = f"{context['message']}: {error}" if error else str(context["message"])
    if loop.time() - told.get(message, -math.inf) > _SECONDS_TO_REPEAT:
        told[message] = loop.time()
        streams.complain(message)
        if debug and error is not None:
            show_traceback(error)


def _config(service: Service, door: Door) -> uvicorn.Config:
    limits = service.limits
    connection = partial(Connection, most=limits.connections, seconds=limits.request_seconds, hurried=door.is_open)
    return uvicorn.Config(
        RequestLog(door.app, quiet=service.quiet),
        http=cast(Any, connection),
        backlog=BACKLOG,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning" if service.debug else "critical",
        access_log=False,
    )


async def _live(
    service: Service,
    line: Line,
    maker: LocalMaker,
    to_load: Sequence[tuple[Weights, Recipe]],
    addresses: Sequence[str],
    ready: asyncio.Event,
    out: BinaryIO,
) -> None:
    """Load the models, print the addresses, and wait until `idle_exit` seconds pass without a request."""
    for weights, recipe in to_load:
        job = line.join(partial(_load, maker, weights, recipe), under_way=True)
        async for _ in line.follow(job):
            pass
    ready.set()
    service.on_ready()
    for address in addresses:
        streams.write_line(out, address)
    line.idle_since, idle_exit = time.monotonic(), service.idle_exit
    while idle_exit is None or line.busy or line.idle_since + idle_exit > time.monotonic():
        left = 60.0 if idle_exit is None else line.idle_since + idle_exit - time.monotonic()
        await asyncio.sleep(min(max(left, 0.05), 60.0))


def _load(maker: LocalMaker, weights: Weights, recipe: Recipe, on_step: object) -> tuple[()]:
    maker.load(weights, [recipe])
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
