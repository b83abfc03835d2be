"""Runs one `sdcli train` command: its processes, its output, and its exit status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sdcli.errors import ExitStatus, UsageError
from sdcli.terminal import display, streams
from sdcli.training import kit, loop, sprites, stages, team, world
from sdcli.training.learners import JUDGE, Runtime
from sdcli.training.loop import Stop, Watcher
from sdcli.training.run_config import RunConfig

GPU_MINUTES, CPU_MINUTES, CPU_SCALE = 20.0, 900.0, 1 / 16
"""The defaults of `train kit`: minutes on a GPU and on a CPU, and the scale on a CPU."""


@dataclass(frozen=True)
class How:
    """The execution options of a run. `deadline` is a time of `time.monotonic()`."""

    device: str = "auto"
    dtype: str = "bfloat16"
    processes: int = 1
    threads: int | None = None
    deadline: float | None = None
    json: bool = False
    quiet: bool = False


def train_stage(config: RunConfig, how: How) -> int:
    """Train until the run is done or has to stop; returns the exit status.

    Prints the model's folder to stdout when the run is done. With `json`, prints the lines of the log instead, and last
    a line with `status`, `step` and, if the run is done, `model`.
    """
    with streams.results() as out, other_processes(config, how), loop.stop_requests(how.deadline) as stop:
        here = _join(how)
        done = _train(config, how, here, stop, out)
        if here.leads:
            _report(config, how, done, out)
    return _status(stop, done)


@dataclass(frozen=True)
class KitRun:
    """The options of `sdcli train kit`. The device determines `minutes` and `scale` if they are not given."""

    out: Path
    sprites: Path | None = None
    base: Path | None = None
    phases: Sequence[str] = ()
    minutes: float | None = None
    steps: int | None = None
    workers: int | None = None
    scale: float | None = None
    compiles: bool | None = None
    world: str = "kit"


def train_kit(run: KitRun, how: How) -> int:
    """Train the phases of kit until they are done or have to stop; returns the exit status.

    Prints kit's folder to stdout when all phases are done, or the file of the judge if it was the only phase.
    """
    with streams.results() as results, loop.stop_requests(how.deadline) as stop:
        runtime = runtime_of(run, how)
        settings = kit_settings(run, is_gpu=runtime.device.type == "cuda")
        with display.training(quiet=how.quiet) as show:

            def on_entry(phase: str, entry: dict[str, Any], fraction: float) -> None:
                show(phase, round(1000 * fraction), 1000, entry.get("loss"))
                if how.json:
                    streams.write_line(results, streams.to_json({"phase": phase, **entry}))

            done = kit.train(settings, runtime, stop, on_entry, _note_finished)
        if done:
            key, path = ("judge", JUDGE) if list(settings.phases) == ["judge"] else ("model", kit.KIT)
            made = str(run.out / path)
            streams.write_line(results, streams.to_json({"status": "done", key: made}) if how.json else made)
        else:
            streams.note("stopped at a checkpoint; the same command continues")
    return _status(stop, done)


def _note_finished(folder: Path) -> None:
    streams.note(f"{folder.name} is finished, and is not trained again; to repeat it, delete {folder}")


def kit_settings(run: KitRun, *, is_gpu: bool) -> kit.Settings:
    """Return the settings of a run, with the device's defaults for minutes, workers and scale."""
    phases = run.phases or kit.WHOLE
    minutes = run.minutes or (GPU_MINUTES if is_gpu else CPU_MINUTES)
    return kit.Settings(
        run.out,
        sprites.find_sprites(run.sprites),
        dict.fromkeys(phases) if run.steps and not run.minutes else kit.share_out(minutes, phases),
        run.steps,
        max(1, (os.cpu_count() or 2) - 1) if run.workers is None else run.workers,
        (1.0 if is_gpu else CPU_SCALE) if run.scale is None else run.scale,
        world.VOCABULARIES[run.world],
        run.base,
    )


def runtime_of(run: KitRun, how: How) -> Runtime:
    """Return the device, the generator, and whether to compile the U-Net; by default, only on a GPU."""
    alone = _join(how)
    is_gpu = alone.device.type == "cuda"
    if is_gpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    generator = torch.Generator(alone.device).manual_seed(1)
    return Runtime(alone, generator, is_gpu if run.compiles is None else run.compiles)


def _train(config: RunConfig, how: How, here: team.Team, stop: Stop, out: Any) -> bool:
    with display.training(quiet=how.quiet or not here.leads) as show:
        watcher = _watcher(config, how, out, show) if here.leads else Watcher()
        return stages.train(config, here, stop, watcher)


def _join(how: How) -> team.Team:
    if how.threads is not None or how.processes > 1:
        torch.set_num_threads(how.threads or 1)
    return team.join(how.device, how.dtype)


