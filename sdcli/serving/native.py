"""What sdcli's commands speak with a warm process, over its Unix socket: see sdcli/making/remote.py for the words."""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from sdcli import __version__
from sdcli.errors import SdcliError, ServerBusy, ServerUnavailable, UsageError
from sdcli.making import remote
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe
from sdcli.serving.line import Job, Line
from sdcli.serving.models import Models

_HEADERS = {remote.VERSION_HEADER: __version__}


class ControlNet(BaseModel):
    """A ControlNet's place."""

    path: Path
    variant: str | None = None


class Asked(BaseModel):
    """The body of a request: a model's place, recipes that differ in nothing but seeds, and whence paths count."""

    path: Path
    variant: str | None = None
    family: str | None = None
    parts: dict[str, Path] = Field(default_factory=dict)
    controls: dict[str, ControlNet] = Field(default_factory=dict)
    directory: Path
    recipes: list[dict[str, Any]] = Field(min_length=1)
    processors: int | None = Field(None, ge=1)
    under_way: bool = False


def make_app(line: Line, models: Models, *, debug: bool = False) -> FastAPI:
    """The application; `debug` prints tracebacks of unexpected exceptions on stderr."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post(remote.PATH, dependencies=[Depends(_check_version)])
    async def pictures(asked: Asked) -> Response:
        recipes = [Recipe.from_dict(flat) for flat in asked.recipes]
        source = Source(asked.path, asked.variant, asked.family, tuple(sorted(asked.parts.items())))
        controls = {name: Source(each.path, each.variant) for name, each in asked.controls.items()}
        work = partial(
            models.make,
            source,
            recipes,
            processors=asked.processors,
            directory=asked.directory,
            controls=controls,
        )
        job = line.join(work, under_way=asked.under_way)
        return StreamingResponse(_lines(line, job, debug), headers=_HEADERS, media_type="application/x-ndjson")

    @app.exception_handler(SdcliError)
    async def refuse(_: Request, error: SdcliError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_nonsense(_: Request, error: RequestValidationError) -> Response:
        return _refusal(UsageError(f"the warm process was asked nonsense: {error.errors()}", remote.BUG_HINT))

    return app


def _check_version(request: Request) -> None:
    version = request.headers.get(remote.VERSION_HEADER)
    if version != __version__:
        raise ServerUnavailable(
            f"this warm process is sdcli {__version__}, and was asked by version {version}",
            "stop it and start `sdcli serve` of the same version",
        )


async def _lines(line: Line, job: Job, debug: bool) -> AsyncIterator[bytes]:
    try:
        async for event in line.follow(job):
            yield _line(event)
    except Exception as error:  # noqa: BLE001  every exception goes to the client
        if debug and not isinstance(error, SdcliError):
            traceback.print_exception(error)
        yield _line(error)


def _line(event: object) -> bytes:
    return json.dumps(remote.to_wire(event)).encode() + b"\n"


def _refusal(error: SdcliError) -> Response:
    match error:
        case ServerBusy():
            status = 429
        case ServerUnavailable():
            status = 503
        case _:
            status = 400
    return JSONResponse(remote.to_wire(error), status, _HEADERS)
