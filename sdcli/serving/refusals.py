"""Errors as replies of the OpenAI API: its error object, its names of parameters, and no options of a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sdcli.errors import InputError, InvalidRecipe, ModelNotFound, SdcliError, ServerBusy, ServerUnavailable, UsageError
from sdcli.terminal import streams
from sdcli.terminal.streams import show_traceback

SECONDS_TO_RETRY = 2
_PARAMETERS = {"width": "size", "height": "size", "mask_image": "mask", "image_sha256": "image", "mask_sha256": "mask"}
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
_SIZE_OPTIONS = re.compile(r"-W and -H\b")
_COUNT_OPTION = re.compile(r"(?<![\w-])-n\b")


class UnknownParameter(InvalidRecipe):
    """A parameter that this API does not have; its `field` is its name in the request."""


class UnfitFile(InputError):
    """A file of a form that cannot be read or does not fit; `param` is its name in the form."""

    def __init__(self, message: str, hint: str, param: str) -> None:
        super().__init__(message, hint)
        self.param = param


@contextmanager
def about(param: str, hint: str | None = None) -> Iterator[None]:
    """Raise an InputError from the block as one about the file `param`, with another `hint` if there is one."""
    try:
        yield
    except UnfitFile:
        raise
    except InputError as error:
        raise UnfitFile(error.message, hint or error.hint, param) from error


def in_api_terms(text: str) -> str:
    """Name options of the command line in `text` as this API does: `--fit-mask` is `fit_mask`, `-W and -H` the size."""
    text = _COUNT_OPTION.sub("n", _SIZE_OPTIONS.sub("size", text))
    return _OPTION.sub(lambda match: match[1].replace("-", "_"), text)


def add_handlers(app: FastAPI, *, debug: bool) -> None:
    """Answer each exception with an error object; `debug` prints tracebacks of unexpected ones on stderr."""

    @app.exception_handler(SdcliError)
    async def refuse(_: Request, error: SdcliError) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> Response:
        message, field = in_words(error.errors()[0])
        return error_object(400, message, param=field, code="invalid_value")

    @app.exception_handler(HTTPException)
    async def refuse_otherwise(_: Request, error: HTTPException) -> Response:
        return error_object(error.status_code, str(error.detail))

    @app.exception_handler(ClientDisconnect)
    async def nobody_reads(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def admit(_: Request, error: Exception) -> Response:
        if debug:
            show_traceback(error)
        message = f"{type(error).__name__}: {error}; this is a bug in sdcli"
        streams.complain(message, None if debug else "start sdcli serve with --debug for the traceback, and report it")
        return error_object(500, message, type_="server_error", code="bug")


def refusal(error: SdcliError) -> Response:
    """Return the error object of an error of sdcli."""
    message = in_api_terms(f"{error.message}; {error.hint}")
    match error:
        case ServerBusy():
            return error_object(429, message, type_="rate_limit_error", code="queue_full")
        case ServerUnavailable():
            return error_object(503, message, type_="server_error", code="stopping")
        case ModelNotFound():
            return error_object(404, message, param="model", code="model_not_found")
        case InputError():
            return error_object(400, message, param=getattr(error, "param", "image"), code="invalid_image")
        case UnknownParameter():
            return error_object(400, message, param=error.field, code="unknown_parameter")
        case UsageError():
            field = getattr(error, "field", None)
            return error_object(400, message, param=_PARAMETERS.get(field or "", field), code="invalid_value")
    return error_object(500, message, type_="server_error", code=type(error).__name__)


def in_words(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what pydantic found in sdcli's words, and the parameter that it is about, or None for the whole body."""
    field = next((str(part) for part in reversed(error["loc"]) if part != "body"), None)
    if error["type"] == "json_invalid":
        return "the body is not JSON", None
    if field is None:
        return "the body is not a JSON object; send it with Content-Type: application/json", None
    if error["type"] == "missing":
        return f"{field} is missing", field
    context = error.get("ctx", {})
    rules = {
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than_equal": f"at most {context.get('le')}",
        "literal_error": f"one of {context.get('expected')}",
        "string_type": "text",
    }
    rule = rules.get(error["type"])
    if rule is None:
        rule = "true or false" if error["type"].startswith("bool") else "a whole number"
    return f"{field} is {error['input']!r}; {field} must be {rule}", field


def error_object(
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> Response:
    """Return OpenAI's error object, with headers that say whether and when to try again."""
    body = {"error": {"message": _sendable(message), "type": type_, "param": param and _sendable(param), "code": code}}
    headers = {"x-should-retry": "false"} if status >= 500 and status != 503 else {}
    if status in (429, 503):
        headers["retry-after"] = str(SECONDS_TO_RETRY)
    return JSONResponse(body, status, headers)


def _sendable(text: str) -> str:
    """`text` with lone surrogates escaped: a client can send them in JSON, but UTF-8 has none."""
    return text.encode(errors="backslashreplace").decode()
