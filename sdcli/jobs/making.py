"""Planned jobs become pictures, and one line of JSON each. The one part of `jobs` that loads models."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli.errors import (
    InvalidPicture,
    JobsFailed,
    OutOfMemory,
    OutputError,
    OutputExists,
    SdcliError,
    ServerUnavailable,
)
from sdcli.files import outputs
from sdcli.jobs import ledger
from sdcli.jobs.ledger import Ledger
from sdcli.jobs.lines import failed_line_of, line_of, path_in
from sdcli.jobs.plan import Planned
from sdcli.jobs.read import Fault, explain
from sdcli.making.deliver import done_line, prepare_libraries
from sdcli.making.deliver import maker as choose_maker
from sdcli.making.maker import Maker, Task
from sdcli.planning.resolve import read_inputs
from sdcli.terminal import display, streams

if TYPE_CHECKING:
    from sdcli.diffusion.denoise import Step


@dataclass(frozen=True)
class Batch:
    """Jobs to make, and where and how to hand over their pictures. `directory` is as the user wrote it."""

    jobs: Sequence[Planned | Fault]
    directory: str
    force: bool = False
    fail_fast: bool = False
    quiet: bool = False
    strict: bool = False
    debug: bool = False


@dataclass
class _Run:
    """A batch on its way: where its lines go, its ledger, and how far it is. `show` takes jobs done and a word."""

    batch: Batch
    out: BinaryIO
    book: Ledger
    show: Callable[[float, str], None] = lambda done, doing: None
    done: int = 0
    failed: int = 0


def deliver(batch: Batch) -> None:
    """Make what is missing of `batch`; one line of JSON on stdout for each job, when its picture is safely on disk.

    First come the jobs that cannot be made, then those whose pictures are there, then the others, model by model. A
    job that fails is one failed line and stops nothing, unless `fail_fast`. SIGINT lets the picture in hand be
    finished; a second one does not.

    Raises JobsFailed where a job failed, at the end; OutputError, at once, where nothing more can be written.
    """
    with ledger.opened(Path(batch.directory)) as book, streams.results() as out:
        run = _Run(batch, out, book)
        for fault in (job for job in batch.jobs if isinstance(job, Fault)):
            _fail(run, fault, fault.message)
        missing = []
        for job in (job for job in batch.jobs if isinstance(job, Planned)):
            found = ledger.finished(book, job.key)
            if found is None:
                missing.append(job)
            else:
                _say_cached(run, job, *found)
        if missing:
            prepare_libraries()
            maker = choose_maker()
            with display.job_progress(len(missing), quiet=batch.quiet) as run.show:
                for group in groups_of(missing):
                    _make_group(run, maker, group)
        if run.failed:
            raise _jobs_failed(run)


def groups_of(jobs: Sequence[Planned]) -> list[list[Planned]]:
    """The jobs of one model and its execution, together; groups and their members in the order they came in."""
    return _groups(jobs, _model_of)


def chunks_of(group: Sequence[Planned]) -> Iterator[list[Planned]]:
    """The jobs of one U-Net call: a single one, or, with a batch size, those that differ in nothing but the seed."""
    if all(job.recipe.execution.batch_size == 1 for job in group):
        yield from ([job] for job in group)
        return
    for alike in _groups(group, lambda job: job.recipe.replace(seed=0)):
        size = alike[0].recipe.execution.batch_size
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def flatness_fault(line: Mapping[str, Any]) -> InvalidPicture | None:
    """What `--strict` makes of a picture that is flat, by what the ledger says of it."""
    flat = line.get("flat")
    return InvalidPicture(flat, "try another seed, prompt or scheduler") if isinstance(flat, str) else None


def _groups(jobs: Sequence[Planned], key: Callable[[Planned], Any]) -> list[list[Planned]]:
    groups: dict[Any, list[Planned]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return list(groups.values())


def _model_of(job: Planned) -> Any:
    execution = job.recipe.execution
    return job.weights, job.recipe.model, execution.device, execution.dtype


def _make_group(run: _Run, maker: Maker, group: Sequence[Planned]) -> None:
    """Have the model of `group` and make its jobs; where it cannot be loaded, each of them has failed."""
    run.show(run.done, f"loading {group[0].model.entry.name}")
    try:
        maker.load(group[0].weights, group[0].recipe)
    except Exception as error:  # noqa: BLE001  whatever it is, the other models may load
        for job in group:
            _fail(run, job, _words(run, error))
        run.done += len(group)
        return
    for chunk in chunks_of(group):
        with _interrupts_deferred():
            _make(run, maker, chunk)
        run.done += len(chunk)


def _task(chunk: Sequence[Planned]) -> Task:
    """What makes the pictures of one call, with the inputs, read now, that all of its recipes name."""
    first, recipes = chunk[0], [job.recipe.replace(batch_size=len(chunk)) for job in chunk]
    layout, facts = first.recipe.layout, first.model.facts
    return Task(first.weights, recipes, read_inputs(first.recipe.initial, layout, facts, first.weights))


def _make(run: _Run, maker: Maker, chunk: Sequence[Planned]) -> None:
    """The pictures of one U-Net call. Where a call for several fails, each is tried by itself, and recorded so."""

    def on_step(step: Step) -> None:
        run.show(
            run.done + len(chunk) * step.index / step.total, "decoding" if step.index == step.total else "denoising"
        )

    try:
        pictures = maker.submit(_task(chunk), on_step).result()
    except ServerUnavailable as error:  # no job's failure, and every job's
        for job in chunk:
            _print(run, failed_line_of(job, error.message))
        raise
    except Exception as error:  # noqa: BLE001  one job's failure, even by a bug, is not the others'
        if len(chunk) > 1:
            for job in chunk:
                _make(run, maker, [job])
        else:
            _fail(run, chunk[0], _words(run, error))
        return
    for job, picture in zip(chunk, pictures, strict=True):
        line = done_line(picture, "", job.warnings) | {"flat": picture.flat}
        fault = flatness_fault(line) if run.batch.strict else None
        if fault is not None:
            _fail(run, job, explain(fault))
        else:
            _save(run, job, line, picture.png)


def _save(run: _Run, job: Planned, line: Mapping[str, Any], data: bytes) -> None:
    """Bring a picture to disk, and say so. A name that is taken is the job's failure, a full disk the batch's."""
    try:
        name = _write(run, job, line, data)
    except OutputExists as error:
        _fail(run, job, _words(run, error))
        return
    except OutputError as error:
        _print(run, failed_line_of(job, error.message))
        raise
    for warning in line["warnings"]:
        streams.warn(f"line {job.line}: {warning}")
    _print(run, line_of(job, {**line, "path": path_in(run.batch.directory, name)}))


def _write(run: _Run, job: Planned, line: Mapping[str, Any], data: bytes) -> str:
    """Write the picture under the name asked for, else under the first that is free; the ledger knows it before."""
    directory = run.book.directory
    for name in [job.name] if job.name else outputs.numbered(outputs.default_name(job.recipe), ".png"):
        path = directory / name
        if os.path.lexists(path) and not (job.name and run.batch.force):
            if job.name:
                raise OutputExists(
                    f"{path_in(run.batch.directory, name)} exists already", "choose another output, or give --force"
                )
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputExists(f"{path.parent} is a file, and no directory", "choose another output") from error
        except OSError as error:
            raise outputs.cannot_write(name, path.parent, error) from error
        ledger.record(run.book, job.key, name, {key: value for key, value in line.items() if key != "path"})
        destination = outputs.Destination(str(path), force=bool(job.name) and run.batch.force)
        try:
            outputs.write(destination, data, staging=ledger.STAGING)
        except OutputExists:
            if job.name:
                raise
        else:
            return name
    raise AssertionError("names do not run out")


def _say_cached(run: _Run, job: Planned, name: str, line: Mapping[str, Any]) -> None:
    fault = flatness_fault(line) if run.batch.strict else None
    if fault is not None:
        _fail(run, job, explain(fault))
    else:
        _print(run, line_of(job, {**line, "status": "cached", "path": path_in(run.batch.directory, name)}))


def _print(run: _Run, line: Mapping[str, Any]) -> None:
    streams.write_line(run.out, streams.to_json(line))


def _fail(run: _Run, job: Planned | Fault, message: str) -> None:
    """One failed line, and one on stderr; raises JobsFailed where that is to be the end."""
    line = failed_line_of(job, message)
    streams.complain(line["error"])
    _print(run, line)
    run.failed += 1
    if run.batch.fail_fast:
        raise _jobs_failed(run)


def _words(run: _Run, error: Exception) -> str:
    if run.batch.debug:
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        error = OutOfMemory("out of memory", "make a smaller picture, or choose dtype bfloat16")
    if isinstance(error, SdcliError):
        return explain(error)
    return f"{type(error).__name__}: {error} (this is a bug in sdcli; --debug shows the traceback)"


def _jobs_failed(run: _Run) -> JobsFailed:
    if run.batch.fail_fast:
        return JobsFailed("a job failed, and --fail-fast stops there", "mend it and run the same command again")
    return JobsFailed(
        f"{run.failed} of {len(run.batch.jobs)} jobs failed",
        "their lines say why; run the same command again, and only they are tried",
    )


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let SIGINT wait until the body has ended; a second one raises KeyboardInterrupt at once."""
    asked = False
    told = display.before_a_line() + b"interrupted: finishing the picture in hand; once more to stop at once\n"

    def defer(signal_number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with suppress(OSError):  # nobody reads stderr any more: Ctrl-C has ended the other end of the pipe too
            os.write(2, told)  # print may be at work

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
