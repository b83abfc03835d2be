"""`sdcli outpaint`: an image is continued beyond its borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import options, orders
from sdcli.errors import UsageError


@dataclass(frozen=True)
class Borders:
    """How much is added on each side, and how."""

    left: Annotated[
        int, typer.Option("--left", metavar="PIXELS", rich_help_panel=options.PICTURE, help="New pixels on the left.")
    ] = 0
    right: Annotated[
        int, typer.Option("--right", metavar="PIXELS", rich_help_panel=options.PICTURE, help="New pixels on the right.")
    ] = 0
    top: Annotated[
        int, typer.Option("--top", metavar="PIXELS", rich_help_panel=options.PICTURE, help="New pixels at the top.")
    ] = 0
    bottom: Annotated[
        int,
        typer.Option("--bottom", metavar="PIXELS", rich_help_panel=options.PICTURE, help="New pixels at the bottom."),
    ] = 0
    strength: options.Strength = None
    mask_blur: options.MaskBlur = None


@options.expand
def outpaint(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    borders: Borders,
    picture: options.Edited,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Continue an image beyond its borders after a prompt, and print the new one's path.

    sdcli outpaint fox.png "arctic fox in the snow" --left 128 --right 128
    """
    if not any((borders.left, borders.right, borders.top, borders.bottom)):
        raise UsageError("outpaint adds nothing", "say how many pixels with --left, --right, --top or --bottom")
    orders.carry_out(options.given(borders, picture, execution, image=image, prompt=prompt, label=label), output)
