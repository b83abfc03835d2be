"""`sdcli train measure` and `sdcli train export`: evaluate and export trained models."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from sdcli.commands import completion, groups
from sdcli.commands.train_options import prepare_libraries
from sdcli.errors import UsageError
from sdcli.files import folders
from sdcli.terminal import streams
from sdcli.training import run_config


def measure(
    models: Annotated[
        list[str], typer.Argument(
            metavar="MODEL", help="Names from `sdcli models list`, or folders.", autocompletion=completion.model
        ),
    ],
    judge: Annotated[
        Path, typer.Option("--judge", metavar="FILE", help="The judge: the file judge.pt of a run of train kit.")
    ],
    seen: Annotated[int, typer.Option("--seen", metavar="N", min=1, help="Prompts seen in training.")] = 500,
    held_out: Annotated[int, typer.Option("--held-out", metavar="N", min=1, help="Prompts held out.")] = 200,
    masks: Annotated[int, typer.Option("--masks", metavar="N", min=1, help="Masks for an inpainting model.")] = 100,
    maps: Annotated[int, typer.Option("--maps", metavar="N", min=1, help="Maps for a segmentation model.")] = 100,
    scheduler: Annotated[
        str | None, typer.Option(
            "--scheduler", metavar="NAME", show_default="the model's", help="Scheduler to use.",
            autocompletion=completion.scheduler,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, show_default="the model's", help="Denoising steps.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", show_default="the model's", help="Guidance scale.")
    ] = None,
    world: Annotated[
        str, typer.Option(
            "--world", metavar="NAME", help=f"{', '.join(run_config.WORLDS)}.",
            autocompletion=completion.of(*run_config.WORLDS),
        ),
    ] = "kit",
    sprites: Annotated[
        Path | None,
        typer.Option(
            "--sprites", metavar="PATH", show_default="Fluent Emoji 3D, by npm", help="Pictures of the subjects.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per row.", show_default=False)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", show_default=False)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Measure how often models draw what the prompt asks for.

    For models trained on the synthetic world. A small classifier, trained on the world's renderings, reads the
    pictures; the first row of the table is its own accuracy on unseen renderings. Seeds are fixed. Inpainting models
    are measured with masks, segmentation models with maps.

        sdcli train measure kit kit-inpaint kit-semantic --judge judge.pt
        sdcli train measure runs/text/model --judge judge.pt --scheduler dpm++-2m --steps 12 --guidance-scale 3
    """
    if world not in run_config.WORLDS:
        raise UsageError(f"--world is {world}", f"it must be one of {', '.join(run_config.WORLDS)}")
    prepare_libraries()
    from sdcli.training import session

    counts = {"seen": seen, "held_out": held_out, "masks": masks, "maps": maps}
    chosen = groups.given(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)
    width = max(map(len, ("judge", *models)))
    for index, row in enumerate(session.measure(models, judge, counts, chosen, world, sprites, quiet)):
        if not json and index == 0:
            streams.say(session.heading(width))
        streams.say(jsonlib.dumps(row) if json else session.line_of(row, width))


def export(
    out: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    averaged: Annotated[
        bool | None,
        typer.Option(
            "--average/--last", show_default="--last for a finished run",
            help="Export the moving average of the weights, or the weights of the last step.",
        ),
    ] = None,
    unet_only: Annotated[
        bool, typer.Option("--unet-only", help="Export only the U-Net.", show_default=False)
    ] = False,
    shard: Annotated[
        int, typer.Option("--shard", metavar="MB", min=1, help="Largest size of one file of the U-Net.")
    ] = 4000,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing model.", show_default=False)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks.", show_default=False)] = False,
) -> None:  # fmt: skip
    """Write the model of a run's last checkpoint as a diffusers folder.

    Weights are written in float16.

        sdcli train export runs/text --to model --average
    """
    config = run_config.read(out)
    folders.check(to, force=force, known=config.written(Path(to)))
    prepare_libraries()
    from sdcli.training import stages

    with folders.written(to, force=force) as folder:
        stages.export_run(config, folder, averaged=averaged, unet_only=unet_only, shard_mb=shard)
    streams.say_path(to)
