"""The end of a batch, however it ends: a sheet of its pictures, and a command that is told how many there are."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import ExitStatus, SdcliError
from sdcli.making.sheets import writing
from sdcli.terminal import display, signals, streams


@dataclass
class Tally:
    """What has become of the jobs of a batch so far. `ids` are the jobs in order, and `paths` pictures by job."""

    ids: Sequence[str | int | None] = ()
    done: int = 0
    cached: int = 0
    failed: int = 0
    paths: dict[str | int | None, str] = field(default_factory=dict)

    def count(self, line: Mapping[str, Any]) -> None:
        """Count the line of a job."""
        status = str(line["status"])
        setattr(self, status, getattr(self, status) + 1)
        if line["path"] is not None:
            self.paths[line["id"]] = line["path"]

    @property
    def left(self) -> int:
        """The number of jobs that have no line yet."""
        return len(self.ids) - self.done - self.cached - self.failed

    @property
    def pictures(self) -> list[str]:
        """The paths of the pictures that are there, in the order of the jobs."""
        return [self.paths[each] for each in dict.fromkeys(self.ids) if each in self.paths]


@dataclass(frozen=True)
class Ending:
    """What to do at the end: write a sheet, and run a command of the shell."""

    sheet: writing.Sheet | None = None
    command: str | None = None
    quiet: bool = False


NOTHING = Ending()


@contextmanager
def at_the_end(ending: Ending, tally: Tally, directory: str) -> Iterator[None]:
    """Do what `ending` says after the block, also if it raises; a closed stdout and SIGTERM leave no time for a sheet.

    Raises the error of a sheet that cannot be written, unless the block has raised one.
    """
    started = time.monotonic()
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        try:
            if ending.sheet is not None and not isinstance(failure, BrokenPipeError | signals.Terminated):
                _write(ending, tally, failure)
        except SdcliError as error:
            failure = failure or error
            raise
        finally:
            if ending.command is not None:
                _run(ending, _variables(ending, tally, directory, failure, time.monotonic() - started))


def _write(ending: Ending, tally: Tally, failure: BaseException | None) -> None:
    """Write the sheet. Its error is printed if there is another one that ends the command."""
    assert ending.sheet is not None
    pictures = tally.pictures
    if not pictures:
        if failure is None or tally.failed:
            streams.note("there are no pictures for a sheet")
        return
    try:
        with display.counting("making the sheet", len(pictures), quiet=ending.quiet) as count:
            written = writing.write(ending.sheet, pictures, count)
    except SdcliError as error:
        if failure is None:
            raise
        streams.complain(error.message, error.hint)
        return
    writing.report(written)
    streams.note(f"the sheet of {written.pictures} pictures is {' and '.join(written.files)}")


def _variables(
    ending: Ending, tally: Tally, directory: str, failure: BaseException | None, seconds: float
) -> dict[str, str]:
    """What the command is told, as variables of its environment."""
    values = {
        "STATUS": _status(failure),
        "JOBS": len(tally.ids),
        "DONE": tally.done,
        "CACHED": tally.cached,
        "FAILED": tally.failed,
        "LEFT": tally.left,
        "SECONDS": round(seconds),
        "DIRECTORY": directory,
        "SHEET": ending.sheet.files[0] if ending.sheet is not None and tally.paths else "",
    }
    return {f"BATCH_{name}": str(value) for name, value in values.items()}


def _status(failure: BaseException | None) -> int:
    """The exit status that this failure leads to."""
    match failure:
        case None:
            return ExitStatus.OK
        case SdcliError():
            return failure.exit_status
        case KeyboardInterrupt():
            return ExitStatus.INTERRUPTED
        case signals.Terminated():
            return ExitStatus.TERMINATED
    return ExitStatus.BUG


def _run(ending: Ending, variables: Mapping[str, str]) -> None:
    """Run the command. Its output goes to stderr, and its failure is a warning."""
    assert ending.command is not None
    try:
        done = subprocess.run(
            ending.command, shell=True, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=2, check=False
        )
    except OSError as error:
        streams.warn(f"--notify: the command cannot be run: {error.strerror}")
        return
    if done.returncode:
        streams.warn(f"--notify: the command failed with the exit status {done.returncode}")
