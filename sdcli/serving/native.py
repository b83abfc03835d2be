"""The server side of the protocol over the Unix socket; sdcli/making/warm.py describes it."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from sdcli import __version__
from sdcli.errors import SdcliError, ServerBusy, ServerUnavailable, UsageError
from sdcli.files.reading import Files
from sdcli.making import warm
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture
from sdcli.models.registry import read_facts
from sdcli.models.weights import Weights
from sdcli.planning.resolve import inputs_of
from sdcli.recipe.recipe import Recipe
from sdcli.serving.line import Job, Line
from sdcli.terminal.streams import show_traceback

_HEADERS = {warm.VERSION_HEADER: __version__}


class Asked(BaseModel):
    """The body of a request: weights from `Weights.to_wire`, recipes that only differ in their seeds, and the directory
    that their paths are relative to. `streams` has the content of pipes in base64.
    """

    weights: dict[str, Any]
    directory: Path
    recipes: list[dict[str, Any]] = Field(min_length=1)
    streams: dict[str, str] = Field(default_factory=dict)
    processors: int | None = Field(None, ge=1)
    under_way: bool = False


def make_app(line: Line, maker: LocalMaker, *, debug: bool = False) -> FastAPI:
    """Make the application; `debug` prints tracebacks of unexpected exceptions on stderr."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post(warm.PATH, dependencies=[Depends(_check_version)])
    async def pictures(asked: Asked) -> Response:
        recipes = [Recipe.from_dict(flat) for flat in asked.recipes]
        job = line.join(partial(_make, maker, _weights(asked), recipes, asked), under_way=asked.under_way)
        return StreamingResponse(_lines(line, job, debug), headers=_HEADERS, media_type="application/x-ndjson")

    @app.exception_handler(SdcliError)
    async def refuse(_: Request, error: SdcliError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_nonsense(_: Request, error: RequestValidationError) -> Response:
        return _refusal(UsageError(f"the warm process received an invalid request: {error.errors()}", warm.BUG_HINT))

    return app


def _weights(asked: Asked) -> Weights:
    try:
        return Weights.from_wire(asked.weights)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the warm process received a request without weights: {error!r}", warm.BUG_HINT) from error


def _make(
    maker: LocalMaker, weights: Weights, recipes: Sequence[Recipe], asked: Asked, on_step: OnStep
) -> tuple[Picture, ...]:
    """Make the pictures of a request, on the worker thread; relative paths are relative to the client's directory."""
    facts, first = read_facts(weights.model), recipes[0]
    files = Files(asked.directory, {path: b64decode(data) for path, data in asked.streams.items()})
    inputs = inputs_of(first, facts, weights, files=files)
    return tuple(maker.make(Task(weights, recipes, inputs, asked.processors), on_step))


def _check_version(request: Request) -> None:
    version = request.headers.get(warm.VERSION_HEADER)
    if version != __version__:
        raise ServerUnavailable(
            f"this warm process is sdcli {__version__}, and the request is from version {version}",
            "stop it and start `sdcli serve` of the same version",
        )


async def _lines(line: Line, job: Job, debug: bool) -> AsyncIterator[bytes]:
    try:
        async for event in line.follow(job):
            yield _line(event)
    except Exception as error:  # noqa: BLE001  every exception goes to the client
        if debug and not isinstance(error, SdcliError):
            show_traceback(error)
        yield _line(error)


def _line(event: object) -> bytes:
    return json.dumps(warm.to_wire(event)).encode() + b"\n"


def _refusal(error: SdcliError) -> Response:
    match error:
        case ServerBusy():
            status = 429
        case ServerUnavailable():
            status = 503
        case _:
            status = 400
    return JSONResponse(warm.to_wire(error), status, _HEADERS)
