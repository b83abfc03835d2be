"""Pictures from a warm process: the client's end of `sdcli serve`, and the words that both ends use.

A request is `POST /pictures` over the Unix socket: the places of a model and its ControlNets, recipes that differ in
nothing but seeds, and the directory from which the paths of their images count, as JSON, and this program's version in
a header. The answer is one JSON object a line: `step` after each step, then `pictures`, with all that a command needs
to hand over, or `error`. Who closes the connection cancels the work. Imports nothing heavy.

Pixels can depend on the number of threads, so a recipe that leaves it open is asked for with what this process would
take: MKL_NUM_THREADS or OMP_NUM_THREADS, and no more threads than it may use processors.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdcli import __version__, errors
from sdcli.errors import SdcliError, ServerUnavailable
from sdcli.models import controlnets
from sdcli.models.registry import ModelEntry, locate
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from PIL import Image

VARIABLE = "SDCLI_SOCKET"
VERSION_HEADER = "X-Sdcli-Version"
PATH = "/pictures"
MAX_LINE_BYTES = 2**30
BUG_HINT = "this is a bug in sdcli; run again with --debug for the traceback, and report it"


@dataclass(frozen=True)
class Picture:
    """One finished picture as a file's bytes, with what a `pipeline.Result` says of it besides."""

    png: bytes
    pixels_sha256: str
    recipe: Recipe
    seconds: float
    warnings: tuple[str, ...] = ()
    flat: str | None = None
    latents: bytes = b""
    """The file of what it was decoded from, as --save-latents writes it."""

    @property
    def image(self) -> Image.Image:
        """The pixels, decoded anew at each call."""
        from io import BytesIO

        from PIL import Image

        with Image.open(BytesIO(self.png)) as image:
            image.load()
        return image


@dataclass(frozen=True)
class Step:
    """One step of `total` done; what `denoise.Step` says, but for the latents."""

    index: int
    total: int


Make = Callable[[Sequence[Recipe], Callable[[Any], None]], Sequence[Any]]
"""From recipes of one batch, and what to call after each step, to their finished pictures."""


def socket_path() -> str | None:
    """Where the warm process listens, None where there is to be none."""
    return os.environ.get(VARIABLE) or None


def maker(path: str, entry: ModelEntry, *, under_way: bool = False) -> Make:
    """What makes pictures with the model of `entry` in the process that listens at `path`.

    It raises what the making raised there, ServerUnavailable where nobody answers, and ServerBusy where too many
    pictures wait, but for the second and later of a series, or all of one that is `under_way`: those wait with the
    others.
    """

    def make(recipes: Sequence[Recipe], on_step: Callable[[Any], None]) -> Sequence[Picture]:
        nonlocal under_way
        pictures = _ask(path, entry, recipes, on_step, under_way)
        under_way = True
        return pictures

    return make


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
            return {"pictures": [_picture_to_wire(each) for each in event]}
    return {"step": {"index": getattr(event, "index"), "total": getattr(event, "total")}}  # noqa: B009  of any Step


def _picture_to_wire(picture: Picture) -> dict[str, Any]:
    return {
        "png": b64encode(picture.png).decode(),
        "pixels_sha256": picture.pixels_sha256,
        "recipe": picture.recipe.to_dict(),
        "seconds": picture.seconds,
        "warnings": picture.warnings,
        "flat": picture.flat,
        "latents": b64encode(picture.latents).decode(),
    }


def _picture_from_wire(said: Mapping[str, Any]) -> Picture:
    return Picture(
        png=b64decode(said["png"]),
        pixels_sha256=said["pixels_sha256"],
        recipe=Recipe.from_dict(said["recipe"]),
        seconds=said["seconds"],
        warnings=tuple(said["warnings"]),
        flat=said["flat"],
        latents=b64decode(said["latents"]),
    )


def _error_from_wire(said: Mapping[str, Any], place: str, given: str) -> SdcliError:
    """The error as a cold run words it: with the model's path as the user gave it."""
    kind = getattr(errors, said["kind"], SdcliError)
    error: SdcliError = kind(*(said[key].replace(place, given) for key in ("message", "hint")))
    return error


def _ask(
    path: str, entry: ModelEntry, recipes: Sequence[Recipe], on_step: Callable[[Any], None], under_way: bool
) -> Sequence[Picture]:
    source = locate(entry)
    given = str(source.path)
    place = os.path.abspath(given)  # noqa: PTH100  Path.absolute() keeps `..`
    asked = {
        "path": place,
        "variant": entry.variant,
        "family": entry.family,
        "parts": {part: os.path.abspath(folder) for part, folder in source.parts},  # noqa: PTH100  as above
        "controls": {
            name: {"path": os.path.abspath(at.path), "variant": at.variant}  # noqa: PTH100  as above
            for name, at in controlnets.sources(recipes[0]).items()
        },
        "directory": os.getcwd(),  # noqa: PTH109  from which the paths in recipes count
        "recipes": [_with_threads(recipe).to_dict() for recipe in recipes],
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
                        return [_picture_from_wire(each) for each in pictures]
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
