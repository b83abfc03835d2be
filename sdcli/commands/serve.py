"""`sdcli serve`: a process that keeps models loaded and makes pictures for others."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import options
from sdcli.errors import UsageError


def serve(
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket", metavar="PATH", envvar="SDCLI_SOCKET", help="Unix socket for other sdcli commands; yours alone."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            help="Speak the OpenAI images API on 127.0.0.1:N too; 0 takes a free port.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Load this model at once; may be given several times."),
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="Models in memory, those used last; at least all of -m.")
    ] = 2,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Pictures that may wait; more are turned away.")
    ] = 16,
    idle_exit: Annotated[
        float | None,
        typer.Option(
            "--idle-exit", metavar="SECONDS", min=0, help="End after so long without work.", show_default="never"
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Keep models loaded, and make the pictures of other sdcli commands where SDCLI_SOCKET names this socket.

    sdcli serve --socket sdcli.sock -m kit --idle-exit 600 &

    SDCLI_SOCKET=sdcli.sock sdcli generate "arctic fox"

    sdcli serve --port 8188

    Prints where it listens once it is ready. One picture is made at a time. SIGINT or SIGTERM: the picture in hand is
    finished, and those that wait are turned away; a second signal cancels it too.
    """
    if socket is None and port is None:
        raise UsageError("sdcli serve has nowhere to listen", "give --socket PATH, --port N or both")
    try:
        from sdcli.serving import process
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("fastapi", "uvicorn", "pydantic", "starlette"):
            raise
        raise UsageError(f"sdcli serve needs the package {error.name}", "pip install 'sdcli[serve]'") from error
    service = process.Service(socket, port, tuple(model or ()), keep, queue, idle_exit, debug)
    raise typer.Exit(process.run(service))
