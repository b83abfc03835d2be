"""`sdcli inpaint`: repaint a part of an image from a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import groups, options, picture_options, pictures
from sdcli.errors import UsageError


@dataclass(frozen=True)
class Repainting:
    """Options that select the part to repaint."""

    mask_image: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="MASK",
            rich_help_panel=options.PICTURE,
            help="An image that is white where IMAGE is repainted, or 'alpha' for IMAGE's transparent part. Required.",
            show_default=False,
        ),
    ] = None
    invert_mask: Annotated[
        bool | None,
        typer.Option("--invert-mask", rich_help_panel=options.PICTURE, help="Repaint where the mask is black."),
    ] = None
    fit_mask: Annotated[
        bool | None,
        typer.Option(
            "--fit-mask", rich_help_panel=options.PICTURE, help="Resize a mask that has another size than IMAGE."
        ),
    ] = None
    padding: Annotated[
        int | None,
        typer.Option(
            "--padding",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            show_default="the whole image",
            help="Crop to the masked area plus at least this many pixels around it, and repaint the crop at the "
            "model's resolution.",
        ),
    ] = None
    strength: options.Strength = None
    mask_blur: options.MaskBlur = None


@groups.expand
def inpaint(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    repainting: Repainting,
    picture: picture_options.Edited,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Repaint the masked part of an image from a prompt.

    Pixels that are black in the mask, after --mask-blur, are unchanged.

        sdcli inpaint photo.png "a red door" --mask door.png
    """
    if repainting.mask_image is None:
        raise UsageError(
            "sdcli inpaint needs --mask",
            "give --mask FILE, an image that is white where to repaint, or --mask alpha for IMAGE's transparent part",
        )
    pictures.make(groups.given(repainting, picture, execution, image=image, prompt=prompt, label=label), output)
