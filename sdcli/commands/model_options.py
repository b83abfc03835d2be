"""Arguments and options that several commands of `sdcli models` have."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import completion

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or a path.",
        autocompletion=completion.any_model,
    ),
]
HubName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or OWNER/NAME on the hub.",
        autocompletion=completion.hub_model,
    ),
]
Removable = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or OWNER/NAME on the hub.",
        autocompletion=completion.removable_model,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)]
