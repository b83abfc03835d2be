"""`sdcli serve`: keep models loaded and make pictures for other processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.commands import completion
from sdcli.errors import InputError, UsageError

MIN_KEY, MAX_KEY = 16, 512
"""Characters of an API key."""


def serve(
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            envvar="SDCLI_SOCKET",
            help="Listen on this Unix socket for other sdcli commands.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            help="Serve a page and the OpenAI images API on 127.0.0.1:N; 0 selects a free port.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.model,
            help="Load this model at the start. Can be repeated.",
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="How many models stay in memory, the last used ones.")
    ] = 2,
    queue: Annotated[
        int,
        typer.Option("--queue", metavar="N", min=0, help="How many pictures may wait; further requests are refused."),
    ] = 16,
    idle_exit: Annotated[
        float | None,
        typer.Option(
            "--idle-exit",
            metavar="SECONDS",
            min=0,
            help="Exit after this long without a request.",
            show_default="never",
        ),
    ] = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background", help="Return when it is ready, and continue in the background.", show_default=False
        ),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Append messages to this file, with --background.",
            show_default="none are kept",
        ),
    ] = None,
    pid_file: Annotated[
        str | None,
        typer.Option("--pid-file", metavar="FILE", help="Write the process ID to this file, and remove it at the end."),
    ] = None,
    max_connections: Annotated[
        int,
        typer.Option(
            "--max-connections",
            metavar="N",
            min=1,
            max=10_000,
            help="How many connections an address takes; a further one replaces the one that is idle longest.",
        ),
    ] = 128,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout",
            metavar="SECONDS",
            min=0.1,
            help="Close a connection whose request has not arrived completely after this long.",
        ),
    ] = 30,
    max_upload: Annotated[
        int, typer.Option("--max-upload", metavar="MIB", min=1, help="The largest form with pictures, in MiB.")
    ] = 64,
    max_upload_megapixels: Annotated[
        float,
        typer.Option("--max-upload-megapixels", metavar="N", min=0.01, help="The largest picture in a form, by area."),
    ] = 25,
    max_megapixels: Annotated[
        float,
        typer.Option(
            "--max-megapixels", metavar="N", min=0.01, help="The largest picture that the images API makes, by area."
        ),
    ] = 4.2,
    max_prompt: Annotated[
        int,
        typer.Option("--max-prompt", metavar="CHARACTERS", min=1, help="The longest prompt that the images API takes."),
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="FILE",
            help="Only answer requests on the port that have the key in this file.",
            show_default="SDCLI_API_KEY, or no key",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Also answer requests to this host, for a reverse proxy. Can be repeated.",
            show_default="127.0.0.1 and localhost",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no line for each request.", show_default=False)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)
    ] = False,
) -> None:
    """Keep models loaded and make pictures for other commands.

    Commands use the process if SDCLI_SOCKET names its socket. It prints its address when it is ready, a line on stderr
    for each request, and makes one picture at a time. On SIGINT or SIGTERM it finishes the current picture and refuses
    those that wait; a second signal cancels the current picture.

        sdcli serve --socket sdcli.sock -m kit --idle-exit 600 --background
        SDCLI_SOCKET=sdcli.sock sdcli generate "arctic fox"
        sdcli serve --port 8188 -m kit    # and open http://127.0.0.1:8188 in a browser
    """
    if socket is None and port is None:
        raise UsageError("sdcli serve needs an address to listen on", "give --socket PATH, --port N or both")
    if port is None and (api_key is not None or allow_host):
        option = "--allow-host" if api_key is None else "--api-key"
        raise UsageError(f"{option} has no effect without --port", "add --port 8188, or omit it")
    key = None if port is None else _key(api_key)
    if log is not None and not background:
        raise UsageError("--log has no effect without --background", "add --background, or redirect stderr: 2>> FILE")

    def run(on_ready: Callable[[], None]) -> int:
        process, limits = _import()
        bounds = limits.Limits(
            max_connections, request_timeout, max_upload, max_upload_megapixels, max_megapixels, max_prompt
        )
        models, files = tuple(model or ()), pid_file
        service = process.Service(
            socket, port, models, keep, queue, idle_exit, bounds, files, quiet, debug, on_ready, allow_host or (), key
        )
        status: int = process.run(service)
        return status

    if background:
        from sdcli.serving import background as child

        raise typer.Exit(child.start(run, (socket is not None) + (port is not None), log))
    raise typer.Exit(run(lambda: None))


def _key(path: str | None) -> str | None:
    """Return the API key: the first line of a file, or the value of SDCLI_API_KEY. Raises InputError and UsageError."""
    key, named = os.environ.get("SDCLI_API_KEY"), "SDCLI_API_KEY"
    if path is None and not key:
        return None
    if path is not None:
        named = f"--api-key {path}"
        try:
            with Path(path).open(encoding="utf-8") as file:
                key = file.readline(MAX_KEY + 2)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text"
            raise InputError(f"{named}: {reason}", "give a file with the key in its first line") from error
    key = (key or "").strip()
    if not MIN_KEY <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{named}: a key has {MIN_KEY} to {MAX_KEY} letters, digits and signs",
            "make one with: openssl rand -hex 24 > key.txt",
        )
    return key


def _import() -> tuple[Any, Any]:
    """Import what serves; FastAPI and uvicorn are an optional part."""
    try:
        from sdcli.serving import limits, process
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("fastapi", "uvicorn", "pydantic", "starlette"):
            raise
        raise UsageError(f"sdcli serve needs the package {error.name}", "pip install 'sdcli[serve]'") from error
    return process, limits
