"""`sdcli img2img`: redraw an image from a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import completion, groups, options, picture_options, pictures


@dataclass(frozen=True)
class Redrawn(picture_options.Edited):
    """Options of a picture that is redrawn from an image."""

    width: Annotated[
        int | None,
        typer.Option(
            "--width", "-W", metavar="PIXELS", rich_help_panel=options.PICTURE,
            show_default="that of IMAGE", help="Width of the picture; see --resize.",
        ),
    ] = None  # fmt: skip
    height: Annotated[
        int | None,
        typer.Option(
            "--height", "-H", metavar="PIXELS", rich_help_panel=options.PICTURE,
            show_default="that of IMAGE", help="Height of the picture.",
        ),
    ] = None  # fmt: skip
    enlarge: Annotated[
        str | None,
        typer.Option(
            "--enlarge", metavar="FACTOR|WxH", rich_help_panel=options.PICTURE, show_default=False,
            help="Enlarge IMAGE by this factor or to this size before it is redrawn, in tiles of the model's size.",
        ),
    ] = None  # fmt: skip
    upscaler: Annotated[
        str | None,
        typer.Option(
            "--upscaler", metavar="NAME", rich_help_panel=options.PICTURE, show_default="lanczos",
            autocompletion=completion.upscaler_name,
            help="How to enlarge it: lanczos, or the name or .safetensors file of an upscaler.",
        ),
    ] = None  # fmt: skip


@groups.expand
def img2img(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    strength: options.Strength = None,
    resize: Annotated[
        bool | None,
        typer.Option(
            "--resize/--no-resize",
            rich_help_panel=options.PICTURE,
            show_default="--resize if -W or -H is given",
            help="Make a picture of the size of -W and -H, and crop IMAGE to its aspect ratio. --no-resize makes one "
            "of IMAGE's size, and works at the size of -W and -H.",
        ),
    ] = None,
    picture: Redrawn,
    refiner: picture_options.Refiner,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Redraw an image from a prompt.

    Noise is added to the image and removed again in the last steps of the schedule. --strength sets how many: a low
    value keeps the image, 1 ignores it.

        sdcli img2img sketch.png "a castle at dusk" --strength 0.6
        sdcli img2img sketch.png "a castle at dusk" -W 768 -H 512
        sdcli img2img castle.png "a castle at dusk" --enlarge 3 --strength 0.3
    """
    asked = groups.given(picture, refiner, execution, image=image, prompt=prompt, label=label, strength=strength)
    if resize if resize is not None else {"width", "height"} & asked.keys():
        asked["resize"] = True
    pictures.make(asked, output)
