"""Makes the pictures of planned jobs, and prints a JSON line for each. The only module of `jobs` that loads models."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli.errors import (
    InvalidPicture,
    JobsFailed,
    NotDecoded,
    OutOfMemory,
    OutputError,
    OutputExists,
    SdcliError,
    ServerUnavailable,
)
from sdcli.files import names, outputs
from sdcli.files.inputs import NO_INPUTS
from sdcli.jobs import ledger
from sdcli.jobs.ending import NOTHING, Ending, Tally, at_the_end
from sdcli.jobs.interrupts import Interrupts
from sdcli.jobs.job import Fault, explain
from sdcli.jobs.ledger import Ledger
from sdcli.jobs.lines import failed_line_of, line_of, path_in
from sdcli.jobs.plan import Planned
from sdcli.making.deliver import done_line, keep_latents, prepare_libraries
from sdcli.making.deliver import maker as choose_maker
from sdcli.making.maker import Maker, Task, group_of
from sdcli.making.picture import Picture
from sdcli.planning.resolve import inputs_of
from sdcli.terminal import display, signals, streams
from sdcli.terminal.display import OnJobs

if TYPE_CHECKING:
    from sdcli.diffusion.denoise import Step
    from sdcli.making.cluster.start import Cluster


@dataclass(frozen=True)
class Batch:
    """Jobs to make, and how to save their pictures. `directory` is as the user wrote it."""

    jobs: Sequence[Planned | Fault]
    directory: str
    force: bool = False
    fail_fast: bool = False
    quiet: bool = False
    strict: bool = False
    debug: bool = False
    json: int = 0
    """Whether lines are JSON on a terminal too, and whether they have whole recipes; see `request.FULL`."""
    cluster: Cluster | None = None
    """Where pictures are made, if not in this process or the warm one."""


@dataclass
class _Run:
    """A running batch: its output, ledger, progress and tally."""

    batch: Batch
    out: BinaryIO
    book: Ledger
    tally: Tally = field(default_factory=Tally)
    show: OnJobs = lambda done, doing, about, failed: None
    done: int = 0
    failed: int = 0


def deliver(batch: Batch, ending: Ending = NOTHING) -> None:
    """Make the missing pictures of `batch`, and print one JSON line per job when its picture is safely on disk.

    Invalid jobs come first, then those whose pictures exist, then the others, grouped by model. A failed job does not
    stop the others, unless `fail_fast`. SIGINT finishes the current picture; a second one cancels it. Then `ending` is
    done.

    Raises JobsFailed at the end if a job failed, and OutputError immediately if nothing more can be written.
    """
    tally = Tally([job.id for job in batch.jobs])
    with (
        at_the_end(ending, tally, batch.directory),
        ledger.opened(Path(batch.directory)) as book,
        streams.results() as out,
    ):
        run = _Run(batch, out, book, tally)
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
            try:
                with (
                    _maker(batch, missing) as maker,
                    display.job_progress(len(missing), quiet=batch.quiet) as run.show,
                ):
                    _make_all(run, maker, groups_of(missing))
            except KeyboardInterrupt:
                kept = len(missing) - sum(ledger.finished(book, job.key) is None for job in missing)
                streams.note(f"{kept} of {len(missing)} pictures were made; the same command makes the others")
                raise
        if run.failed:
            raise _jobs_failed(run)


def groups_of(jobs: Sequence[Planned]) -> list[list[Planned]]:
    """Group the jobs by model and execution, in order."""
    return _groups(jobs, _model_of)


def chunks_of(group: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Yield the jobs of one U-Net call: a single one or, with a batch size, those that only differ in the seed."""
    if all(job.recipe.execution.batch_size == 1 for job in group):
        yield from ([job] for job in group)
        return
    for alike in _groups(group, lambda job: job.recipe.replace(seed=0)):
        size = alike[0].recipe.execution.batch_size
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def flatness_fault(line: Mapping[str, Any]) -> InvalidPicture | None:
    """Return the error for a flat picture with `--strict`."""
    flat = line.get("flat")
    return InvalidPicture(flat, "try another seed, prompt or scheduler") if isinstance(flat, str) else None


