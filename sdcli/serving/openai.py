"""The OpenAI images API on a port of 127.0.0.1, for users of this machine.

Follows https://platform.openai.com/docs/api-reference/images as far as sdcli supports it. Parameters that have no
effect here are accepted, with a warning in the reply if they ask for something else; other values that are not
supported, and unknown parameters, are errors. A request can also have keys of a recipe (`seed`, `steps`,
`negative_prompt` and so on). Web pages cannot use it: requests must have this host, and no other origin (DNS
rebinding).
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from sdcli import __version__
from sdcli.errors import InvalidRecipe, ModelNotFound, SdcliError, UsageError
from sdcli.files.reading import Files
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture
from sdcli.models import addons, located, registry
from sdcli.models.addons import embedding, ip_adapter, lora, upscaler
from sdcli.models.source import Source
from sdcli.planning import resolve, warnings
from sdcli.planning.resolve import Resolved
from sdcli.recipe import parts, recipe
from sdcli.serving import edits as edits_form
from sdcli.serving import events, guard, page, refusals
from sdcli.serving.limits import Limits
from sdcli.serving.line import Line, Work
from sdcli.terminal.spelling import did_you_mean

if TYPE_CHECKING:
    from sdcli.files.canvas import InitialImage

MAX_PICTURES = 10

# No keys of images: clients must not read files of this machine.
_EXTENSIONS = frozenset(recipe.keys()) - {
    *("model", "prompt", "label", "width", "height", "batch_size"),
    *parts.INPUT_KEYS,
}
# Parameters that change nothing here, with the values that ask for nothing else.
_NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "quality": (None, "auto", "standard"),
    "style": (None,),
    "input_fidelity": (None, "high"),
    "moderation": (None, "auto"),
    "output_compression": (None, 100),
}
_INSTEAD = {"quality": "steps sets the quality", "input_fidelity": "what is not masked is kept as it is"}
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class Generation(BaseModel):
    """The body of `POST /v1/images/generations`; null means absent. Keys of a recipe can be added."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    input_fidelity: Literal["low", "high"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    progress: bool | None = None
    """sdcli's own: with `stream`, an event after each step (see events.py)."""
    user: str | None = None


_NAMES = {each.KIND: each.NAMES for each in (lora, embedding, ip_adapter, upscaler)}
"""The names of add-ons by kind, for those that clients can choose."""


def _named_addon(kind: str, name: str) -> Source:
    """Find an add-on that has a name here: clients must not read files of this machine.

    No client can name an image encoder: it is the one near the IP-Adapter.
    """
    if kind == ip_adapter.ENCODER:
        return addons.find_addon(kind, name)
    names = _NAMES.get(kind)
    if names is None:
        raise InvalidRecipe(f"a {kind} cannot be chosen over the API", "omit it", kind)
    if name not in names.all():
        known = did_you_mean(name, names.all(), f"use a name of sdcli models list, or in the server's {names.key}")
        raise InvalidRecipe(f"no {names.title} {name!r}", known, kind.replace("-", "_"))
    return addons.find_addon(kind, name)


