"""The training loop of all stages: checkpoints, a JSON Lines log, slices of time. Does not depend on models.

A run that is killed at any moment and restarted ends with the same weights and log as an uninterrupted run: all
randomness of a step comes from the seed and the step number, and log lines after the checkpoint are removed.
"""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdcli.files import atomic
from sdcli.training import checkpoint
from sdcli.training.optimizers import learning_rate
from sdcli.training.team import Team

Entry = dict[str, Any]
CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


class Settings(Protocol):
    """The settings of a run that the loop needs."""

    @property
    def steps(self) -> int:
        """The total number of steps."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def log_every(self) -> int:
        """Steps between log lines."""

    @property
    def sheet_every(self) -> int:
        """Steps between sheets of pictures; 0 for none."""


class LearningRates(Protocol):
    """The settings of `learning_rate`."""

    @property
    def steps(self) -> int:
        """The step at which the run ends."""

    @property
    def lr(self) -> float:
        """The highest learning rate."""

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate rises."""

    @property
    def cooldown(self) -> int:
        """Steps over which it falls at the end."""


class Optimizer(Protocol):
    """What `finish_step` needs of an optimizer."""

    def step(self, lr: float) -> None:
        """Update all parameters at this learning rate and clear the gradients."""


class OptimizedRun(Protocol):
    """What `finish_step` needs of a run."""

    step: int
    team: Team

    @property
    def optimizer(self) -> Optimizer:
        """Updates the parameters."""

    @property
    def settings(self) -> LearningRates:
        """The learning rate over the run."""


class Run(Protocol):
    """A training run in memory. `step` counts from the start of the run, over all slices."""

    step: int
    team: Team

    @property
    def settings(self) -> Settings:
        """The settings of the run."""

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Prepare the next step, yielding (done, total) after each part. It may be interrupted in between."""

    def train_step(self) -> float:
        """Train one step and return its loss."""

    def keep(self, folder: Path) -> None:
        """Write the data that only this process has, such as encoded pictures."""

    def state(self) -> checkpoint.State:
        """Return the state that all processes share."""

    def load_state(self, state: checkpoint.State) -> None:
        """Restore the result of `state`."""

    def report(self) -> Entry:
        """Return additional log values, besides step, loss and time."""

    def sheet(self, path: Path) -> None:
        """Write a sheet of sample pictures."""


@dataclass
class Watcher:
    """Callbacks for the progress of a run; by default they do nothing."""

    on_prepare: Callable[[int, int], None] = lambda done, total: None
    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_entry: Callable[[Entry], None] = lambda entry: None


@dataclass
class Stop:
    """A request to stop before the end of the run.

    `received` are signal numbers; `deadline` is a time of `time.monotonic()`, the end of the slice.
    """

    deadline: float | None = None
    received: list[int] = field(default_factory=list)

    def wanted(self, team: Team) -> bool:
        """Return whether any of the processes has to stop; the same in all processes."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return team.any_of(late or bool(self.received))


@contextmanager
def stop_requests(deadline: float | None = None) -> Iterator[Stop]:
    """Collect SIGINT and SIGTERM, so that a run can save a checkpoint and stop between steps."""
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
    """The state of the log in a checkpoint: seconds spent, and the losses since the last log line."""

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def resume(run: Run, folder: Path) -> Progress:
    """Load the checkpoint in `folder`, if there is one."""
    if not (folder / CHECKPOINT).exists():
        return Progress()
    state = checkpoint.load(folder / CHECKPOINT)
    run.step = state["step"]
    run.load_state(state["run"])
    return Progress(state["seconds"], state["losses"])


def save(run: Run, folder: Path, progress: Progress) -> None:
    """Write a checkpoint.

    The first process writes the shared state after the other processes have written theirs.
    """
    run.keep(folder)
    run.team.wait()
    if run.team.leads:
        state = {"step": run.step, "seconds": progress.seconds, "losses": progress.losses, "run": run.state()}
        checkpoint.save(folder / CHECKPOINT, state)


def train(run: Run, folder: Path, stop: Stop, watcher: Watcher) -> bool:
    """Train until the end or a stop request; returns whether the run is done. Always leaves a checkpoint."""
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
    """Append one JSON line to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Remove incomplete lines and lines of steps after `step`: the resumed run writes them again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        atomic.replace(path, "".join(kept).encode())


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def finish_step(run: OptimizedRun, loss: Tensor, modules: Iterable[nn.Module]) -> float:
    """Update the parameters of `modules` by the gradient of `loss`; returns the mean loss of all processes.

    The gradient is averaged over the processes and clipped to a norm of 1.
    """
    settings, team = run.settings, run.team
    loss.backward()
    parameters = [parameter for module in modules for parameter in module.parameters()]
    team.average(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step(learning_rate(run.step, settings.lr, settings.steps, settings.warmup, settings.cooldown))
    run.step += 1
    return team.mean(loss.item())


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise that depends only on the seed and the step."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.randn(shape, generator=generator)


def last_step(folder: Path) -> int:
    """Return the step of the checkpoint in a run's folder, 0 if there is none."""
    file = folder / CHECKPOINT
    return int(checkpoint.load(file)["step"]) if file.exists() else 0
