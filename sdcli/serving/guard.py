"""Rejects requests that are from web pages or too long. Knows HTTP, nothing of what is asked."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from sdcli.serving.log import App, Receive, Send
from sdcli.serving.refusals import error_object

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 2**20
EDITS = "/v1/images/edits"


class Guard:
    """Rejects requests with another host or origin, and bodies of more than `upload_bytes` or MAX_BODY_BYTES."""

    def __init__(self, app: App, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403, or 413."""
        if scope["type"] != "http":  # no WebSockets
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if _hostname(f"//{host}") not in HOSTS or (origin is not None and _hostname(origin) not in HOSTS):
            refusal = error_object(
                403, "requests must have 127.0.0.1 or localhost as their host and origin", code="forbidden"
            )
            await refusal(scope, receive, send)
            return
        limit = self.upload_bytes if scope["path"] == EDITS else MAX_BODY_BYTES
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
