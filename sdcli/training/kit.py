"""Trains kit from scratch in one process, on one GPU or on a CPU, within a given time.

Worker processes render scenes; each scene is encoded once and kept on the device, in a pool that batches are sampled
from. Each phase has a fixed share of the time, and its learning rate falls to zero towards the end. A stopped phase
continues from its checkpoint. A finished phase is skipped; delete its folder to repeat it.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdcli.errors import ModelNotFound, UsageError
from sdcli.models import vocabulary
from sdcli.training import captions, checkpoint, export, stream, world
from sdcli.training.captions import caption
from sdcli.training.learners import (
    AutoencoderLearner,
    CaptionLearner,
    JudgeLearner,
    Learner,
    Rows,
    Runtime,
    UnetLearner,
)
from sdcli.training.loop import CHECKPOINT, LOG, Stop, append_log, cut_log, last_step
from sdcli.training.optimizers import AveragedWeights, MatrixOptimizer
from sdcli.training.parts import noise_scheduler
from sdcli.training.pool import to_tensor
from sdcli.training.tokenizer import write_tokenizer
from sdcli.training.vocabulary_file import vocabulary_of

KIT = "kit"
"""The folder of the model in the run's folder."""
VOCABULARY_SIZE, CAPTIONS = 2304, 60_000
UNSEEN, FITTED = 64, 256
CAPTIONS_CHUNK = 256
AHEAD = 32
"""The number of chunks that are prepared in advance."""
SAVE_SECONDS, LOG_SECONDS = 120.0, 5.0
AVERAGE_DECAY = 0.995
SHARES: Mapping[str, Mapping[str, Any]] = {
    "captions": {"mixed": 0.0},  # a mixed place has no name that the readout could learn
    "semantic": {"mixed": 0.5},
    "judge": {"mixed": 0.25, "pairs": 0.2, "on": 0.18, "riding": 0.1},
}
"""The shares of kinds of scenes that a phase changes."""
RESUMED_SEED = 1000
"""The seed of a phase that resumes at step n is increased by n times this, so that its scenes are new."""


@dataclass(frozen=True)
class Phase:
    """The hyperparameters of a phase.

    `kind`: the kind of chunks. `share`: of the total time. `cooldown`: the share of the phase over which the learning
    rate falls. `pool`: the capacity in scenes. `first`: scenes before the first step. `fresh`: new scenes per step, at
    most.
    """

    kind: str
    share: float
    batch: int
    lr: float
    cooldown: float
    pool: int
    first: int
    fresh: int
    warmup: int = 60


PHASES: Mapping[str, Phase] = {
    "autoencoder": Phase("pictures", 0.18, 96, 2e-3, 0.5, 20_000, 1024, 96),
    "captions": Phase("captions", 0.05, 1024, 2e-3, 0.5, 400_000, 8192, 1024),
    "text-to-image": Phase("text-to-image", 0.45, 512, 2e-3, 0.5, 200_000, 2048, 64),
    "inpaint": Phase("inpaint", 0.13, 512, 1e-3, 0.6, 100_000, 2048, 64),
    "semantic": Phase("semantic", 0.13, 512, 1e-3, 0.6, 100_000, 2048, 64),
    "judge": Phase("answers", 0.06, 256, 2e-3, 0.5, 24_000, 2048, 256),
    "decoder": Phase("pictures", 0.06, 96, 5e-4, 0.7, 20_000, 1024, 96),
}
WHOLE = tuple(name for name in PHASES if name != "decoder")
"""The phases of a whole run. The decoder alone is trained for a model that has U-Nets already."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run of `train kit`.

    `phases` maps phases, in order, to their seconds. `steps` ends each phase after that many steps; without seconds and
    `steps`, a phase does not end. `scale` multiplies batch and pool sizes. `base` is the folder of a model to start
    from. `workers` is the number of rendering processes.
    """

    out: Path
    sprites: Path
    phases: Mapping[str, float | None]
    steps: int | None = None
    workers: int = 2
    scale: float = 1.0
    vocabulary: world.Vocabulary = world.KIT
    base: Path | None = None

    def phase(self, name: str) -> Phase:
        """Return the hyperparameters of a phase, scaled."""
        phase = PHASES[name]
        smaller = {key: max(2, round(getattr(phase, key) * self.scale)) for key in ("batch", "pool", "first", "fresh")}
        return replace(phase, **smaller)


