"""`sdcli synthesize`: make a picture from a segmentation map."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from sdcli import config
from sdcli.commands import completion, groups, options, picture_options, pictures
from sdcli.errors import UsageError
from sdcli.files.palette import Class
from sdcli.models import located, registry
from sdcli.models.addons import controlnet
from sdcli.recipe.control import Control
from sdcli.terminal import streams
from sdcli.terminal.printable import printable


@dataclass(frozen=True)
class Mapped(picture_options.Picture):
    """Options of a picture that follows a segmentation map."""

    model: Annotated[str | None, options.model_option(registry.for_maps())] = None
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            "-W",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            help="Width of the picture.",
            show_default="near the map's",
        ),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(
            "--height", "-H", metavar="PIXELS", rich_help_panel=options.PICTURE, help="Height of the picture.",
            show_default="near the map's",
        ),
    ] = None  # fmt: skip
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME[=IMAGE]", rich_help_panel=options.PICTURE,
            show_default="seg-sd15 with Stable Diffusion 1.x",
            autocompletion=completion.control,
            help="Guide the picture by a ControlNet and IMAGE, or the map if no IMAGE is given. NAME:0.8:0-0.5 sets "
            "the scale and the part of the steps. Can be repeated.",
        ),
    ] = None  # fmt: skip
    snap: Annotated[
        bool | None,
        typer.Option(
            "--snap",
            rich_help_panel=options.PICTURE,
            help="Replace colours that belong to no class by the nearest class.",
        ),
    ] = None


@groups.expand
def synthesize(
    segmentation_map: Annotated[
        str | None,
        typer.Argument(
            metavar="MAP", help="An image with the classes as colours or as indices; - reads stdin.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to draw; - reads stdin.", show_default=False)
    ] = "",
    *,
    picture: Mapped,
    hires: picture_options.Hires,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes", rich_help_panel=options.OUTPUT, show_default=False,
            help="Print the classes and their colours, and exit.",
        ),
    ] = False,
    output: options.Output,
    execution: options.Execution,
) -> None:  # fmt: skip
    """Generate pictures from a segmentation map and a prompt.

    Needs a model trained on segmentation maps, or a ControlNet that reads them.

        sdcli synthesize --classes
        sdcli synthesize map.png "a fox in the snow" -n 4
        sdcli synthesize map.png "a village at dusk" -m sd15 --control seg-sd15
    """
    model = str(config.general("model", picture.model, registry.for_maps()).value)
    if classes:
        _print(_classes(model, picture.control or []), as_json=bool(output.json))
        return
    if segmentation_map is None:
        raise UsageError(
            "MAP is missing", "give a segmentation map; sdcli synthesize --classes lists the classes and their colours"
        )
    asked = groups.given(picture, hires, execution, segmentation_map=segmentation_map, prompt=prompt)
    pictures.make({**asked, "model": model}, output)


def _classes(model: str, control: Sequence[str]) -> Sequence[Class]:
    """The classes of the map that a picture would follow: the model's, or those of the ControlNet that reads it."""
    recorded = [Control.parse(each) for each in control]
    name = next((each.name for each in recorded if each.image is None), None)
    if name is None:
        found = located.find(model)
        if found.facts.classes:
            return found.facts.classes
        name = controlnet.for_maps(found)
    beside = registry.find(name)
    return controlnet.classes(registry.locate(beside) if registry.is_present(beside) else None)


def _print(classes: Sequence[Class], *, as_json: bool) -> None:
    """One class a line: index, name and colour, as a swatch too where stdout is a terminal."""
    if as_json:
        for each in classes:
            streams.say(streams.to_json(asdict(each)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    width = max(len(printable(each.name)) for each in classes)
    for each in classes:
        line = Text(f"{each.index:3}  {printable(each.name):{width}}  {each.hex}")
        if console.is_terminal and not console.no_color:
            line.append("  ").append("    ", style=f"on {each.hex}")
        console.print(line)
