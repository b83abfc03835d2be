"""Training as such: the loop, its checkpoints, its log. A checkpoint is whole or absent; a log is lines of JSON.

Knows nothing of what is trained.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.training import parallel

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a checkpoint beside its place, sync it, and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> State:
    """Read a checkpoint. Raises ModelNotFound or ModelCorrupt."""
    if not path.is_file():
        raise ModelNotFound(f"no checkpoint {path}", "train first, or name the folder that training wrote to")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelCorrupt(f"cannot read the checkpoint {path}: {error}", "remove it and train again") from error
    return state


def append_log(path: Path, entry: dict[str, object]) -> None:
    """Add one line of JSON to a log, and print it."""
    line = json.dumps(entry)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that a run can save itself and end between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Settings(Protocol):
    """What the loop must know of a run's settings."""

    @property
    def steps(self) -> int:
        """The step at which the run ends."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""


class Run(Protocol):
    """A run in memory. `step` and `seconds` count from its very start, over all its processes."""

    step: int
    seconds: float

    @property
    def settings(self) -> Settings:
        """Everything that determines the run."""

    def train_step(self) -> float:
        """One step; returns its loss."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this moment."""

    def report(self) -> dict[str, object]:
        """What the log says besides step, loss and time."""


def train(run: Run, folder: Path) -> Iterator[dict[str, object]]:
    """Train to the end or to a stop signal; saves and yields a log entry now and then, and at the end."""
    mark, losses, stopping = time.monotonic(), [], False
    with stop_requests() as stopped:
        while run.step < run.settings.steps and not stopping:
            losses.append(run.train_step())
            stopping = parallel.any_of(bool(stopped))
            if run.step % run.settings.save_every and run.step < run.settings.steps and not stopping:
                continue
            run.seconds += time.monotonic() - mark
            mark = time.monotonic()
            run.save(folder)
            loss = sum(losses) / len(losses)
            yield {"step": run.step, "loss": round(loss, 5), "seconds": round(run.seconds, 1), **run.report()}
            losses = []