def make_app(
    line: Line,
    maker: LocalMaker,
    served: Mapping[str, registry.ModelEntry],
    *,
    limits: Limits | None = None,
    ready: asyncio.Event | None = None,
    hosts: Collection[str] = (),
    key: str | None = None,
    debug: bool = False,
) -> FastAPI:
    """Make the application. `served` are the available models; the first one is the default.

    `/health` has the status 503 until `ready` is set. `hosts` are further names of this host, for a proxy, and `key` is
    what requests must have.
    """
    limits = limits or Limits()
    app = FastAPI(title="sdcli", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(guard.Guard, upload_bytes=limits.upload_mib * 2**20, hosts=hosts, key=key)
    refusals.add_handlers(app, debug=debug)
    _add_state(app, line, served, ready)
    page.add(app)
    decoding = asyncio.Lock()  # one at a time: pictures are large

    async def respond(
        request: Request,
        asked: Generation,
        resolved: Resolved,
        size: tuple[int, int],
        kind: str = events.GENERATION,
        given: InitialImage | None = None,
    ) -> Any:
        """Make the pictures, and answer with all of them or with a stream; `given` is the image of an edit."""
        tasks = _tasks(resolved, asked.n or 1)
        if asked.stream:
            known = _warnings(asked, resolved, transparent=False)
            extra = partial(_recorded, known=known, given=given)
            wanted = events.Wanted(kind, size, asked.partial_images or 0, bool(asked.progress), extra)
            return events.respond(line, events.works(maker, tasks, wanted), wanted, resolved, debug=debug)
        works: list[Work] = [partial(_make, maker, each) for each in tasks]
        pictures = await _unless_gone(request, _series(line, works))
        transparent = given is not None and await run_in_threadpool(
            edits_form.is_transparent, given, [each.png for each in pictures]
        )
        return _answer(size, pictures, _warnings(asked, resolved, transparent=transparent), transparent=transparent)

    @app.post("/v1/images/generations")
    async def generations(asked: Generation, request: Request) -> Any:
        resolved = _resolve(asked, served, limits)
        return await respond(request, asked, resolved, resolved.recipe.size)

    @app.post("/v1/images/edits", openapi_extra={"requestBody": {"content": {"multipart/form-data": _FORM}}})
    async def edits(request: Request) -> Any:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            await request.body()  # otherwise the client can see a broken connection instead of a response
            raise UsageError("an edit is a form", "send it as multipart/form-data, with image, mask and prompt")
        async with edits_form.read_form(request) as form:
            asked, uploads = _edit(form), await edits_form.files(form)
            shown = await edits_form.image_prompts(form)
        images, mask = uploads
        async with decoding:
            line.check_room()
            keys, prompts = await run_in_threadpool(edits_form.prompts, shown, limits)
        complete = partial(_resolve, asked, served, limits)
        if not images:
            resolved = await run_in_threadpool(partial(complete, named=keys, files=prompts))
            return await respond(request, asked, resolved, resolved.recipe.size)
        if mask is None and located.locate(_entry(served, _name(asked, served))).facts.most_references:
            async with decoding:
                line.check_room()
                named, files = await run_in_threadpool(edits_form.references, images, limits)
            files = Files(streams=files.streams | prompts.streams)
            resolved = await run_in_threadpool(partial(complete, named=named | keys, files=files))
            return await respond(request, asked, resolved, resolved.size, events.EDIT)
        image = edits_form.only(images)
        async with decoding:
            line.check_room()
            named, given = await run_in_threadpool(edits_form.initial, image, mask, limits)
        edits_form.check_size(asked.size, given)
        complete = partial(_resolve, asked.model_copy(update={"size": None}), served, limits)
        resolved = await run_in_threadpool(partial(complete, given=given, named=named | keys, files=prompts))
        return await respond(request, asked, resolved, given.image.size, events.EDIT, given)

    return app


# The body of an edit in the description of the API: FastAPI does not know forms that are read by hand.
_FORM = {
    "schema": {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "mask": {"type": "string", "format": "binary", "description": "repainted where it is transparent"},
            "image_prompt": {"type": "string", "format": "binary", "description": "shows what to draw"},
            "image_prompt_scale": {"type": "number"},
            "ip_adapter": {"type": "string", "description": "the name of an IP-Adapter"},
            **{key: {"type": "string"} for key in Generation.model_fields},
            "n": {"type": "integer", "minimum": 1, "maximum": MAX_PICTURES},
        },
    }
}


def _add_state(
    app: FastAPI, line: Line, served: Mapping[str, registry.ModelEntry], ready: asyncio.Event | None
) -> None:
    """Add the requests about the server itself: what it is, whether it is ready, and its models."""
    listed = {name: {"id": name, "object": "model", "created": 0, "owned_by": "sdcli"} for name in served}

    @app.get("/")
    async def describe(request: Request) -> Any:
        if "text/html" in request.headers.get("accept", ""):  # a browser
            return page.file("index.html")
        paths = {"api": "/v1", "health": "/health", "description": "/openapi.json"}
        return {"name": "sdcli", "version": __version__, **paths, "models": list(listed)}

    @app.get("/health")
    async def health() -> Any:
        status = "stopping" if line.is_stopping else "loading" if ready is not None and not ready.is_set() else "ok"
        return JSONResponse({"status": status, "waiting": line.waiting}, 200 if status == "ok" else 503)

    @app.get("/v1/models")
    async def list_models() -> Any:
        return {"object": "list", "data": list(listed.values())}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Any:
        about = await run_in_threadpool(_about, name, _entry(served, name))
        return {**listed[name], **about}


_DEFAULTS = ("width", "height", "steps", "guidance_scale", "scheduler", "negative_prompt")


def _about(name: str, entry: registry.ModelEntry) -> dict[str, Any]:
    """What the page shows of a model: its defaults, and what it can be asked for."""
    facts = located.locate(entry).facts
    settled = resolve.settings(entry, {"model": name}, facts)
    return {
        "defaults": {key: settled[key].value for key in _DEFAULTS if key in settled},
        "size_multiple": facts.size_multiple,
        "takes_prompts": facts.labels is None,
        "takes_references": facts.most_references > 0,
        "loras": sorted(filter(_is_here, lora.NAMES.all())),
    }


def _is_here(name: str) -> bool:
    """Whether a LoRA is on this machine."""
    try:
        lora.NAMES.locate(name)
    except SdcliError:
        return False
    return True


