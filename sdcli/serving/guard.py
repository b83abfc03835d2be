"""Rejects requests that are from web pages of others, without the key, or too long. Knows HTTP, nothing of what is
asked.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from sdcli.serving.log import App, Receive, Send
from sdcli.serving.refusals import error_object

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 2**20
EDITS = "/v1/images/edits"


class Guard:
    """Rejects requests with another host or origin than `hosts`, without the `key`, if there is one, and bodies of more
    than `upload_bytes` or MAX_BODY_BYTES.
    """

    def __init__(self, app: App, upload_bytes: int, hosts: Collection[str] = (), key: str | None = None) -> None:
        self.app, self.upload_bytes = app, upload_bytes
        self.hosts, self.key = HOSTS | {each.lower() for each in hosts}, key

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401, 403, or 413."""
        if scope["type"] != "http":  # no WebSockets
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if _hostname(f"//{host}") not in self.hosts or (origin is not None and _hostname(origin) not in self.hosts):
            told = "requests must have 127.0.0.1 or localhost as their host and origin, or a name given to --allow-host"
            await error_object(403, told, code="forbidden")(scope, receive, send)
            return
        if self.key is not None and not _has_key(headers.get(b"authorization", ""), self.key):
            refusal = error_object(401, "the API key is missing or wrong", code="invalid_api_key")
            refusal.headers["www-authenticate"] = 'Basic realm="sdcli", charset="UTF-8"'
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


def _has_key(authorization: str, key: str) -> bool:
    """Whether a request has the key: as a bearer token, as clients of OpenAI send it, or as the password of a user of
    any name, which a browser asks for.
    """
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), key.encode())


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
