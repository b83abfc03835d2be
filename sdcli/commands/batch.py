"""`sdcli batch`: make many pictures from a file of jobs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli import config
from sdcli.commands import completion, groups, options, picture_options
from sdcli.commands.sheet import Html
from sdcli.errors import InputError, JobsFailed, UsageError
from sdcli.files import outputs
from sdcli.jobs import expand, forecast, job, making, plan, read
from sdcli.jobs.ending import Ending
from sdcli.jobs.job import Fault, Job
from sdcli.making.sheets import writing
from sdcli.models import registry
from sdcli.planning import resolve
from sdcli.recipe import recipe
from sdcli.terminal import streams

if TYPE_CHECKING:
    from sdcli.making.cluster.start import Cluster

_JOBS = "Jobs"


@dataclass(frozen=True)
class BatchOutput:
    """Options of a batch's output."""

    directory: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="DIR", rich_help_panel=options.OUTPUT,
            help="The directory for the pictures; it is created if needed.", show_default="this directory",
        ),
    ] = None  # fmt: skip
    force: options.Force = False
    json: Annotated[
        int,
        typer.Option(
            "--json", count=True, metavar="[=full]", rich_help_panel=options.OUTPUT, show_default=False,
            help="Print JSON on a terminal too, with =full the whole recipe of each job; the result of --dry-run is "
            "one object.",
        ),
    ] = 0  # fmt: skip
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet", metavar="FILE", rich_help_panel=options.OUTPUT,
            help="At the end, write a sheet of the batch's pictures to a file.png or file.html; see sdcli sheet. An "
            "older sheet is replaced.",
        ),
    ] = None  # fmt: skip
    html: Html = False
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify", metavar="COMMAND", rich_help_panel=options.OUTPUT,
            help="Run a shell command at the end, also after errors and Ctrl-C, with BATCH_STATUS, BATCH_JOBS, "
            "BATCH_DONE, BATCH_CACHED, BATCH_FAILED, BATCH_LEFT, BATCH_SECONDS, BATCH_DIRECTORY and BATCH_SHEET.",
        ),
    ] = None  # fmt: skip
    quiet: options.Quiet = False
    strict: options.Strict = False
    dry_run: options.DryRun = False
    debug: options.Debug = False


@groups.expand
def batch(
    jobs: Annotated[
        str | None,
        typer.Argument(
            metavar="JOBS",
            help="A file of jobs: JSONL, CSV or TSV with a header, or one prompt per line; - reads stdin.",
            show_default=False,
        ),
    ] = None,
    *,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(read.FORMATS),
            autocompletion=completion.of(*read.FORMATS),
            rich_help_panel=_JOBS,
            help="The format of JOBS.",
            show_default="from the suffix or the first line",
        ),
    ] = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix",
            metavar="KEY=V1,V2",
            autocompletion=completion.matrix,
            rich_help_panel=_JOBS,
            show_default=False,
            help="Run each job once per value; seed=1..20 is a range. If repeated, once per combination of "
            "values. With prompt=, JOBS can be omitted.",
        ),
    ] = None,
    num_images: Annotated[
        int,
        typer.Option(
            "--num-images",
            "-n",
            metavar="N",
            min=1,
            max=job.MAX_IMAGES,
            rich_help_panel=_JOBS,
            help="Pictures per job that has no num_images; picture i has the seed SEED+i.",
        ),
    ] = 1,
    comments: Annotated[
        bool,
        typer.Option("--comments", rich_help_panel=_JOBS, help="Skip lines that start with #.", show_default=False),
    ] = False,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", rich_help_panel=_JOBS, help="Stop at the first failed job.", show_default=False),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            rich_help_panel=options.EXECUTION,
            show_default=False,
            help="Make the pictures on the machines of a Ray cluster: its HOST:PORT, or auto for the one that runs on "
            "this machine.",
        ),
    ] = None,
    ship_models: Annotated[
        bool,
        typer.Option(
            "--ship-models",
            rich_help_panel=options.EXECUTION,
            show_default=False,
            help="Copy models to machines of the cluster that lack them.",
        ),
    ] = False,
    picture: picture_options.Picture,
    output: BatchOutput,
    execution: options.Execution,
) -> None:
    """Generate the pictures of a file of jobs.

    Prints one JSON object per job. The keys of a job are the long options with underscores (prompt, seed,
    guidance_scale and so on), 'num_images', 'id', which is repeated in the output, and 'output', a file name in DIR.
    Options given here are the defaults of all jobs. Run the same command again after an interruption, and it makes only
    the pictures that are missing.

        sdcli batch jobs.jsonl -o out/ | jq -r .path
        printf 'a fox\\na {red|blue} owl\\n' | sdcli batch - -o out/
        sdcli batch prompts.txt --matrix seed=1..4 --matrix scheduler=ddim,euler --sheet grid.png
        sdcli batch jobs.jsonl -o out/ --cluster auto --threads 8
    """
    given = groups.given(picture, execution) | {"model": config.model(picture.model)}
    for key, value in given.items():
        if not job.is_random(key, value):
            recipe.check_value(key, value)
    resolve.settings(registry.find(given["model"]), given, None)  # an error here concerns the options, not a job
    axes = _axes(matrix or [], given)
    listed = _listed(jobs, axes, format=format, comments=comments, strict=output.strict)
    expand.check_number(len(listed), axes)
    planned = plan.plan(expand.multiply(listed, axes), given, strict=output.strict, num_images=num_images)
    order = making.Batch(
        planned, _directory(output.directory), output.force, fail_fast, output.quiet, output.strict, output.debug,
        output.json, _cluster(cluster, ship_models),
    )  # fmt: skip
    if output.dry_run:
        _say_forecast(order, json=bool(output.json))
    else:
        making.deliver(order, Ending(_sheet(output, order.directory), output.notify, output.quiet))