def share_out(minutes: float, phases: Iterable[str] = WHOLE) -> dict[str, float | None]:
    """Split `minutes` between phases; returns the seconds of each."""
    whole = sum(PHASES[name].share for name in phases)
    return {name: 60 * minutes * PHASES[name].share / whole for name in phases}


@dataclass
class Clock:
    """The progress of a phase: the larger of its shares of time and steps. `before`: seconds of earlier slices."""

    seconds: float | None
    steps: int | None
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Return the seconds spent on the phase."""
        return self.before + time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """Return the progress, 0 … 1; 1 means finished."""
        parts = [0.0]
        if self.seconds is not None:
            parts.append(self.elapsed() / self.seconds)
        if self.steps is not None:
            parts.append(step / self.steps)
        return min(1.0, max(parts))


class Feeder:
    """A thread that prepares chunks in advance."""

    def __init__(self, chunks: Iterator[stream.Chunk], ahead: int) -> None:
        self.chunks = chunks
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.drawn = deque(self.thread.submit(next, chunks) for _ in range(ahead))

    def take(self, *, wait: bool) -> stream.Chunk | None:
        """Return the next chunk, or None if it is not ready and `wait` is false.

        Raises the errors of the iterator.
        """
        if not wait and not self.drawn[0].done():
            return None
        chunk = self.drawn.popleft().result()
        self.drawn.append(self.thread.submit(next, self.chunks))
        return chunk

    def stop(self) -> None:
        """Stop the thread."""
        self.thread.shutdown(cancel_futures=True)


class DevicePool:
    """A ring buffer of rows on the device. When it is full, new rows replace the oldest."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.tensors: Rows = {}
        self.size = self.added = 0

    def add(self, rows: Rows) -> None:
        """Add rows: tensors by name, with the same first dimension."""
        count = len(next(iter(rows.values())))
        if not self.tensors:
            self.tensors = {k: v.new_empty((self.capacity, *v.shape[1:])) for k, v in rows.items()}
        places = torch.arange(self.added, self.added + count, device=self.generator.device) % self.capacity
        for name, tensor in rows.items():
            self.tensors[name][places] = tensor
        self.added += count
        self.size = min(self.capacity, self.added)

    def sample(self, count: int) -> Rows:
        """Return `count` random rows, with replacement."""
        device = self.generator.device
        chosen = torch.randint(self.size, (count,), generator=self.generator, device=device)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


def rate_at(phase: Phase, step: int, fraction: float) -> float:
    """Return the learning rate: linear warm-up, a plateau, and a linear fall to zero over `cooldown`."""
    return phase.lr * max(0.0, min(1.0, (step + 1) / phase.warmup, (1 - fraction) / phase.cooldown))


OnEntry = Callable[[str, dict[str, Any], float], None]
"""A callback for each log entry; its arguments are the phase, the entry and the phase's progress, 0 … 1."""


OnSkip = Callable[[Path], None]
"""A callback for each phase that is finished already; its argument is the phase's folder."""


