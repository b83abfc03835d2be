"""`sdcli outpaint`: extend an image beyond its borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import groups, options, picture_options, pictures
from sdcli.errors import UsageError


@dataclass(frozen=True)
class Borders:
    """Options that set how much is added on each side."""

    left: Annotated[
        int,
        typer.Option("--left", metavar="PIXELS", rich_help_panel=options.PICTURE, help="Pixels to add on the left."),
    ] = 0
    right: Annotated[
        int,
        typer.Option("--right", metavar="PIXELS", rich_help_panel=options.PICTURE, help="Pixels to add on the right."),
    ] = 0
    top: Annotated[
        int, typer.Option("--top", metavar="PIXELS", rich_help_panel=options.PICTURE, help="Pixels to add at the top.")
    ] = 0
    bottom: Annotated[
        int,
        typer.Option(
            "--bottom", metavar="PIXELS", rich_help_panel=options.PICTURE, help="Pixels to add at the bottom."
        ),
    ] = 0
    strength: options.Strength = None
    mask_blur: options.MaskBlur = None


@groups.expand
def outpaint(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    borders: Borders,
    picture: picture_options.Edited,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Extend an image beyond its borders from a prompt.

    sdcli outpaint fox.png "arctic fox in the snow" --left 128 --right 128
    """
    if not any((borders.left, borders.right, borders.top, borders.bottom)):
        raise UsageError(
            "outpaint has no border to extend", "give --left, --right, --top or --bottom a number of pixels"
        )
    pictures.make(groups.given(borders, picture, execution, image=image, prompt=prompt, label=label), output)
