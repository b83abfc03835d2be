"""`sdcli train`: train models in stages, on the synthetic world or on a folder of pictures."""

from __future__ import annotations

import json as jsonlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sdcli.commands import completion, groups
from sdcli.commands.plain_help import Commands
from sdcli.errors import UsageError
from sdcli.models import registry
from sdcli.terminal import streams
from sdcli.training import run_config
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import (
    AutoencoderTraining,
    InpaintTraining,
    SemanticTraining,
    TextEncoderTraining,
    TextToImageTraining,
    Training,
)

train = Commands(
    help="Train, measure and export models.",
)

_RUN, _SETTINGS, _EXECUTION = "Run options", "Training options", "Execution options"
KIT_PHASES = ("autoencoder", "captions", "text-to-image", "inpaint", "semantic", "judge")
DEVICES, DTYPES = ("auto", "cpu", "cuda"), ("float32", "bfloat16")
Command = TypeVar("Command", bound=Callable[..., None])


Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", rich_help_panel=_RUN,
        help="The folder of the run: checkpoints, log.jsonl, sheets, the finished model. An unfinished run continues.",
    ),
]  # fmt: skip
Sprites = Annotated[
    Path | None,
    typer.Option(
        "--sprites", metavar="PATH", rich_help_panel=_RUN, show_default="Fluent Emoji 3D, by npm",
        help="Pictures of the subjects: a folder or zip archive of <code>.webp, or the npm package.",
    ),
]  # fmt: skip


World = Annotated[
    str | None,
    typer.Option(
        "--world", metavar="NAME", rich_help_panel=_RUN, show_default="kit",
        autocompletion=completion.of(*run_config.WORLDS),
        help=f"The synthetic world to train on: {', '.join(run_config.WORLDS)}.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Options of the run's folder and data."""

    out: Out
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", rich_help_panel=_RUN, show_default="the synthetic world",
            help="A folder of pictures with a metadata.jsonl.",
        ),
    ] = None  # fmt: skip
    world: World = None
    sprites: Sprites = None


Base = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="MODEL", rich_help_panel=_RUN, show_default=False, autocompletion=completion.model,
        help="The model to start from: a diffusers folder or a name.",
    ),
]  # fmt: skip
Vae = Annotated[
    Path | None,
    typer.Option(
        "--vae", metavar="FOLDER", rich_help_panel=_RUN, show_default=False,
        help="A trained autoencoder for a new model.",
    ),
]  # fmt: skip
Text = Annotated[
    bool | None,
    typer.Option(
        "--train-text-encoder/--freeze-text-encoder", rich_help_panel=_SETTINGS,
        show_default="train a new one, freeze one of --from", help="Train the text encoder, or keep it as it is.",
    ),
]  # fmt: skip
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="PIXELS", min=64, rich_help_panel=_RUN, show_default="256",
        help="The side length that the pictures of --data are resized to.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """How a run is executed; these options do not change its result."""

    slice: Annotated[
        float | None,
        typer.Option(
            "--slice", metavar="MINUTES", min=0, rich_help_panel=_EXECUTION, show_default="to the end",
            help="Stop at a checkpoint after this long; the same command continues.",
        ),
    ] = None  # fmt: skip
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            rich_help_panel=_EXECUTION,
            help=f"{', '.join(DEVICES)}.",
            autocompletion=completion.of(*DEVICES),
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="NAME", rich_help_panel=_EXECUTION, autocompletion=completion.of(*DTYPES),
            help=f"Precision of matrix products: {', '.join(DTYPES)}. Weights stay in float32.",
        ),
    ] = "bfloat16"  # fmt: skip
    processes: Annotated[
        int,
        typer.Option(
            "--processes", metavar="N", min=1, rich_help_panel=_EXECUTION,
            help="Split each batch between this many processes; needs accelerate.",
        ),
    ] = 1  # fmt: skip
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, rich_help_panel=_EXECUTION, help="CPU threads per process.",
            show_default="one per core, or 1 with several processes",
        ),
    ] = None  # fmt: skip
    json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=_EXECUTION, show_default=False,
            help="Print the lines of the log, and the result of the run as the last line.",
        ),
    ] = False  # fmt: skip
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=_EXECUTION, help="Show no progress.", show_default=False)
    ] = False
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", rich_help_panel=_EXECUTION, help="Print the traceback of an error.", show_default=False
        ),
    ] = False


@dataclass(frozen=True)
class Once(Execution):
    """The execution options, and a dry run."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=_EXECUTION, show_default=False,
            help="Time a few steps, print the estimated time and memory, and exit.",
        ),
    ] = False  # fmt: skip


