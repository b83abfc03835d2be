"""`sdcli batch`: many pictures from one file of jobs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import config
from sdcli.commands import options
from sdcli.errors import InputError, JobsFailed, UsageError
from sdcli.jobs import expand, forecast, making, plan, read
from sdcli.models import registry
from sdcli.planning import resolve
from sdcli.recipe import recipe
from sdcli.terminal import streams

_JOBS = "The jobs"


@dataclass(frozen=True)
class BatchOutput:
    """Where the pictures of a batch go, and what is said of them."""

    directory: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="DIR", rich_help_panel=options.OUTPUT,
            help="Made where it is missing.", show_default="here",
        ),
    ] = None  # fmt: skip
    force: options.Force = False
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=options.OUTPUT,
            help="The plan of --dry-run as one JSON object; a batch's lines are JSON anyway.",
            show_default=False,
        ),
    ] = False
    quiet: options.Quiet = False
    strict: options.Strict = False
    dry_run: options.DryRun = False
    debug: options.Debug = False


@options.expand
def batch(
    jobs: Annotated[
        str,
        typer.Argument(
            metavar="JOBS",
            help="A file: JSONL, CSV with a header, or a prompt a line; - for stdin.",
            show_default=False,
        ),
    ],
    *,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(read.FORMATS), rich_help_panel=_JOBS, show_default="by suffix or first line"
        ),
    ] = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix",
            metavar="KEY=V1,V2",
            rich_help_panel=_JOBS,
            show_default=False,
            help="Each job with each of these values; given again, with every combination.",
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", rich_help_panel=_JOBS, help="Stop at a failed job.", show_default=False)
    ] = False,
    output: BatchOutput,
    picture: options.Picture,
    execution: options.Execution,
) -> None:
    """Make the pictures of a file of jobs, and print one line of JSON for each.

    sdcli batch jobs.jsonl -o out/ | jq -r .path

    printf 'a fox\\na {red|blue} owl\\n' | sdcli batch - -o out/

    sdcli batch prompts.txt --matrix seed=1,2 --matrix scheduler=ddim,euler

    A job's keys are the long options with underscores (prompt, seed, guidance_scale …), and two more:

    id, which its line repeats, and output, a name in DIR. The options here fill what a job leaves out.

    Run again, after whatever ended it, the same command makes only what is missing.
    """
    given = options.given(picture, execution) | {"model": config.model(picture.model)}
    for key, value in given.items():
        recipe.check_value(key, value)
    resolve.settings(registry.find(given["model"]), given, None)  # whatever is wrong there is no job's fault
    asked = expand.multiply(read.read(_bytes_of(jobs), jobs, format), _axes(matrix or [], given))
    planned = plan.plan(asked, given, strict=output.strict)
    if not planned:
        streams.warn(f"there are no jobs in {'stdin' if jobs == '-' else jobs}")
    order = making.Batch(
        planned, _directory(output.directory), output.force, fail_fast, output.quiet, output.strict, output.debug
    )
    if output.dry_run:
        _say_forecast(order, json=output.json)
    else:
        making.deliver(order)


def _say_forecast(order: making.Batch, *, json: bool) -> None:
    """Print what a batch would do. Raises JobsFailed where jobs of it cannot be made."""
    said = forecast.forecast(order)
    print(streams.to_json(said) if json else "\n".join(forecast.lines(said)))
    if said["failed"]:
        raise JobsFailed(f"{said['failed']} of {len(said['jobs'])} jobs would fail", "their lines say why")


def _axes(matrix: list[str], given: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    axes = expand.parse_matrix(matrix)
    for key, _ in axes:
        if key in given and key != "model":
            raise UsageError(f"--matrix varies {key}, and an option sets it", f"leave out --{key.replace('_', '-')}")
    return axes


def _directory(given: str | None) -> str:
    """Where the pictures go: `given`, which is made if need be, or the directory that the user's settings name."""
    said = config.general("output", given, ".")
    output, named = str(said.value), "-o" if given is not None else f"{said.place}: output"
    if not output or "\0" in output or (Path(output).exists() and not Path(output).is_dir()):
        raise UsageError(
            f"{named} {output!r} is no directory", "a batch writes into a directory, which it makes if need be"
        )
    if given is None and not (output.endswith("/") or Path(output).is_dir()):
        raise UsageError(
            f"{named} {output!r} names single pictures, and a batch takes a directory", "give it one with -o"
        )
    return output


def _bytes_of(jobs: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if jobs == "-" else Path(jobs).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {jobs}: {reason}", "give a file of jobs, or - for stdin") from error
