"""`sdcli train measure` and `export`: what has become of training."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from sdcli.commands import options
from sdcli.commands.train import Sprites, prepare_libraries
from sdcli.errors import UsageError
from sdcli.files import folders
from sdcli.training import order as ordering


def measure(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Names from `sdcli models list`, or folders.")
    ],
    judge: Annotated[
        Path, typer.Option("--judge", metavar="FILE", help="The judge: judge.pt of a run of train kit.")
    ],
    seen: Annotated[int, typer.Option("--seen", metavar="N", min=1, help="Prompts of combinations trained on.")] = 500,
    held_out: Annotated[int, typer.Option("--held-out", metavar="N", min=1, help="Prompts of others.")] = 200,
    masks: Annotated[int, typer.Option("--masks", metavar="N", min=1, help="Masks, for an inpainting model.")] = 100,
    maps: Annotated[int, typer.Option("--maps", metavar="N", min=1, help="Maps, for a model that takes them.")] = 100,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="NAME", show_default="the model's", help="What draws.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, show_default="the model's", help="In how many steps.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", show_default="the model's", help="How strictly.")
    ] = None,
    world: Annotated[
        str, typer.Option("--world", metavar="NAME", help=f"{', '.join(ordering.WORLDS)}.")
    ] = "kit",
    sprites: Sprites = None,
    json: Annotated[bool, typer.Option("--json", help="JSON, an object a row, instead.", show_default=False)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", show_default=False)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks with errors.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Measure how often models trained on the world draw what they are asked, and print the table.

    A small classifier, trained on the world's renderings alone, says what the pictures show; its own accuracy on unseen
    renderings comes first. Seeds are fixed, and nothing is picked. A model that inpaints is given masks, one that takes
    segmentation maps those.

    sdcli train measure kit kit-inpaint kit-semantic --judge judge.pt

    sdcli train measure runs/text/model --judge judge.pt --scheduler dpm++-2m --steps 12 --guidance-scale 3
    """
    if world not in ordering.WORLDS:
        raise UsageError(f"--world is {world}", f"it is one of {', '.join(ordering.WORLDS)}")
    prepare_libraries()
    from sdcli.training import session

    counts = {"seen": seen, "held_out": held_out, "masks": masks, "maps": maps}
    chosen = options.given(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)
    width = max(map(len, ("judge", *models)))
    for index, row in enumerate(session.measure(models, judge, counts, chosen, world, sprites, quiet)):
        if not json and index == 0:
            typer.echo(session.heading(width))
        typer.echo(jsonlib.dumps(row) if json else session.line_of(row, width))


def export(
    out: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    averaged: Annotated[
        bool | None,
        typer.Option(
            "--average/--last", show_default="the last ones of a finished run",
            help="The moving average of the weights, or those of the last step.",
        ),
    ] = None,
    unet_only: Annotated[
        bool, typer.Option("--unet-only", help="The U-Net's folder alone.", show_default=False)
    ] = False,
    shard: Annotated[
        int, typer.Option("--shard", metavar="MB", min=1, help="The most that a file of the U-Net holds.")
    ] = 4000,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model that is there already.", show_default=False)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks with errors.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Write the model of a run's last checkpoint as a diffusers folder in half precision, and print that folder.

    sdcli train export runs/text --to model --average
    """
    order = ordering.read(out)
    folders.check(to, force=force, known=order.written(Path(to)))
    prepare_libraries()
    from sdcli.training import stages

    with folders.written(to, force=force) as folder:
        stages.export_run(order, folder, averaged=averaged, unet_only=unet_only, shard_mb=shard)
    typer.echo(to)
