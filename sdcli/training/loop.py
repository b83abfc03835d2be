"""The loop that all stages train in: checkpoints, a log of lines of JSON, slices of time. Knows nothing of models.

Killed at any moment and started again, a run ends with the weights, and the log with the lines, of an unbroken one: all
randomness of a step comes from the seed and the number of the step, and lines after the checkpoint are taken out.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from sdcli.training import checkpoint
from sdcli.training.team import Team

Entry = dict[str, Any]
CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


class Settings(Protocol):
    """What the loop must know of a run's settings."""

    @property
    def steps(self) -> int:
        """The step at which the run ends."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def log_every(self) -> int:
        """Steps between lines of the log."""

    @property
    def sheet_every(self) -> int:
        """Steps between sheets of pictures, or 0."""


class Run(Protocol):
    """A run in memory. `step` counts from its very start."""

    step: int
    team: Team

    @property
    def settings(self) -> Settings:
        """Everything that determines the run."""

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Do what comes before the next step, and tell (done, in all) again and again: between two it can be left."""

    def train_step(self) -> float:
        """One step; returns its loss."""

    def keep(self, folder: Path) -> None:
        """Write what this process alone has, such as encoded pictures."""

    def state(self) -> checkpoint.State:
        """What all processes share at this moment."""

    def load_state(self, state: checkpoint.State) -> None:
        """Take what `state` gave."""

    def report(self) -> Entry:
        """What the log says besides step, loss and time."""

    def sheet(self, path: Path) -> None:
        """Write a sheet of pictures that shows how far the run is."""


@dataclass
class Watcher:
    """Told how a run goes on; the default looks away."""

    on_prepare: Callable[[int, int], None] = lambda done, total: None
    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_entry: Callable[[Entry], None] = lambda entry: None


@dataclass
class Stop:
    """Why a run is to stop before its end: a signal, or the end of its slice, a moment of `time.monotonic()`."""

    deadline: float | None = None
    received: list[int] = field(default_factory=list)

    def wanted(self, team: Team) -> bool:
        """Whether any of the processes is to stop; all get the same answer."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return team.any_of(late or bool(self.received))


@contextmanager
def stop_requests(deadline: float | None = None) -> Iterator[Stop]:
    """What SIGINT and SIGTERM ask for, so that a run can save itself and end between steps."""
    stop = Stop(deadline)

    def note(number: int, frame: FrameType | None) -> None:
        stop.received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class Progress:
    """What a checkpoint keeps beside the run: seconds spent, and the losses since the last line of the log."""

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def resume(run: Run, folder: Path) -> Progress:
    """Go on from the checkpoint in `folder`, if there is one."""
    if not (folder / CHECKPOINT).exists():
        return Progress()
    state = checkpoint.load(folder / CHECKPOINT)
    run.step = state["step"]
    run.load_state(state["run"])
    return Progress(state["seconds"], state["losses"])


def save(run: Run, folder: Path, progress: Progress) -> None:
    """Write the checkpoint of this moment; what all processes share is written by the first, after the rest."""
    run.keep(folder)
    run.team.wait()
    if run.team.leads:
        state = {"step": run.step, "seconds": progress.seconds, "losses": progress.losses, "run": run.state()}
        checkpoint.save(folder / CHECKPOINT, state)


def train(run: Run, folder: Path, stop: Stop, watcher: Watcher) -> bool:
    """Train to the end, or until it is to stop; says whether it is done. A checkpoint is left in either case."""
    progress = resume(run, folder)
    if run.team.leads:
        cut_log(folder / LOG, run.step)
    mark = time.monotonic()

    def lap() -> None:
        nonlocal mark
        progress.seconds += time.monotonic() - mark
        mark = time.monotonic()

    stopping = False
    for done, total in run.prepare():
        watcher.on_prepare(done, total)
        stopping = stop.wanted(run.team)
        if stopping:
            break
    if run.step == 0:
        run.keep(folder)
    while run.step < run.settings.steps and not stopping:
        progress.losses.append(run.train_step())
        watcher.on_step(run.step, progress.losses[-1])
        stopping = stop.wanted(run.team)
        last = run.step == run.settings.steps
        lap()
        if last or run.step % run.settings.log_every == 0:
            entry = _entry(run, progress)
            progress.losses = []
            if run.team.leads:
                append_log(folder / LOG, entry)
                watcher.on_entry(entry)
        if last or stopping or run.step % run.settings.save_every == 0:
            save(run, folder, progress)
        every = run.settings.sheet_every
        if every and (last or run.step % every == 0) and run.team.leads:
            run.sheet(folder / "sheets" / f"{run.step:06}.png")
        run.team.wait()
    return run.step >= run.settings.steps


def _entry(run: Run, progress: Progress) -> Entry:
    loss = sum(progress.losses) / len(progress.losses)
    return {"step": run.step, "loss": round(loss, 6), "seconds": round(progress.seconds, 1), **run.report()}


def append_log(path: Path, entry: Entry) -> None:
    """Add one line of JSON to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Take out the lines of later steps than `step`, and a torn one: the run will write them again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that depends on the seed and the step alone."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.randn(shape, generator=generator)


def last_step(folder: Path) -> int:
    """The step of the checkpoint in a run's folder, 0 where there is none."""
    file = folder / CHECKPOINT
    return int(checkpoint.load(file)["step"]) if file.exists() else 0
