"""The client of `sdcli serve`, and the protocol that both sides use.

A request is `POST /pictures` over the Unix socket. The body is JSON with the paths of the model and its add-ons,
recipes that only differ in their seeds, the directory that the paths of their images are relative to, and the content
of pipes, which cannot be read again; a header has sdcli's version. The response has one JSON object per line: `step`
after each step, then `pictures` or `error`. Closing the connection cancels the work. Imports nothing heavy.

Pixels can depend on the number of threads, so a recipe without it is sent with the number that this process would use:
MKL_NUM_THREADS or OMP_NUM_THREADS, and at most its number of processors.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdcli import __version__, errors
from sdcli.errors import InvalidRecipe, SdcliError, ServerBusy, ServerUnavailable, UsageError
from sdcli.making.maker import InOrder, OnStep, Task, finished
from sdcli.making.picture import Picture
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from socket import socket

VARIABLE = "SDCLI_SOCKET"
WAIT_VARIABLE = "SDCLI_WAIT"
VERSION_HEADER = "X-Sdcli-Version"
PATH = "/pictures"
MAX_LINE_BYTES = 2**30
BUG_HINT = "this is a bug in sdcli; run again with --debug for the traceback, and report it"


_SECONDS_BETWEEN = 0.5
"""Time between two requests to a process whose queue is full."""


@dataclass(frozen=True)
class Step:
    """A finished step out of `total`: `denoise.Step` without the latents."""

    index: int
    total: int


def socket_path() -> str | None:
    """Return the socket of the warm process, or None."""
    return os.environ.get(VARIABLE) or None


def _seconds_to_wait() -> float:
    """Return how long to wait for a place in the queue. Raises UsageError for an invalid SDCLI_WAIT."""
    text = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(f"{WAIT_VARIABLE} is {text!r}", "give a number of seconds, such as 60")
    return seconds


class WarmMaker(InOrder):
    """Makes pictures in the process that listens at `path`; see `sdcli.making.maker.Maker`.

    A future has the exception of the other process, ServerUnavailable if it does not answer, or ServerBusy if too many
    requests wait, and still do after SDCLI_WAIT seconds. After its first picture is accepted, the other pictures of a
    command are never refused.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._under_way = False

    def load(self, weights: Weights, recipes: Sequence[Recipe]) -> None:
        """Do nothing: the other process loads models when they are used."""

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Request the pictures of `task` and wait for them. The other process reads the files again."""
        return finished(lambda: self._make(task, on_step))

    def _make(self, task: Task, on_step: OnStep) -> list[Picture]:
        give_up = time.monotonic() + _seconds_to_wait()
        while True:
            try:
                pictures = _ask(self.path, task, on_step, self._under_way)
            except ServerBusy as error:
                left = give_up - time.monotonic()
                if left <= 0:
                    hint = f"wait for a place with {WAIT_VARIABLE}=SECONDS, or start it with a larger --queue"
                    raise ServerBusy(error.message, hint) from error
                time.sleep(min(left, _SECONDS_BETWEEN))
            else:
                self._under_way = True
                return pictures


def to_wire(event: object) -> dict[str, Any]:
    """Convert a Step, finished Pictures or an exception to one line of a response."""
    match event:
        case SdcliError():
            kept = [b64encode(each).decode() for each in getattr(event, "latents", ())]
            told = {"kind": type(event).__name__, "message": event.message, "hint": event.hint}
            return {"error": {**told, "latents": kept} if kept else told}
        case Exception():
            kind = type(event).__name__
            message = f"{kind}: {event}" if str(event) else kind
            return {"error": {"kind": "SdcliError", "message": message, "hint": BUG_HINT}}
        case tuple():
            return {"pictures": [each.to_wire() for each in event]}
    return {"step": {"index": getattr(event, "index"), "total": getattr(event, "total")}}  # noqa: B009  of any Step


def error_from_wire(recorded: Mapping[str, Any], place: str, given: str) -> SdcliError:
    """Convert JSON to an error, with the model's path as the user gave it. Raises TypeError for something else."""
    kind = getattr(errors, recorded["kind"], SdcliError)
    if not (isinstance(kind, type) and issubclass(kind, SdcliError)):
        raise TypeError(f"{recorded['kind']} is no error of sdcli")
    error: SdcliError = kind(*(recorded[key].replace(place, given) for key in ("message", "hint")))
    if isinstance(error, errors.NotDecoded):
        error.latents = tuple(b64decode(each, validate=True) for each in recorded["latents"])
    return error


