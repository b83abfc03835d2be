"""`sdcli synthesize`: a map of what is where becomes a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from sdcli import config
from sdcli.commands import options, orders
from sdcli.errors import UsageError
from sdcli.files.palette import Class
from sdcli.models import controlnets, registry
from sdcli.recipe.control import Control


@dataclass(frozen=True)
class Mapped(options.Picture):
    """A picture that follows a map, and takes its shape."""

    model: Annotated[str | None, options.model_option(registry.for_maps())] = None
    width: Annotated[
        int | None,
        typer.Option(
            "--width", "-W", metavar="PIXELS", rich_help_panel=options.PICTURE, show_default="a good one near the map's"
        ),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(
            "--height", "-H", metavar="PIXELS", rich_help_panel=options.PICTURE,
            show_default="a good one near the map's",
        ),
    ] = None  # fmt: skip
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME[=IMAGE]", rich_help_panel=options.PICTURE,
            show_default="seg-sd15 for an SD 1.x",
            autocompletion=options.controlnets,
            help="Follow IMAGE, or without one the map, by the ControlNet NAME; NAME:0.8:0-0.5 with that scale, in "
            "that share of the steps. May be given again.",
        ),
    ] = None  # fmt: skip
    snap: Annotated[
        bool | None,
        typer.Option("--snap", rich_help_panel=options.PICTURE, help="Take a colour of no class for the nearest."),
    ] = None


@options.expand
def synthesize(
    segmentation_map: Annotated[
        str | None,
        typer.Argument(metavar="MAP", help="A picture of classes, by colour or by index.", show_default=False),
    ] = None,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.", show_default=False)
    ] = "",
    *,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes", rich_help_panel=options.OUTPUT, show_default=False,
            help="Print the classes instead, and the colour of each; --json for one object a line.",
        ),
    ] = False,
    picture: Mapped,
    output: options.Output,
    execution: options.Execution,
) -> None:  # fmt: skip
    """Turn a map of what is where into a picture, and print its path.

    The model is one that takes maps, or any other beside a ControlNet that reads them.

    sdcli synthesize --classes

    sdcli synthesize map.png "a fox in the snow" -n 4

    sdcli synthesize map.png "a village at dusk" -m sd15 --control seg-sd15
    """
    model = str(config.general("model", picture.model, registry.for_maps()).value)
    if classes:
        _print(_classes(model, picture.control or []), as_json=output.json)
        return
    if segmentation_map is None:
        raise UsageError("there is no MAP", "give a picture of classes, which sdcli synthesize --classes lists")
    asked = options.given(picture, execution, segmentation_map=segmentation_map, prompt=prompt)
    orders.carry_out({**asked, "model": model}, output)


def _classes(model: str, control: Sequence[str]) -> Sequence[Class]:
    """The classes of the map that a picture would follow: the model's, or those of the ControlNet that reads it."""
    said = [Control.parse(each) for each in control]
    name = next((each.name for each in said if each.image is None), None)
    if name is None:
        entry = registry.find(model)
        facts = registry.facts_of(entry)
        if facts.classes:
            return facts.classes
        name = controlnets.for_maps(registry.unet_config(entry), facts)
    beside = registry.find(name)
    return controlnets.classes(registry.locate(beside) if registry.is_present(beside) else None)


def _print(classes: Sequence[Class], *, as_json: bool) -> None:
    """One class a line: index, name and colour, as a swatch too where stdout is a terminal."""
    if as_json:
        for each in classes:
            typer.echo(json.dumps(asdict(each), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    width = max(len(each.name) for each in classes)
    for each in classes:
        line = Text(f"{each.index:3}  {each.name:{width}}  {each.hex}")
        if console.is_terminal and not console.no_color:
            line.append("  ").append("    ", style=f"on {each.hex}")
        console.print(line)
