"""The OpenAI images API on a port of 127.0.0.1, for users of this machine.

Follows https://platform.openai.com/docs/api-reference/images as far as sdcli supports it; parameters without effect are
errors. A request can also have keys of a recipe (`seed`, `steps`, `negative_prompt` and so on). Web pages cannot use
it: requests must have this host, and no other origin (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as AnyHTTPException

from sdcli.errors import InputError, InvalidRecipe, ModelNotFound, SdcliError, ServerBusy, ServerUnavailable, UsageError
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture
from sdcli.models import addons, located, registry
from sdcli.models.addons import embedding, lora
from sdcli.models.source import Source
from sdcli.planning import resolve, warnings
from sdcli.planning.resolve import Resolved
from sdcli.recipe import recipe
from sdcli.recipe.bounds import MAX_PIXELS, check_area
from sdcli.serving import edits as edits_form
from sdcli.serving.line import Line, Work
from sdcli.terminal.spelling import did_you_mean
from sdcli.terminal.streams import show_traceback

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 2**20
MAX_EDIT_BYTES = 64 * 2**20  # two pictures
MAX_PICTURES = 10

# No keys of images: clients must not read files of this machine.
_EXTENSIONS = frozenset(recipe.keys()) - {
    *("model", "prompt", "label", "width", "height", "batch_size"),
    *recipe.INPUT_KEYS,
}
# Values of these parameters that are the same as sdcli's behaviour.
_NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "output_compression": (100,),
    "stream": (False,),
    "partial_images": (0,),
}
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]


class Generation(BaseModel):
    """The body of `POST /v1/images/generations`; null means absent."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    user: str | None = None


def _named_addon(kind: str, name: str) -> Source:
    """Find an add-on that has a name here: clients must not read files of this machine."""
    names = {lora.KIND: lora.NAMES, embedding.KIND: embedding.NAMES}[kind]
    if name not in names.all():
        known = did_you_mean(name, names.all(), f"use a name of sdcli models list, or in the server's {names.key}")
        raise ModelNotFound(f"no {names.title} {name!r}", known)
    return addons.find_addon(kind, name)


def make_app(
    line: Line,
    maker: LocalMaker,
    served: Mapping[str, registry.ModelEntry],
    *,
    max_pixels: int = MAX_PIXELS,
    debug: bool = False,
) -> FastAPI:
    """Make the application. `served` are the available models; the first one is the default.

    Pictures have at most `max_pixels`, because a request cannot be cancelled while the network is evaluated.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard)
    _add_error_handlers(app, debug)
    listed = {name: {"id": name, "object": "model", "created": 0, "owned_by": "sdcli"} for name in served}

    @app.get("/v1/models")
    async def list_models() -> Any:
        return {"object": "list", "data": list(listed.values())}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Any:
        _entry(served, name)
        return listed[name]

    @app.post("/v1/images/generations")
    async def generations(asked: Generation, request: Request) -> Any:
        name = asked.model or next(iter(served), "kit")
        model = located.locate(_entry(served, name))
        resolved = resolve.resolve(model, {**_options(asked), "model": name}, find_addon=_named_addon)
        check_area(*resolved.recipe.size, max_pixels, field="size")
        found = warnings.find(model, resolved.recipe, resolved.inputs)
        pictures = await _unless_gone(request, _series(line, _works(maker, resolved, asked.n or 1)))
        return _answer(resolved.recipe.size, pictures, found)

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Any:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            await request.body()  # otherwise the client can see a broken connection instead of a response
            raise UsageError("an edit is a form", "send it as multipart/form-data, with image, mask and prompt")
        async with request.form(max_files=2) as form:
            asked, (named, given) = _edit(form), await edits_form.initial(form)
        edits_form.check_size(asked.size, given)
        name = asked.model or next(iter(served), "kit")
        model = located.locate(_entry(served, name))
        recorded = {**_options(asked.model_copy(update={"size": None})), **named, "model": name}
        resolved = resolve.resolve(model, recorded, given=given, find_addon=_named_addon)
        check_area(*resolved.recipe.size, max_pixels, field="size")
        found = warnings.find(model, resolved.recipe, resolved.inputs)
        pictures = await _unless_gone(request, _series(line, _works(maker, resolved, asked.n or 1)))
        return _answer(given.image.size, pictures, found)

    return app


class _Guard:
    """Rejects requests with another host or origin, and bodies that are too long."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSockets
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if _hostname(f"//{host}") not in HOSTS or (origin is not None and _hostname(origin) not in HOSTS):
            refusal = _error(
                403, "requests must have 127.0.0.1 or localhost as their host and origin", code="forbidden"
            )
            await refusal(scope, receive, send)
            return
        limit = MAX_EDIT_BYTES if scope["path"] == "/v1/images/edits" else MAX_BODY_BYTES
        read = 0

        async def receive_within_limit() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"the body is longer than {limit:,} bytes")
            return message

        await self.app(scope, receive_within_limit, send)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _entry(served: Mapping[str, registry.ModelEntry], name: str) -> registry.ModelEntry:
    if name not in served:
        raise ModelNotFound(f"no model {name!r} is served", f"the models are {', '.join(served)}")
    return served[name]


