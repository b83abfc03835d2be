"""A line on stderr for each request, and a last resort for exceptions. Knows no API."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499
"""The status in the log of a request whose client left before its response was complete."""


class RequestLog:
    """Calls `app` and writes `time method path status seconds`, unless `quiet`. A client that leaves is no error."""

    def __init__(self, app: App, *, quiet: bool) -> None:
        self.app, self.quiet = app, quiet

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on and log it; an exception after the start of the response is in the log alone."""
        started, status, complete, left = time.monotonic(), 0, False, False

        async def watched() -> Any:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not complete)
            return message

        async def noted(message: Any) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, watched, noted)
        except ClientDisconnect:
            left = True
        except Exception:
            if not status:
                status = 500
                raise  # uvicorn answers
        finally:
            if not self.quiet and scope["type"] == "http":
                _tell(scope, CLIENT_LEFT if left else status, time.monotonic() - started)


def _tell(scope: Any, status: int, seconds: float) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # a closed stderr does not end the service
        print(f"{now} {scope['method']} {scope['raw_path'].decode('ascii')} {status} {seconds:.2f} s", file=sys.stderr)