def with_settings(kind: type[Training]) -> Callable[[Command], Command]:
    """Make a command's parameter `settings` a group with an option, None by default, for each field of `kind`."""
    types: Mapping[str, Any] = {"int": int, "float": float}
    group = make_dataclass(
        kind.__name__,
        [
            (
                each.name,
                Annotated[
                    types[str(each.type)] | None,
                    typer.Option(
                        "--" + each.name.replace("_", "-"), metavar="N" if each.type == "int" else "X",
                        rich_help_panel=_SETTINGS, help=each.metadata["help"], show_default=f"{each.default:g}",
                    ),
                ],
                None,
            )
            for each in fields(kind)
        ],
        frozen=True,
    )  # fmt: skip

    def annotate(command: Command) -> Command:
        command.__annotations__["settings"] = group
        return command

    return annotate


@train.command("autoencoder")
@groups.expand
@with_settings(AutoencoderTraining)
def autoencoder(*, run: Run, size: Size = None, settings: Any, execution: Once) -> None:
    """Train an autoencoder that maps 8×8 pixels to 8 numbers.

    sdcli train autoencoder --out runs/autoencoder --slice 10
    """
    _run_stage("autoencoder", run, execution, settings, {"size": size})


@train.command("text-encoder")
@groups.expand
@with_settings(TextEncoderTraining)
def text_encoder(*, out: Out, world: World = None, base: Base = None, settings: Any, execution: Once) -> None:
    """Train a model's text encoder on captions of the synthetic world.

    It learns which subject is where. The U-Net does not change; continue with text-to-image --from, so that the U-Net
    learns to use the new text encoder.

        sdcli train text-encoder --from runs/text/model --world kit-rows --out runs/reading
    """
    _run_stage("text-encoder", Run(out, world=world), execution, settings, {"base": base})


@train.command("text-to-image")
@groups.expand
@with_settings(TextToImageTraining)
def text_to_image(
    *, run: Run, vae: Vae = None, base: Base = None, text: Text = None, settings: Any, execution: Once
) -> None:
    """Train a text-to-image model, or continue training one.

    --vae starts a new model on a trained autoencoder, with a new text encoder and tokenizer. --from continues with a
    trained model.

        sdcli train text-to-image --vae runs/autoencoder/model --out runs/text
        sdcli train text-to-image --from my-model --data my-pictures --lr 1e-4 --out runs/mine
    """
    _run_stage("text-to-image", run, execution, settings, {"vae": vae, "base": base, "text": text})


@train.command("inpaint")
@groups.expand
@with_settings(InpaintTraining)
def inpaint(*, run: Run, base: Base = None, text: Text = None, settings: Any, execution: Once) -> None:
    """Train an inpainting model from a text-to-image model.

    Its U-Net takes the mask and the masked image as further channels, like Stable Diffusion's inpainting models.

        sdcli train inpaint --from runs/text/model --out runs/inpaint
    """
    _run_stage("inpaint", run, execution, settings, {"base": base, "text": text})


@train.command("semantic")
@groups.expand
@with_settings(SemanticTraining)
def semantic(*, run: Run, base: Base = None, text: Text = None, settings: Any, execution: Once) -> None:
    """Train a model for segmentation maps from a text-to-image model.

    Its U-Net takes one further channel per class. Maps of your own are images of class indices, named by
    "map_file_name" in metadata.jsonl; classes.json in the same folder lists the classes.

        sdcli train semantic --from runs/text/model --out runs/semantic
    """
    _run_stage("semantic", run, execution, settings, {"base": base, "text": text})