def _ask(path: str, task: Task, on_step: OnStep, under_way: bool) -> list[Picture]:
    given = str(task.weights.model.path)
    place = str(task.weights.model.absolute().path)
    asked = {
        "weights": task.weights.to_wire(),
        "directory": os.getcwd(),  # noqa: PTH109  from which the paths in recipes count
        "recipes": [with_threads(recipe).to_dict() for recipe in task.recipes],
        "processors": _processors(),
        "streams": {path: b64encode(data).decode() for path, data in task.inputs.streams.items()},
        "under_way": under_way,
    }
    from http.client import HTTPException

    try:
        with _post(path, json.dumps(asked).encode()) as response:
            _check_version(path, response.headers[VERSION_HEADER])
            while line := response.readline(MAX_LINE_BYTES):
                match json.loads(line):
                    case {"step": step}:
                        on_step(Step(step["index"], step["total"]))
                    case {"pictures": pictures}:
                        return _pictures_of(pictures, task, path)
                    case {"error": error}:
                        raise error_from_wire(error, place, given)
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise _broken_off(path) from error
    raise _broken_off(path)


def _pictures_of(recorded: object, task: Task, path: str) -> list[Picture]:
    """Convert the pictures of a response. Raises ServerUnavailable if they are not those that were asked for."""
    try:
        made = [Picture.from_wire(each) for each in recorded] if isinstance(recorded, list) else []
        if len(made) != len(task.recipes):
            raise ValueError(f"{len(made)} pictures came, and {len(task.recipes)} were asked for")
        for picture, asked in zip(made, task.recipes, strict=True):
            if picture.recipe != replace(asked, execution=picture.recipe.execution):
                raise ValueError("its recipe is another one")
    except (KeyError, TypeError, ValueError, InvalidRecipe) as error:
        raise ServerUnavailable(
            f"the process at {path} did not send the picture that was asked for: {error}",
            f"check who started it, or unset {VARIABLE}",
        ) from error
    return made


def _check_owner(connection: socket, path: str) -> None:
    """Raise ServerUnavailable if another user's process has the socket; only Linux tells."""
    import socket as sockets

    option = getattr(sockets, "SO_PEERCRED", None)
    if option is None:
        return
    _, user, _ = struct.unpack("3i", connection.getsockopt(sockets.SOL_SOCKET, option, struct.calcsize("3i")))
    if user not in (0, os.getuid()):
        raise ServerUnavailable(
            f"the process at {VARIABLE}={path} belongs to another user", f"start one of your own, or unset {VARIABLE}"
        )


@contextmanager
def _post(path: str, body: bytes) -> Iterator[HTTPResponse]:
    """Yield the lines of the response; an error is a line too."""
    import socket
    from http.client import HTTPConnection

    class Connection(HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(path)
            _check_owner(self.sock, path)

    connection = Connection("localhost")
    headers = {"Content-Type": "application/json", "Connection": "close", VERSION_HEADER: __version__}
    try:
        connection.connect()
    except ServerUnavailable:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise ServerUnavailable(
            f"no process answers at {VARIABLE}={path}: {error.strerror or error}",
            f"start the warm process with `sdcli serve --socket {path}`, or unset {VARIABLE}",
        ) from error
    try:
        connection.request("POST", PATH, body, headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def _check_version(path: str, version: str | None) -> None:
    if version is None:
        raise ServerUnavailable(
            f"the process at {VARIABLE}={path} is not sdcli serve", f"set the socket of one, or unset {VARIABLE}"
        )
    if version != __version__:
        raise ServerUnavailable(
            f"the warm process at {path} is sdcli {version}, and this is sdcli {__version__}",
            f"stop it and start `sdcli serve` of this version, or unset {VARIABLE}",
        )


def _processors() -> int | None:
    """Return how many processors this process can use, or None if that is unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def with_threads(recipe: Recipe) -> Recipe:
    """Set the number of threads from the environment, unless the recipe has one."""
    threads = recipe.execution.threads or threads_of_environment()
    return recipe if threads == recipe.execution.threads else recipe.replace(threads=threads)


def threads_of_environment() -> int:
    """Return the number of threads that the environment sets for torch, or 0."""
    asked = os.environ.get("MKL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""  # torch prefers MKL's
    return int(asked) if asked.isascii() and asked.isdigit() and 0 < int(asked) <= 1024 else 0


def _broken_off(path: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"the warm process at {path} ended before the picture was finished",
        f"check its messages and run the command again, or unset {VARIABLE}",
    )
