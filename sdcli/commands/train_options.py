"""Options that the commands of `sdcli train` share, and how a run starts."""

from __future__ import annotations

import json as jsonlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sdcli.commands import completion
from sdcli.errors import UsageError
from sdcli.models import registry
from sdcli.terminal import streams
from sdcli.training import run_config
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import Training

RUN, SETTINGS, EXECUTION = "Run options", "Training options", "Execution options"
DEVICES, DTYPES = ("auto", "cpu", "cuda"), ("float32", "bfloat16")
Command = TypeVar("Command", bound=Callable[..., None])

Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", rich_help_panel=RUN,
        help="The folder of the run: checkpoints, log.jsonl, sheets, the finished model. An unfinished run continues.",
    ),
]  # fmt: skip
Sprites = Annotated[
    Path | None,
    typer.Option(
        "--sprites", metavar="PATH", rich_help_panel=RUN, show_default="Fluent Emoji 3D, by npm",
        help="Pictures of the subjects: a folder or zip archive of <code>.webp, or the npm package.",
    ),
]  # fmt: skip
World = Annotated[
    str | None,
    typer.Option(
        "--world", metavar="NAME", rich_help_panel=RUN, show_default="kit",
        autocompletion=completion.of(*run_config.WORLDS),
        help=f"The synthetic world to train on: {', '.join(run_config.WORLDS)}.",
    ),
]  # fmt: skip
Base = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="MODEL", rich_help_panel=RUN, show_default=False, autocompletion=completion.model,
        help="The model to start from: a diffusers folder or a name.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """How a run is executed; these options do not change its result."""

    slice: Annotated[
        float | None,
        typer.Option(
            "--slice", metavar="MINUTES", min=0, rich_help_panel=EXECUTION, show_default="to the end",
            help="Stop at a checkpoint after this long; the same command continues.",
        ),
    ] = None  # fmt: skip
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            rich_help_panel=EXECUTION,
            help=f"{', '.join(DEVICES)}.",
            autocompletion=completion.of(*DEVICES),
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="NAME", rich_help_panel=EXECUTION, autocompletion=completion.of(*DTYPES),
            help=f"Precision of matrix products: {', '.join(DTYPES)}. Weights stay in float32.",
        ),
    ] = "bfloat16"  # fmt: skip
    processes: Annotated[
        int,
        typer.Option(
            "--processes", metavar="N", min=1, rich_help_panel=EXECUTION,
            help="Split each batch between this many processes; needs accelerate.",
        ),
    ] = 1  # fmt: skip
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, rich_help_panel=EXECUTION, help="CPU threads per process.",
            show_default="one per core, or 1 with several processes",
        ),
    ] = None  # fmt: skip
    json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=EXECUTION, show_default=False,
            help="Print the lines of the log, and the result of the run as the last line.",
        ),
    ] = False  # fmt: skip
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=EXECUTION, help="Show no progress.", show_default=False)
    ] = False
    debug: Annotated[
        bool,
        typer.Option("--debug", rich_help_panel=EXECUTION, help="Print the traceback of an error.", show_default=False),
    ] = False


@dataclass(frozen=True)
class Once(Execution):
    """The execution options, and a dry run."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=EXECUTION, show_default=False,
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
                        rich_help_panel=SETTINGS, help=each.metadata["help"], show_default=f"{each.default:g}",
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


def folder_of(base: Path | None) -> Path | None:
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