def _groups(jobs: Sequence[Planned], key: Callable[[Planned], Any]) -> list[list[Planned]]:
    groups: dict[Any, list[Planned]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return list(groups.values())


def _model_of(job: Planned) -> Hashable:
    return group_of(job.weights, job.recipe)


@contextmanager
def _maker(batch: Batch, missing: Sequence[Planned]) -> Iterator[Maker]:
    """Yield the maker of a batch: a cluster, or the maker of every command."""
    if batch.cluster is None:
        yield choose_maker()
        return
    from sdcli.making.cluster.start import start_cluster

    maker = start_cluster(batch.cluster, [(job.weights, job.recipe) for job in missing])
    try:
        yield maker
    finally:
        maker.close()


def _make_all(run: _Run, maker: Maker, groups: Sequence[Sequence[Planned]]) -> None:
    """Make the jobs of `groups`, as many at once as the maker can.

    A call that fails for several jobs is repeated for each one. After SIGINT no call is started.
    """
    left: dict[Hashable, deque[list[Planned]]] = {_model_of(group[0]): deque(chunks_of(group)) for group in groups}
    ready: set[Hashable] = set()
    ended: SimpleQueue[tuple[list[Planned], Future[list[Picture]]]] = SimpleQueue()
    under_way = 0

    def settle(chunk: list[Planned], future: Future[list[Picture]]) -> None:
        again = _settle(run, chunk, future)
        left[_model_of(chunk[0])].extendleft([job] for job in reversed(again))
        run.done += len(chunk) - len(again)

    with Interrupts(several=maker.capacity > 1) as interrupts:
        latest = None
        while True:  # a worker gets its next call before the pictures of its last one are saved
            while under_way < maker.capacity and not interrupts.asked and any(left.values()):
                group = maker.choose({each: len(chunks) for each, chunks in left.items() if chunks})
                if group not in ready:
                    ready.add(group)
                    with interrupts.at_once():
                        _load(run, maker, left[group])
                    continue
                chunk = left[group].popleft()
                future = _submit(run, maker, chunk)
                if future.done():
                    settle(chunk, future)
                    continue
                under_way += 1
                future.add_done_callback(partial(_put, ended, chunk))
            if latest is not None:
                settle(*latest)
                run.show(run.done, "denoising", "", run.failed)
                latest = None
            elif under_way:
                latest = ended.get()
                under_way -= 1
            else:
                return


def _put(ended: SimpleQueue[Any], chunk: list[Planned], future: Future[list[Picture]]) -> None:
    ended.put((chunk, future))


def _load(run: _Run, maker: Maker, chunks: deque[list[Planned]]) -> None:
    """Load the model of `chunks`; if that fails, all of them fail, and are removed."""
    group = [job for chunk in chunks for job in chunk]
    run.show(run.done, "loading", group[0].model.entry.name, run.failed)
    try:
        maker.load(group[0].weights, [job.recipe for job in group])
    except Exception as error:  # noqa: BLE001  whatever it is, the other models may load
        signals.raise_again()
        chunks.clear()
        for job in group:
            _fail(run, job, _words(run, error))
        run.done += len(group)


def _submit(run: _Run, maker: Maker, chunk: list[Planned]) -> Future[list[Picture]]:
    """Start making the pictures of one U-Net call. The inputs of its recipes are read now, or by the maker."""
    about = chunk[0].recipe.condition.words

    def on_step(step: Step) -> None:
        activity = "decoding" if step.index == step.total else "denoising"
        run.show(run.done + len(chunk) * step.index / step.total, activity, about, run.failed)

    first, recipes = chunk[0], [job.recipe.replace(batch_size=len(chunk)) for job in chunk]
    try:
        inputs = NO_INPUTS
        if not maker.reads_inputs:
            recipe, facts = first.recipe, first.model.facts
            inputs = inputs_of(recipe, facts, first.weights)
        return maker.submit(Task(first.weights, recipes, inputs), on_step)
    except Exception as error:  # noqa: BLE001  one job's failure, even by a bug, is not the others'
        future: Future[list[Picture]] = Future()
        future.set_exception(error)
        return future


def _settle(run: _Run, chunk: Sequence[Planned], future: Future[list[Picture]]) -> Sequence[Planned]:
    """Save the pictures of a call, or fail its jobs; returns those that are to be tried again, one by one."""
    try:
        pictures = future.result()
    except ServerUnavailable as error:  # affects all jobs
        for job in chunk:
            _print(run, failed_line_of(job, error.message, run.batch.json))
        raise
    except Exception as error:  # noqa: BLE001  one job's failure, even by a bug, is not the others'
        signals.raise_again()
        if isinstance(error, NotDecoded):
            keep_latents(error, [job.recipe for job in chunk], outputs.directory_of(f"{run.batch.directory}/"))
        elif len(chunk) > 1:
            return chunk
        for job in chunk:
            _fail(run, job, _words(run, error))
        return ()
    for job, picture in zip(chunk, pictures, strict=True):
        line = done_line(picture, "", job.warnings) | {"flat": picture.flat, "recipe": picture.recipe.to_dict()}
        fault = flatness_fault(line) if run.batch.strict else None
        if fault is not None:
            _fail(run, job, explain(fault))
        else:
            _save(run, job, line, picture.png)
    return ()


def _save(run: _Run, job: Planned, line: Mapping[str, Any], data: bytes) -> None:
    """Write a picture and print its line. An existing file fails the job, and a full disk ends the batch."""
    try:
        name = _write(run, job, line, data)
    except OutputExists as error:
        _fail(run, job, _words(run, error))
        return
    except OutputError as error:
        _print(run, failed_line_of(job, error.message, run.batch.json))
        raise
    for warning in line["warnings"]:
        streams.warn(f"line {job.line}: {warning}")
    _print(run, line_of(job, {**line, "path": path_in(run.batch.directory, name)}, run.batch.json))


def _write(run: _Run, job: Planned, line: Mapping[str, Any], data: bytes) -> str:
    """Write the picture with the requested name, or the first free one, after recording it in the ledger."""
    directory = run.book.directory
    default = names.default_name(job.recipe, ".png", job.varies)
    for name in [job.name] if job.name else names.numbered(default, ".png"):
        path = directory / name
        if os.path.lexists(path) and not (job.name and run.batch.force):
            if job.name:
                raise OutputExists(
                    f"{path_in(run.batch.directory, name)} already exists", "choose another output, or use --force"
                )
            continue
        try:
            ledger.make_folder(run.book, name)
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputExists(f"{path.parent} is a file, not a directory", "choose another output") from error
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
        recorded = {**line, "status": "cached", "path": path_in(run.batch.directory, name)}
        _print(run, line_of(job, recorded, run.batch.json))


def _print(run: _Run, line: Mapping[str, Any]) -> None:
    """Count a job's line, and print it: JSON, or its status and path for a person at a terminal, who sees errors on
    stderr.
    """
    run.tally.count(line)
    if run.batch.json or not run.out.isatty():
        streams.write_line(run.out, streams.to_json(line))
    elif line["path"] is not None:
        display.erase_bar()
        streams.write_line(run.out, f"{line['status']:<7} {line['path']}")


def _fail(run: _Run, job: Planned | Fault, message: str) -> None:
    """Print a failed line, and the error on stderr; raises JobsFailed with `fail_fast`."""
    line = failed_line_of(job, message, run.batch.json)
    streams.complain(line["error"])
    _print(run, line)
    run.failed += 1
    if run.batch.fail_fast:
        raise _jobs_failed(run)


def _words(run: _Run, error: Exception) -> str:
    if run.batch.debug:
        streams.show_traceback(error)
    if isinstance(error, MemoryError):
        error = OutOfMemory("out of memory", "make a smaller picture, or choose dtype bfloat16")
    if isinstance(error, SdcliError):
        return explain(error)
    return f"{type(error).__name__}: {error} (this is a bug in sdcli; --debug shows the traceback)"


def _jobs_failed(run: _Run) -> JobsFailed:
    if run.batch.fail_fast:
        return JobsFailed("a job failed, and --fail-fast was given", "fix it and run the same command again")
    return JobsFailed(
        f"{run.failed} of {len(run.batch.jobs)} jobs failed",
        "see the error of each; the same command tries only these jobs again",
    )