def _watcher(config: RunConfig, how: How, out: Any, show: display.OnTraining) -> Watcher:
    def on_entry(entry: loop.Entry) -> None:
        if how.json:
            streams.write_line(out, streams.to_json(entry))

    return Watcher(
        on_prepare=lambda done, total: show("encoding", done, total, None),
        on_step=lambda step, loss: show(config.stage, step, config.settings.steps, loss),
        on_entry=on_entry,
    )


def _report(config: RunConfig, how: How, done: bool, out: Any) -> None:
    step = loop.last_step(config.out)
    if how.json:
        result: dict[str, Any] = {"status": "done" if done else "stopped", "step": step}
        streams.write_line(out, streams.to_json(result | ({"model": str(config.result)} if done else {})))
    elif done:
        streams.write_line(out, str(config.result))
    if not done:
        streams.note(
            f"{config.stage}: stopped after step {step} of {config.settings.steps}; the same command continues"
        )


def _status(stop: Stop, done: bool) -> int:
    if done or not stop.received:
        return ExitStatus.OK
    return ExitStatus.TERMINATED if signal.SIGTERM in stop.received else ExitStatus.INTERRUPTED


@contextmanager
def other_processes(config: RunConfig, how: How) -> Iterator[None]:
    """Start the other processes of a run with the command line of this process, which is the first of them.

    Does nothing in a process that was started by this function, or by a launcher such as accelerate's or torchrun.
    """
    if how.processes == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    if find_spec("accelerate") is None:
        raise UsageError(
            "training in several processes needs accelerate, which is not installed",
            "install it with: pip install 'sdcli[train]'",
        )
    if config.settings.batch % how.processes:
        raise UsageError(
            f"a batch of {config.settings.batch} cannot be split between {how.processes} processes",
            "make --batch a multiple of --processes",
        )
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(how.processes)}
    children = []
    for rank in range(1, how.processes):
        place = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "sdcli", *sys.argv[1:]]
        children.append(subprocess.Popen(command, env=os.environ | place, stdout=subprocess.DEVNULL))
    os.environ.update(meeting | {"RANK": "0", "LOCAL_RANK": "0"})
    try:
        yield
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def cost(config: RunConfig, how: How) -> dict[str, Any]:
    """Return the estimated cost of a run, from a few timed steps. Writes no files."""
    from sdcli.training.cost import measure

    with streams.results():
        return measure(config, _join(how))


def shown(facts: dict[str, Any]) -> str:
    """Format the estimates, one per line."""
    width = max(map(len, facts))
    return "\n".join(f"{key.replace('_', ' '):{width}}  {value}" for key, value in facts.items())


def measure(
    models: Sequence[str],
    judge_file: Path,
    counts: Mapping[str, int],
    options: Mapping[str, Any],
    vocabulary: str,
    sprites_source: Path | None,
    quiet: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table: the judge's own accuracy on unseen renderings, then the rows of each model.

    Shows a progress bar on stderr while a row is computed.
    """
    from sdcli.training import judge as judging
    from sdcli.training import measure as measuring

    for model in models:
        measuring.check(model, options)
    known = world.VOCABULARIES[vocabulary]
    held = world.sprites_of(sprites.find_sprites(sprites_source), known)
    judge, segmenter = judging.load(judge_file, known)
    yield {"model": "judge", "trials": "renderings", **measuring.judge_itself(judge, segmenter, held, known)}
    how: dict[str, Any] = {"vocabulary": known, "counts": measuring.Counts(**counts), "options": options}
    for model in models:
        with row_bars(model, quiet) as shown:
            for row in measuring.measure(model, judge, segmenter, held, **how, shown=shown):
                yield {"model": model, **row}


@contextmanager
def row_bars(model: str, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of type `measure.Shown` that shows a bar for each kind of trials, and removes it at the end."""
    show: display.OnTraining | None = None
    with ExitStack() as bars:

        def shown(kind: str, total: int, done: int) -> None:
            nonlocal show
            show = show or bars.enter_context(display.training(quiet=quiet))
            show(f"{model}, {kind}", done, total, None)
            if done == total:
                bars.close()
                show = None

        yield shown


SHARES = ("subject", "colour", "place", "count", "order", "stack")
COLUMNS = (*SHARES, "mean_iou", "psnr", "seconds")
NAMES = (*SHARES, "IoU", "dB", "seconds")


def heading(width: int) -> str:
    """Return the header of the table; `width` is the length of the longest model name."""
    return f"{'model':{width}}  {'trials':13} {'pictures':>8}" + "".join(f"  {name:>7}" for name in NAMES)


def line_of(row: Mapping[str, Any], width: int) -> str:
    """Format a row of the table: shares in per cent, a dash for missing values."""
    cells = []
    for name in COLUMNS:
        value = row.get(name)
        cells.append("-" if value is None else f"{100 * value:.1f} %" if name in SHARES else f"{value:.2f}")
    numbers = "".join(f"  {cell:>7}" for cell in cells)
    return f"{row['model']:{width}}  {row['trials']:13} {row['pictures']:8}{numbers}"
