"""`sdcli train kit`: train the embedded model from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import completion, groups
from sdcli.commands.train_options import (
    EXECUTION,
    SETTINGS,
    Base,
    Execution,
    Out,
    Sprites,
    World,
    folder_of,
    how_of,
    prepare_libraries,
)
from sdcli.errors import UsageError
from sdcli.training import run_config

KIT_PHASES = ("autoencoder", "captions", "text-to-image", "inpaint", "semantic", "judge", "decoder")


@dataclass(frozen=True)
class KitPhases:
    """The phases of kit to train, and their length."""

    phase: Annotated[
        list[str] | None,
        typer.Option(
            "--phase", metavar="NAME", rich_help_panel=SETTINGS, show_default="all but decoder",
            autocompletion=completion.of(*KIT_PHASES),
            help=f"Train only this phase; may be repeated: {', '.join(KIT_PHASES)}.",
        ),
    ] = None  # fmt: skip
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="MINUTES", min=0.1, rich_help_panel=SETTINGS, show_default="20 on a GPU, else 900",
            help="Time for all phases together; each has a fixed share of it.",
        ),
    ] = None  # fmt: skip
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", min=1, rich_help_panel=SETTINGS, show_default="as time allows",
            help="End each phase after N steps; with --minutes, at whichever comes first.",
        ),
    ] = None  # fmt: skip
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", metavar="X", min=0.001, max=1, rich_help_panel=SETTINGS, show_default="1 on a GPU, else 1/16",
            help="Multiply batch and pool sizes by X.",
        ),
    ] = None  # fmt: skip


@groups.expand
def kit(
    *,
    out: Out,
    sprites: Sprites = None,
    world: World = None,
    base: Base = None,
    phases: KitPhases,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=0, rich_help_panel=EXECUTION, show_default="one per core, minus one",
            help="Number of rendering processes.",
        ),
    ] = None,
    compiles: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", rich_help_panel=EXECUTION, show_default="on a GPU",
            help="Compile the U-Net with torch.compile.",
        ),
    ] = None,
    execution: Execution,
) -> None:  # fmt: skip
    """Train kit, the model that is part of sdcli, from nothing, and print its folder.

    Phases run in order: autoencoder, captions, text-to-image, inpaint, semantic, judge.
    A finished phase is not repeated; a stopped one continues. The phase decoder is for a kit that has its U-Nets: it
    trains the autoencoder's decoder alone, and needs --from.

        sdcli train kit --out runs --minutes 20 --device cuda
        sdcli train kit --out runs --phase judge --minutes 60
    """
    how = how_of(execution)
    for name in phases.phase or ():
        if name not in KIT_PHASES:
            raise UsageError(f"--phase is {name}", f"it must be one of {', '.join(KIT_PHASES)}")
    if "decoder" in (phases.phase or ()) and base is None:
        raise UsageError("--phase decoder needs --from", "its U-Nets are trained already: --from kit, or a folder")
    if world is not None and world not in run_config.WORLDS:
        raise UsageError(f"--world is {world}", f"it must be one of {', '.join(run_config.WORLDS)}")
    if execution.processes > 1:
        raise UsageError("train kit runs in one process", "set the number of rendering processes with --workers")
    prepare_libraries()
    from sdcli.training import session

    run = session.KitRun(
        out, sprites, folder_of(base), tuple(phases.phase or ()), phases.minutes, phases.steps, workers, phases.scale,
        compiles, world or "kit",
    )  # fmt: skip
    raise typer.Exit(session.train_kit(run, session.How(**how)))
