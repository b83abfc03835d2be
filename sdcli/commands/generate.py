"""`sdcli generate`: make pictures from a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import groups, options, picture_options, pictures

Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="0…1", rich_help_panel=options.PICTURE, show_default="0.6",
        help="With --init-latents: the share of the steps to run. A lower value keeps more of the latents.",
    ),
]  # fmt: skip


@groups.expand
def generate(
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    init_latents: options.InitLatents = None,
    strength: Strength = None,
    picture: picture_options.Picture,
    hires: picture_options.Hires,
    refiner: picture_options.Refiner,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Generate pictures from a text prompt.

    Writes PNG files and prints their paths, one per line.

        sdcli generate "arctic fox"
        sdcli generate "a red owl at night" -n 4 -o owls/
        sdcli generate "arctic fox" -m sd15 --scheduler euler-a --seed 7
        sdcli generate "arctic fox" -m sd15 --hires 2
        sdcli generate "arctic fox" -m sdxl --refiner sdxl-refiner
        sdcli generate --label "arctic fox" -m dit-256
    """
    asked = groups.given(
        picture, hires, refiner, execution, prompt=prompt, label=label, init_latents=init_latents, strength=strength
    )
    pictures.make(asked, output)