def _sheet(output: BatchOutput, directory: str) -> writing.Sheet | None:
    """The sheet to write at the end. Raises the errors of one that could not be written."""
    if output.sheet is None:
        if output.html:
            raise UsageError("--html has no effect without --sheet", "add --sheet grid.png")
        return None
    if output.sheet == writing.STDOUT:
        raise UsageError("--sheet - is not a file, and stdout has the jobs' lines", "give a file.png or file.html")
    files = writing.files_of(output.sheet, html=output.html, option="--sheet")
    sheet = writing.Sheet(files, force=output.force, renew=True, option="--sheet")
    if Path(output.sheet).parent == Path(directory) and not Path(directory).exists():
        outputs.check_directory(Path(directory), make=True)  # it is created when the batch begins
    else:
        writing.check(sheet)
    return sheet


def _cluster(address: str | None, ship: bool) -> Cluster | None:
    """Return the cluster to use. Raises UsageError."""
    if address is None and ship:
        raise UsageError("--ship-models is given without --cluster", "give the cluster too: --cluster auto")
    if address == "":
        raise UsageError("--cluster is empty", "give it HOST:PORT, or auto")
    if address is None:
        return None
    from sdcli.making.cluster.start import Cluster

    return Cluster(address, ship)


def _say_forecast(order: making.Batch, *, json: bool) -> None:
    """Print what a batch would do. Raises JobsFailed if some jobs cannot be made."""
    recorded = forecast.forecast(order)
    for line in [streams.to_json(recorded)] if json else forecast.lines(recorded):
        streams.say(line)
    if recorded["failed"]:
        raise JobsFailed(
            f"{recorded['failed']} of {len(recorded['jobs'])} jobs would fail", "see the error of each failed job"
        )


def _listed(
    jobs: str | None, axes: list[tuple[str, list[Any]]], *, format: str | None, comments: bool, strict: bool
) -> list[Job | Fault]:
    """Read the jobs, or make an empty one if `--matrix` has the prompts."""
    supplied = [key for key, _ in axes]
    if jobs is None:
        if {"prompt", "label"} & {*supplied}:
            return [Job(1, {})]
        raise UsageError("JOBS is missing", "give a file of jobs, - for stdin, or --matrix prompt=…")
    found = read.read(
        _bytes_of(jobs), jobs, format, comments=comments, supplied=supplied, warn=_refuse if strict else streams.warn
    )
    if not found and jobs == "-":
        raise InputError("there are no jobs on stdin", "pipe jobs to it, or give a file")
    if not found:
        streams.warn(f"there are no jobs in {jobs}")
    return found


def _refuse(warning: str) -> None:
    raise UsageError(warning, "or omit --strict")


def _axes(matrix: list[str], given: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    axes = expand.parse_matrix(matrix)
    for key, _ in axes:
        if key in given and key != "model":
            raise UsageError(f"{key} is set by --matrix and by an option", f"omit --{key.replace('_', '-')}")
    return axes


def _directory(given: str | None) -> str:
    """The directory for the pictures: `given`, or the one in the user's settings."""
    recorded = config.general("output", given, ".")
    output, named = str(recorded.value), "-o" if given is not None else f"{recorded.place}: output"
    if not output or "\0" in output or (Path(output).exists() and not Path(output).is_dir()):
        raise UsageError(
            f"{named} {output!r} is not a directory",
            "give the directory to write the pictures to; it is created if needed",
        )
    if given is None and not (output.endswith("/") or Path(output).is_dir()):
        raise UsageError(
            f"{named} {output!r} is a file name, and a batch needs a directory", "give a directory with -o"
        )
    return output


def _bytes_of(jobs: str) -> bytes:
    try:
        if jobs == "-":
            return sys.stdin.buffer.read(read.MAX_BYTES + 1)
        with Path(jobs).open("rb") as file:
            return file.read(read.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {jobs}: {reason}", "give a file of jobs, or - for stdin") from error