@dataclass(frozen=True)
class KitPhases:
    """The phases of kit to train, and their length."""

    phase: Annotated[
        list[str] | None,
        typer.Option(
            "--phase", metavar="NAME", rich_help_panel=_SETTINGS, show_default="all",
            autocompletion=completion.of(*KIT_PHASES),
            help=f"Train only this phase; may be repeated: {', '.join(KIT_PHASES)}.",
        ),
    ] = None  # fmt: skip
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="MINUTES", min=0.1, rich_help_panel=_SETTINGS, show_default="20 on a GPU, else 900",
            help="Time for all phases together; each has a fixed share of it.",
        ),
    ] = None  # fmt: skip
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", min=1, rich_help_panel=_SETTINGS, show_default="as time allows",
            help="End each phase after N steps; with --minutes, at whichever comes first.",
        ),
    ] = None  # fmt: skip
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", metavar="X", min=0.001, max=1, rich_help_panel=_SETTINGS, show_default="1 on a GPU, else 1/16",
            help="Multiply batch and pool sizes by X.",
        ),
    ] = None  # fmt: skip


@train.command("kit")
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
            "--workers", metavar="N", min=0, rich_help_panel=_EXECUTION, show_default="one per core, minus one",
            help="Number of rendering processes.",
        ),
    ] = None,
    compiles: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", rich_help_panel=_EXECUTION, show_default="on a GPU",
            help="Compile the U-Net with torch.compile.",
        ),
    ] = None,
    execution: Execution,
) -> None:  # fmt: skip
    """Train kit, the model that is part of sdcli, from nothing, and print its folder.

    Phases run in order: autoencoder, captions, text-to-image, inpaint, semantic, judge.
    A finished phase is not repeated; a stopped one continues.

        sdcli train kit --out runs --minutes 20 --device cuda
        sdcli train kit --out runs --phase judge --minutes 60
    """
    how = how_of(execution)
    for name in phases.phase or ():
        if name not in KIT_PHASES:
            raise UsageError(f"--phase is {name}", f"it must be one of {', '.join(KIT_PHASES)}")
    if world is not None and world not in run_config.WORLDS:
        raise UsageError(f"--world is {world}", f"it must be one of {', '.join(run_config.WORLDS)}")
    if execution.processes > 1:
        raise UsageError("train kit runs in one process", "set the number of rendering processes with --workers")
    prepare_libraries()
    from sdcli.training import session

    run = session.KitRun(
        out, sprites, _folder_of(base), tuple(phases.phase or ()), phases.minutes, phases.steps, workers, phases.scale,
        compiles, world or "kit",
    )  # fmt: skip
    raise typer.Exit(session.train_kit(run, session.How(**how)))


def _run_stage(stage: str, run: Run, execution: Once, settings: Any, begin: Mapping[str, Any]) -> None:
    begin = {key: _folder_of(value) if key == "base" else value for key, value in begin.items()}
    given = groups.given(data=run.data, world=run.world, sprites=run.sprites, **begin)
    train_planned(run_config.plan(stage, run.out, given, groups.given(settings)), execution)


def train_planned(config: RunConfig, execution: Once) -> None:
    """Run what is planned, or estimate its cost."""
    how = how_of(execution)
    prepare_libraries()
    from sdcli.training import session

    if execution.dry_run:
        facts = session.cost(config, session.How(**how))
        for line in [jsonlib.dumps(facts)] if execution.json else session.shown(facts).splitlines():
            streams.say(line)
    else:
        raise typer.Exit(session.train_stage(config, session.How(**how)))


def _folder_of(base: Path | None) -> Path | None:
    """Return the folder of a model given by its name in `sdcli models list`; other paths are returned unchanged."""
    if base is None or base.exists() or str(base) not in registry.entries():
        return base
    source = registry.locate(registry.find(str(base)))
    if source.is_file or source.parts:
        raise UsageError(
            f"{base} is not a single diffusers folder", f"export it first: sdcli models export {base} FOLDER"
        )
    return source.path


def how_of(execution: Execution) -> dict[str, Any]:
    """Return the arguments of `session.How`. Raises UsageError if one is invalid."""
    for name, value, allowed in (("device", execution.device, DEVICES), ("dtype", execution.dtype, DTYPES)):
        if value not in allowed:
            raise UsageError(f"--{name} is {value}", f"it must be one of {', '.join(allowed)}")
    deadline = None if execution.slice is None else time.monotonic() + 60 * execution.slice
    taken = ("device", "dtype", "processes", "threads", "json", "quiet")
    return {key: getattr(execution, key) for key in taken} | {"deadline": deadline}


def prepare_libraries() -> None:
    """Turn off the log messages and the progress bars of libraries."""
    from sdcli.making import deliver

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    deliver.prepare_libraries()
