"""`sdcli inpaint`: a part of an image is repainted after a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import options, orders


@dataclass(frozen=True)
class Repainting:
    """Which part is repainted, and how."""

    mask_image: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="MASK",
            rich_help_panel=options.PICTURE,
            help="A picture whose white is repainted; alpha: where the image itself is transparent.",
        ),
    ]
    invert_mask: Annotated[
        bool | None,
        typer.Option("--invert-mask", rich_help_panel=options.PICTURE, help="Repaint the mask's black, not its white."),
    ] = None
    fit_mask: Annotated[
        bool | None, typer.Option("--fit-mask", rich_help_panel=options.PICTURE, help="Stretch a mask of another size.")
    ] = None
    padding: Annotated[
        int | None,
        typer.Option(
            "--padding",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            show_default="the whole image",
            help="Work on the masked area and at least so many pixels around it alone, at the model's own resolution.",
        ),
    ] = None
    strength: options.Strength = None
    mask_blur: options.MaskBlur = None


@options.expand
def inpaint(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    repainting: Repainting,
    picture: options.Edited,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Repaint the white part of a mask after a prompt, and print the new image's path.

    Pixels that the mask, softened by --mask-blur, leaves black come back bit for bit.

    sdcli inpaint photo.png "a red door" --mask door.png
    """
    orders.carry_out(options.given(repainting, picture, execution, image=image, prompt=prompt, label=label), output)
