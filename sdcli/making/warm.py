"""Pictures from a warm process: the client's end of `sdcli serve`, and the words that both ends use.

A request is `POST /pictures` over the Unix socket: where the model and its add-ons are, recipes that differ in nothing
but seeds, and the directory from which the paths of their images count, as JSON, and this program's version in a
header. The answer is one JSON object a line: `step` after each step, then `pictures`, or `error`. Who closes the
connection cancels the work. Imports nothing heavy.

Pixels can depend on the number of threads, so a recipe that leaves it open is asked for with what this process would
take: MKL_NUM_THREADS or OMP_NUM_THREADS, and no more threads than it may use processors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdcli import __version__, errors
from sdcli.errors import SdcliError, ServerUnavailable
from sdcli.making.maker import OnStep, Task, finished
from sdcli.making.picture import Picture
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from http.client import HTTPResponse

VARIABLE = "SDCLI_SOCKET"
VERSION_HEADER = "X-Sdcli-Version"
PATH = "/pictures"
MAX_LINE_BYTES = 2**30
BUG_HINT = "this is a bug in sdcli; run again with --debug for the traceback, and report it"


@dataclass(frozen=True)
class Step:
    """One step of `total` done; what `denoise.Step` says, but for the latents."""

    index: int
    total: int


def socket_path() -> str | None:
    """Where the warm process listens, None where there is to be none."""
    return os.environ.get(VARIABLE) or None


class WarmMaker:
    """Makes pictures in the process that listens at `path`; see `sdcli.making.maker.Maker`.

    A future holds what the making raised there, ServerUnavailable where nobody answers, and ServerBusy where too many
    pictures wait; once the first has been let in, the next ones of this command wait with the others.
    """

    capacity = 1

    def __init__(self, path: str) -> None:
        self.path = path
        self._under_way = False

    def load(self, weights: Weights, recipe: Recipe) -> None:
        """Nothing: the process at the other end loads what it is asked for."""

    def submit(self, task: Task, on_step: OnStep = lambda step: None) -> Future[list[Picture]]:
        """Ask for the pictures of `task`, and wait for them. The inputs are read again at the other end."""
        return finished(lambda: self._make(task, on_step))

    def _make(self, task: Task, on_step: OnStep) -> list[Picture]:
        pictures = _ask(self.path, task, on_step, self._under_way)
        self._under_way = True
        return pictures


def to_wire(event: object) -> dict[str, Any]:
    """One line of an answer, as JSON takes it: of a Step, of finished Pictures or of an exception."""
    match event:
        case SdcliError():
            return {"error": {"kind": type(event).__name__, "message": event.message, "hint": event.hint}}
        case Exception():
            kind = type(event).__name__
            message = f"{kind}: {event}" if str(event) else kind
            return {"error": {"kind": "SdcliError", "message": message, "hint": BUG_HINT}}
        case tuple():
            return {"pictures": [each.to_wire() for each in event]}
    return {"step": {"index": getattr(event, "index"), "total": getattr(event, "total")}}  # noqa: B009  of any Step


def _error_from_wire(said: Mapping[str, Any], place: str, given: str) -> SdcliError:
    """The error as a cold run words it: with the model's path as the user gave it."""
    kind = getattr(errors, said["kind"], SdcliError)
    error: SdcliError = kind(*(said[key].replace(place, given) for key in ("message", "hint")))
    return error


def _ask(path: str, task: Task, on_step: OnStep, under_way: bool) -> list[Picture]:
    given = str(task.weights.model.path)
    place = str(task.weights.model.absolute().path)
    asked = {
        "weights": task.weights.to_wire(),
        "directory": os.getcwd(),  # noqa: PTH109  from which the paths in recipes count
        "recipes": [_with_threads(recipe).to_dict() for recipe in task.recipes],
        "processors": _processors(),
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
                        return [Picture.from_wire(each) for each in pictures]
                    case {"error": error}:
                        raise _error_from_wire(error, place, given)
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise _broken_off(path) from error
    raise _broken_off(path)


@contextmanager
def _post(path: str, body: bytes) -> Iterator[HTTPResponse]:
    """The answer of the process at `path`, whatever its status: an error is a line like any other."""
    import socket
    from http.client import HTTPConnection

    class Connection(HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(path)

    connection = Connection("localhost")
    headers = {"Content-Type": "application/json", "Connection": "close", VERSION_HEADER: __version__}
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        raise ServerUnavailable(
            f"nobody answers at {VARIABLE}={path}: {error.strerror or error}",
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
            f"what answers at {VARIABLE}={path} is not sdcli serve", f"give the socket of one, or unset {VARIABLE}"
        )
    if version != __version__:
        raise ServerUnavailable(
            f"the warm process at {path} is sdcli {version}, and this is sdcli {__version__}",
            f"stop it and start `sdcli serve` of this version, or unset {VARIABLE}",
        )


def _processors() -> int | None:
    """How many processors this process may use, None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _with_threads(recipe: Recipe) -> Recipe:
    """`recipe` with the number of threads that the environment asks for, if it does and the recipe does not."""
    asked = os.environ.get("MKL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""  # torch obeys MKL's first
    known = recipe.execution.threads or not asked.isascii() or not asked.isdigit() or not 0 < int(asked) <= 1024
    return recipe if known else recipe.replace(threads=int(asked))


def _broken_off(path: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"the warm process at {path} broke off before the picture was finished",
        f"see what it said and run this again; or unset {VARIABLE} to do without it",
    )