def _resolve(asked: Generation, served: Mapping[str, registry.ModelEntry], limits: Limits, **edit: Any) -> Resolved:
    """Complete the recipe of a request.

    For an `edit`, `named` are the keys of its files, `given` their pictures, and `files` their content by name.
    """
    name = _name(asked, served)
    model = located.locate(_entry(served, name))
    allowed = _EXTENSIONS | ({*edits_form.KEYS} if edit else set())
    options = {**_options(asked, limits, allowed), **edit.get("named", {}), "model": name}
    given, files = edit.get("given"), edit.get("files")
    resolved = resolve.resolve(model, options, given=given, files=files, find_addon=_named_addon)
    limits.check_size(*resolved.recipe.size)
    return resolved


def _name(asked: Generation, served: Mapping[str, registry.ModelEntry]) -> str:
    """Return the name of the model of a request, that of the first one if it names none."""
    return asked.model or next(iter(served), "kit")


def _entry(served: Mapping[str, registry.ModelEntry], name: str) -> registry.ModelEntry:
    if name not in served:
        raise ModelNotFound(f"no model {name!r} is served", f"the models are {', '.join(served)}")
    return served[name]


def _options(asked: Generation, limits: Limits, allowed: Collection[str]) -> dict[str, Any]:
    """Return the flat recipe keys of a request, of those that are `allowed`. Raises InvalidRecipe for others."""
    options: dict[str, Any] = {"prompt": asked.prompt}
    for key in ("partial_images", "progress"):
        if getattr(asked, key) and not asked.stream:
            raise InvalidRecipe(f"{key} has no effect without stream", "add stream", key)
    for key, value in (asked.model_extra or {}).items():
        if key not in allowed:
            hint = "use size" if key in ("width", "height") else "omit it"
            raise refusals.UnknownParameter(f"unknown parameter {key!r}", hint, key)
        if value is not None:
            options[key] = value
    for key in ("prompt", "negative_prompt"):
        limits.check_text(str(options.get(key, "")), key)
    if asked.size not in (None, "auto"):
        match = _SIZE.fullmatch(asked.size or "")
        if match is None:
            raise InvalidRecipe(f"size is {asked.size!r}", "size must be WIDTHxHEIGHT, such as 512x512", "size")
        options |= {"width": int(match[1]), "height": int(match[2])}
        limits.check_size(options["width"], options["height"])
    return options


def _warnings(asked: Generation, resolved: Resolved, *, transparent: bool) -> list[str]:
    """Return the warnings that `sdcli generate` prints, and one for each parameter without effect."""
    found = warnings.find(resolved.model, resolved.recipe, resolved.inputs)
    return [*_without_effect(asked, transparent), *(refusals.in_api_terms(each.message) for each in found)]


def _without_effect(asked: Generation, transparent: bool) -> Iterator[str]:
    for key, values in _NO_EFFECT.items():
        if getattr(asked, key) not in values:
            yield f"{key} has no effect" + (f": {_INSTEAD[key]}" if key in _INSTEAD else "")
    if asked.background == "transparent" and not transparent:
        yield "background has no effect: this model makes opaque pictures"
    if asked.background == "opaque" and transparent:
        yield "background has no effect: the transparent pixels of the image that are not repainted are kept"


def _tasks(resolved: Resolved, count: int) -> list[Task]:
    """Return `count` tasks of one picture each; picture i has the resolved seed + i."""
    first, weights = resolved.recipe, resolved.weights.absolute()
    recipes = [first.replace(seed=first.seed + index) for index in range(count)]
    return [Task(weights, [each], resolved.inputs) for each in recipes]


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


def _answer(
    size: tuple[int, int], pictures: list[Picture], known: Iterable[str], *, transparent: bool = False
) -> dict[str, Any]:
    """The reply; what was `known` before the pictures were made is among the warnings of each, as in sdcli's lines."""
    data, known = [], list(known)
    for each in pictures:
        data.append({"b64_json": b64encode(each.png).decode(), **_recorded(each, known)})
    background = "transparent" if transparent else "opaque"
    recorded = {"output_format": "png", "size": f"{size[0]}x{size[1]}", "background": background}
    return {"created": int(time.time()), "data": data, **recorded}


def _recorded(picture: Picture, known: Iterable[str], given: InitialImage | None = None) -> dict[str, Any]:
    """What sdcli adds to a picture of a reply, and the background of one that is an edit of `given`."""
    found = [*known, *map(refusals.in_api_terms, picture.warnings)]
    recorded = {"seed": picture.recipe.seed, "pixels_sha256": picture.pixels_sha256, "warnings": found}
    if given is not None and edits_form.is_transparent(given, [picture.png]):
        recorded["background"] = "transparent"
    return recorded
