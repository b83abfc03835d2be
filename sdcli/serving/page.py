"""The page at `/`: three files, which use the images API of the same address and request nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

_FOLDER = Path(__file__).with_name("static")
FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def file(name: str) -> Response:
    """Return one of FILES."""
    return Response(_FOLDER.joinpath(name).read_bytes(), media_type=FILES[name], headers=HEADERS)


def add(app: FastAPI) -> None:
    """Add the files that the page loads."""

    @app.get("/page.css", include_in_schema=False)
    async def style() -> Any:
        return file("page.css")

    @app.get("/page.js", include_in_schema=False)
    async def script() -> Any:
        return file("page.js")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Any:
        return Response(status_code=204)