def _options(asked: Generation) -> dict[str, Any]:
    """Return the flat recipe keys of a request. Raises InvalidRecipe for unsupported parameters."""
    options: dict[str, Any] = {"prompt": asked.prompt}
    for key, value in (asked.model_extra or {}).items():
        if value is None:
            continue
        if key in _EXTENSIONS:
            options[key] = value
        elif key not in _NO_EFFECT:
            raise InvalidRecipe(f"unknown parameter {key!r}", "omit it", key)
        elif value not in _NO_EFFECT[key]:
            raise InvalidRecipe(f"{key} is {value!r}, which is not supported", "omit it", key)
    if asked.size not in (None, "auto"):
        match = _SIZE.fullmatch(asked.size or "")
        if match is None:
            raise InvalidRecipe(f"size is {asked.size!r}", "size must be WIDTHxHEIGHT, such as 512x512", "size")
        options |= {"width": int(match[1]), "height": int(match[2])}
    return options


def _works(maker: LocalMaker, resolved: Resolved, count: int) -> list[Work]:
    """Return the work of `count` pictures, one each; picture i has the resolved seed + i."""
    first, weights = resolved.recipe, resolved.weights.absolute()
    recipes = [first.replace(seed=first.seed + index) for index in range(count)]
    return [partial(_make, maker, Task(weights, [each], resolved.inputs)) for each in recipes]


def _make(maker: LocalMaker, task: Task, on_step: OnStep) -> tuple[Picture, ...]:
    return tuple(maker.make(task, on_step))


async def _series(line: Line, works: list[Work]) -> list[Picture]:
    """Run `works` one after another; each of them is queued."""
    made: list[Picture] = []
    for work in works:
        job = line.join(work, under_way=bool(made))
        async with aclosing(line.follow(job)) as events:
            async for event in events:
                if isinstance(event, tuple):
                    made.extend(event)
    return made


async def _unless_gone(request: Request, pictures: Awaitable[list[Picture]]) -> list[Picture]:
    """Wait for `pictures`, which are cancelled when the client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    making, leaving = asyncio.ensure_future(pictures), asyncio.create_task(gone())
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise HTTPException(499, "the client has disconnected")
        return making.result()
    finally:
        making.cancel()
        leaving.cancel()


def _edit(form: FormData) -> Generation:
    try:
        return Generation.model_validate(edits_form.fields(form))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _answer(size: tuple[int, int], pictures: list[Picture], found: Iterable[warnings.RecipeWarning]) -> dict[str, Any]:
    """The reply; what was `found` before the pictures were made is among the warnings of each, as in sdcli's lines."""
    data, known = [], [warning.message for warning in found]
    for each in pictures:
        warnings = [*known, *each.warnings]
        recorded = {"seed": each.recipe.seed, "pixels_sha256": each.pixels_sha256, "warnings": warnings}
        data.append({"b64_json": b64encode(each.png).decode(), **recorded})
    recorded = {"output_format": "png", "size": f"{size[0]}x{size[1]}", "background": "opaque"}
    return {"created": int(time.time()), "data": data, **recorded}


def _add_error_handlers(app: FastAPI, debug: bool) -> None:
    @app.exception_handler(SdcliError)
    async def refuse(_: Request, error: SdcliError) -> Response:
        message = f"{error.message}; {error.hint}"
        match error:
            case ServerBusy():
                return _error(429, message, type_="rate_limit_error", code="queue_full")
            case ServerUnavailable():
                return _error(503, message, type_="server_error", code="stopping")
            case ModelNotFound():
                return _error(404, message, param="model", code="model_not_found")
            case InputError():
                return _error(400, message, param="image", code="invalid_image")
            case UsageError():
                return _error(400, message, param=getattr(error, "field", None), code="invalid_value")
        return _error(500, message, type_="server_error", code=type(error).__name__)

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = next((str(part) for part in reversed(first["loc"]) if part != "body"), None)
        return _error(400, f"{field or 'the body'}: {first['msg']}", param=field, code="invalid_value")

    @app.exception_handler(AnyHTTPException)
    async def refuse_otherwise(_: Request, error: AnyHTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def admit(_: Request, error: Exception) -> Response:
        if debug:
            show_traceback(error)
        return _error(500, f"{type(error).__name__}: {error}; this is a bug in sdcli", type_="server_error", code="bug")


def _error(
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> Response:
    """Return OpenAI's error object. Clients are told not to retry an internal error."""
    body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    headers = {"x-should-retry": "false"} if status >= 500 and status != 503 else None
    return JSONResponse(body, status, headers)