class PhaseRun:
    """A phase: learner, optimizer, averages, pool and clock."""

    def __init__(self, name: str, settings: Settings, learner: Learner, runtime: Runtime) -> None:
        self.name, self.settings, self.learner, self.runtime = name, settings, learner, runtime
        self.phase = settings.phase(name)
        modules = list(learner.modules.values())
        self.optimizer = MatrixOptimizer(modules, self.phase.lr, weight_decay=0.01)
        self.average = AveragedWeights(modules, AVERAGE_DECAY)
        self.pool = DevicePool(self.phase.pool, runtime.generator)
        self.step = self.credit = 0
        self.clock = Clock(settings.phases[name], settings.steps)
        self.folder = settings.out / name

    def fill(self, feeder: Feeder) -> None:
        """Add the chunks that are ready, up to `fresh` rows per step. Before the first step, wait for `first` rows."""
        while self.pool.size < min(self.phase.first, self.phase.pool):
            chunk = feeder.take(wait=True)
            assert chunk is not None
            self.pool.add(self.learner.rows(chunk))
        self.credit += self.phase.fresh
        while self.credit > 0 and (chunk := feeder.take(wait=False)) is not None:
            rows = self.learner.rows(chunk)
            self.pool.add(rows)
            self.credit -= len(next(iter(rows.values())))

    def train_step(self) -> Tensor:
        """Train one step and return its loss, a tensor on the device."""
        loss = self.learner.loss(self.pool.sample(self.phase.batch), self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters(), 1.0)
        self.optimizer.step(rate_at(self.phase, self.step, self.clock.fraction(self.step)))
        self.average.update()
        self.step += 1
        return loss.detach()

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.step,
            "elapsed": self.clock.elapsed(),
            "modules": {name: module.state_dict() for name, module in self.learner.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        checkpoint.save(self.folder / CHECKPOINT, state)

    def resume(self) -> None:
        """Load the checkpoint, if there is one, and remove later lines from the log. The pool starts empty."""
        if not (self.folder / CHECKPOINT).exists():
            cut_log(self.folder / LOG, 0)
            return
        state = checkpoint.load(self.folder / CHECKPOINT)
        try:
            for name, module in self.learner.modules.items():
                module.load_state_dict(state["modules"][name])
        except RuntimeError as error:
            what = f"{self.folder / CHECKPOINT} is of a run with other words or networks"
            raise UsageError(what, "give the --world that the run began with, or another folder with --out") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self.clock = Clock(self.clock.seconds, self.clock.steps, state["elapsed"])
        self.runtime.generator.manual_seed(1 + self.step)  # not the noise of the first steps
        cut_log(self.folder / LOG, self.step)

    def finish(self, on_entry: OnEntry) -> None:
        """Export the averaged weights, write a sheet, and mark the phase as done."""
        self.average.swap()
        facts = self.learner.export(self.settings.out / KIT)
        entry = {"step": self.step, "done": True, "seconds": round(self.clock.elapsed(), 1), **facts}
        append_log(self.folder / LOG, entry)
        on_entry(self.name, entry, 1.0)
        (self.folder / "done").touch()
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.learner.sheet(self.folder / "sheet.png")
        self.average.swap()

    def run(self, feeder: Feeder, stop: Stop, on_entry: OnEntry) -> bool:
        """Train until the phase is done or a stop is requested; returns whether it is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        losses: list[Tensor] = []
        logged = saved = time.monotonic()
        while self.clock.fraction(self.step) < 1:
            self.fill(feeder)
            losses.append(self.train_step())
            now = time.monotonic()
            if now - logged >= LOG_SECONDS or self.step == 1:
                self.log(losses, now - logged, on_entry)
                losses, logged = [], time.monotonic()
            stopping = stop.wanted(self.runtime.team)
            if stopping or now - saved >= SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
            if stopping:
                return False
        if losses:
            self.log(losses, max(1e-9, time.monotonic() - logged), on_entry)
        self.finish(on_entry)
        return True

    def log(self, losses: Sequence[Tensor], seconds: float, on_entry: OnEntry) -> None:
        """Write a log entry with the mean loss and the samples per second since the last one."""
        entry = {
            "step": self.step,
            "loss": round(torch.stack(list(losses)).mean().item(), 5),
            "samples": self.step * self.phase.batch,
            "seconds": round(self.clock.elapsed(), 1),
            "rate": round(len(losses) * self.phase.batch / seconds),
            "scenes": self.pool.added,
        }
        append_log(self.folder / LOG, entry)
        on_entry(self.name, entry, self.clock.fraction(self.step))


_FOR_UNET = {"vae": "autoencoder", "text_encoder": "captions"}
NEEDED: Mapping[str, Mapping[str, str]] = {
    "text-to-image": _FOR_UNET,
    "inpaint": _FOR_UNET | {"unet": "text-to-image"},
    "semantic": _FOR_UNET | {"unet": "text-to-image"},
}
"""The parts of kit that a phase starts from, and the phases that train them."""


def check(settings: Settings) -> None:
    """Raise UsageError if a phase lacks a part that no earlier phase trains, or if `out` is not a folder.

    Raises ModelNotFound if `base` is not a diffusers folder.
    """
    out, base = settings.out, settings.base
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out is {out}, which is a file", "give a folder, which is made if there is none")
    if base is not None and not (base / "model_index.json").is_file():
        hint = "give a diffusers folder with --from, such as RUN/kit of an earlier run"
        raise ModelNotFound(f"there is no model_index.json in {base}", hint)
    earlier: list[str] = []
    for name in settings.phases:
        for part, phase in NEEDED.get(name, {}).items():
            given = [folder / part for folder in (base, out / KIT) if folder is not None]
            if phase not in earlier and not any(each.is_dir() for each in given):
                hint = f"train --phase {phase} first, or start from a kit: --from kit"
                raise UsageError(f"--phase {name} needs kit's {part}, and there is none in {out / KIT}", hint)
        earlier.append(name)


def prepare_kit(settings: Settings) -> None:
    """Write the tokenizer, the scheduler, the vocabulary and the index of the model's folder."""
    kit = settings.out / KIT
    kit.mkdir(parents=True, exist_ok=True)
    if (kit / "model_index.json").exists():
        return
    rng = np.random.default_rng(5)
    drawn = itertools.islice(world.scenes(5, settings.vocabulary), CAPTIONS)
    if settings.base is not None:
        for part in ("tokenizer", "text_encoder", "vae"):
            export.copy_part(settings.base / part, kit / part)
    else:
        write_tokenizer(kit / "tokenizer", (caption(scene, rng) for scene in drawn), VOCABULARY_SIZE)
    noise_scheduler().save_pretrained(kit / "scheduler")
    vocabulary.write(kit, vocabulary_of(captions.vocabulary(), captions.plural))
    export.write_index(kit, "text-to-image", None)


def unseen_pictures(sprites: world.Sprites, vocabulary: world.Vocabulary, count: int, seed: int) -> Tensor:
    """Return pictures (n, 3, 256, 256) in -1 … 1, on the CPU, that no phase is trained on."""
    drawn = itertools.islice(world.scenes(seed, vocabulary), count)
    return to_tensor([world.render(scene, sprites).image for scene in drawn])


def learner_of(name: str, settings: Settings, runtime: Runtime) -> Learner:
    """Return the learner of a phase."""
    kit, base = settings.out / KIT, settings.base
    if name in ("autoencoder", "decoder"):
        sprites = world.sprites_of(settings.sprites, settings.vocabulary)
        unseen, fitted_to = (
            unseen_pictures(sprites, settings.vocabulary, count, seed)
            for count, seed in ((UNSEEN, 10_001), (FITTED, 10_002))
        )
        return AutoencoderLearner(runtime, unseen, fitted_to, base, only_decoder=name == "decoder")
    if name == "captions":
        return CaptionLearner(runtime, kit, settings.vocabulary, base)
    if name == "judge":
        return JudgeLearner(runtime, settings.vocabulary, base)
    return UnetLearner(runtime, kit, name, base)


def feeder_of(name: str, settings: Settings) -> Feeder:
    """Return a feeder with the chunks of a phase, from its own workers."""
    kind = PHASES[name].kind
    tokenizer = settings.out / KIT / "tokenizer"
    seed = 1 + list(PHASES).index(name) + RESUMED_SEED * last_step(settings.out / name)
    vocabulary = replace(settings.vocabulary, **SHARES.get(name, {}))
    chunks = stream.ChunkSettings(settings.sprites, kind, vocabulary, tokenizer, seed, held_out=name == "judge")
    chunk = min(settings.phase(name).first, CAPTIONS_CHUNK if kind == "captions" else stream.CHUNK)
    return Feeder(stream.stream(chunks, settings.workers, chunk), AHEAD)


def train(settings: Settings, runtime: Runtime, stop: Stop, on_entry: OnEntry, on_skip: OnSkip) -> bool:
    """Train the unfinished phases in order; returns whether all are done. Raises the errors of `check`."""
    check(settings)
    prepare_kit(settings)
    for name in settings.phases:
        if (settings.out / name / "done").exists():
            on_skip(settings.out / name)
            continue
        feeder = feeder_of(name, settings)
        try:
            run = PhaseRun(name, settings, learner_of(name, settings, runtime), runtime)
            if not run.run(feeder, stop, on_entry):
                return False
        finally:
            feeder.stop()
        del run
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
    return True
