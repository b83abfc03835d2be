"""A cluster of Ray. The only module that imports Ray, when it is used.

Ray's messages are not shown, nor those of workers, whose warnings come with their pictures; Ray keeps them in its logs.
It reports no usage, and connects only to the cluster that is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from sdcli.errors import ServerUnavailable, UsageError
from sdcli.making.cluster.fleet import Place, WorkerDied
from sdcli.making.cluster.worker import Worker
from sdcli.terminal.printable import one_line

AUTO = "auto"
_SECONDS_TO_CONNECT = 5.0
_START = "start one with: ray start --head"
_MAX_REASON = 300  # characters


class RayFleet:
    """The cluster at `address` (HOST:PORT), or for AUTO the one that runs on this machine; see `fleet.Fleet`.

    Raises UsageError if Ray is not installed or the address is invalid, and ServerUnavailable if no cluster answers.
    """

    def __init__(self, address: str) -> None:
        self._ray = _import_ray()
        self._own = not self._ray.is_initialized()
        self._threads = 0
        if self._own:
            _connect(self._ray, address)

    def places(self, threads: int, device: str) -> list[Place]:
        """See `fleet.Fleet`."""
        self._threads = threads
        nodes = sorted((each for each in self._ray.nodes() if each["Alive"]), key=lambda each: str(each["NodeID"]))
        return [place for node in nodes for place in _places_of(node, threads, device)]

    def start(self, place: Place) -> RayRemote:
        """See `fleet.Fleet`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": place.cpus,
            "num_gpus": int(place.gpu),
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=False),
        }
        actor = self._ray.remote(Worker).options(**options).remote(place.cpus, self._threads)
        return RayRemote(self._ray, actor)

    def close(self) -> None:
        """See `fleet.Fleet`."""
        if self._own:
            self._ray.shutdown()


class RayRemote:
    """An actor of Ray; see `fleet.Remote`."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """See `fleet.Remote`."""
        answer: Future[Any] = Future()

        def pass_on(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            elif isinstance(error, self._ray.exceptions.RayTaskError):
                answer.set_exception(error)
            else:
                answer.set_exception(WorkerDied(_reason(error)))

        getattr(self._actor, method).remote(*arguments).future().add_done_callback(pass_on)
        return answer

    def kill(self) -> None:
        """See `fleet.Remote`."""
        self._ray.kill(self._actor)


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # otherwise Ray warns about it
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"--cluster needs the package {error.name}", "pip install 'sdcli[ray]'") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect to the cluster at `address`. Raises UsageError and ServerUnavailable."""
    known = os.environ.get("RAY_ADDRESS") or _recorded(ray) if address == AUTO else address
    if known:
        _check_answers(known)
    try:
        with _own_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        where = "on this machine" if address == AUTO else f"at {address}"
        raise ServerUnavailable(f"there is no Ray cluster {where}", f"{_START}, or give its HOST:PORT") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ServerUnavailable(
            f"cannot use the Ray cluster at {address}: {_reason(error)}",
            "use the same versions of Ray and Python there",
        ) from error
    ray._private.worker._worker_logs_enabled = False  # such as Ray's words on each worker that was killed


def _recorded(ray: Any) -> str | None:
    """Return the address of the cluster that was started last on this machine, which may have ended since."""
    utils = getattr(getattr(ray, "_private", None), "utils", None)
    return None if utils is None else utils.read_ray_address()


def _check_answers(address: str) -> None:
    """Raise UsageError for an address of another form, and ServerUnavailable if no process listens there."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"--cluster {address} is not HOST:PORT", f"give the address that `ray start` has printed, or {AUTO}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise ServerUnavailable(f"no Ray cluster answers at {address}: {error.strerror or error}", _START) from error


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep the handlers of signals, some of which Ray replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _places_of(node: dict[str, Any], threads: int, device: str) -> Iterator[Place]:
    cpus, gpus = (int(node["Resources"].get(key, 0)) for key in ("CPU", "GPU"))
    identity, name = node["NodeID"], node.get("NodeManagerHostname") or node["NodeManagerAddress"]
    if gpus and device in ("auto", "cuda"):
        each = min(cpus // gpus, threads or 1)
        yield from (Place(identity, name, each, gpu=True, index=index) for index in range(gpus))
    elif cpus and device != "cuda":
        each = min(cpus, threads or cpus)
        yield from (Place(identity, name, each, index=index) for index in range(cpus // each))


def _reason(error: BaseException) -> str:
    """Return what Ray gives as the reason of an error, on one line: the last line of what it has."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1])[:_MAX_REASON] if lines else type(error).__name__
