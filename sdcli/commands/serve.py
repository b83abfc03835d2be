"""`sdcli serve`: keep models loaded and make pictures for other processes."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import completion
from sdcli.errors import UsageError


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
            help="Serve the OpenAI images API on 127.0.0.1:N; 0 selects a free port.",
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
    max_megapixels: Annotated[
        float,
        typer.Option(
            "--max-megapixels", metavar="N", min=0.01, help="The largest picture that the images API makes, by area."
        ),
    ] = 4.2,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)
    ] = False,
) -> None:
    """Keep models loaded and make pictures for other commands.

    Commands use the process if SDCLI_SOCKET names its socket. It prints its address when it is ready, and makes one
    picture at a time. On SIGINT or SIGTERM it finishes the current picture and refuses those that wait; a second signal
    cancels the current picture.

        sdcli serve --socket sdcli.sock -m kit --idle-exit 600 &
        SDCLI_SOCKET=sdcli.sock sdcli generate "arctic fox"
        sdcli serve --port 8188
    """
    if socket is None and port is None:
        raise UsageError("sdcli serve needs an address to listen on", "give --socket PATH, --port N or both")
    try:
        from sdcli.serving import process
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("fastapi", "uvicorn", "pydantic", "starlette"):
            raise
        raise UsageError(f"sdcli serve needs the package {error.name}", "pip install 'sdcli[serve]'") from error
    service = process.Service(socket, port, tuple(model or ()), keep, queue, idle_exit, debug, max_megapixels)
    raise typer.Exit(process.run(service))
