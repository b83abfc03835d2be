"""`sdcli generate`: a prompt becomes a picture."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import options, orders

Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="0…1", rich_help_panel=options.PICTURE, show_default="with --init-latents 0.6",
        help="The share of the steps to take from --init-latents; less keeps more of them.",
    ),
]  # fmt: skip


@options.expand
def generate(
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    init_latents: options.InitLatents = None,
    strength: Strength = None,
    picture: options.Picture,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Turn a prompt into a PNG, and print its path.

    sdcli generate "arctic fox"

    sdcli generate "a red owl at night" -n 4 -o owls/

    sdcli generate "arctic fox" -m sd15 --scheduler euler-a --seed 7

    sdcli generate --label "arctic fox" -m dit-256
    """
    asked = options.given(picture, execution, prompt=prompt, label=label, init_latents=init_latents, strength=strength)
    orders.carry_out(asked, output)
