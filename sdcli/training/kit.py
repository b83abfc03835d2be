"""Train kit from nothing in one process, on one GPU or on a CPU, in a given time.

Scenes are rendered in worker processes, encoded once, and kept on the device in a pool that batches are drawn from.
Each phase has a fixed share of the time; its learning rate falls to zero towards its end. A phase that was stopped
continues from its checkpoint. A phase that is done is skipped; delete its folder to repeat it.
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

from sdcli.errors import ModelNotFound
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
"""The folder in the run's folder that becomes the model."""
VOCABULARY_SIZE, CAPTIONS = 2304, 60_000
UNSEEN, FITTED = 64, 256
CAPTIONS_CHUNK = 256
AHEAD = 32
"""Chunks that are drawn before they are needed."""
SAVE_SECONDS, LOG_SECONDS = 120.0, 5.0
AVERAGE_DECAY = 0.995
MIXED = {"captions": 0.0, "semantic": 0.5, "judge": 0.15}
"""The share of a phase's scenes whose place is mixed of several; a mixed place has no name for a readout to learn."""
RESUMED_SEED = 1000
"""A phase that resumes at step n draws scenes from a seed that is n times this higher: not those it has seen."""


@dataclass(frozen=True)
class Phase:
    """How a phase learns. `share` is its part of the time; `kind` is what chunks hold; `pool` is how many scenes are
    kept, `first` how many there are before the first step, and `fresh` how many a step may add.
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
}


@dataclass(frozen=True)
class Settings:
    """A run: its folder, where sprites are, its phases in order with the seconds of each, and how many workers render.

    `steps` ends every phase after so many; None of both is without end. `scale` makes batches and pools smaller, for
    machines without a GPU; `base` is a model's folder to start from.
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
        """A phase at this scale."""
        phase = PHASES[name]
        smaller = {key: max(2, round(getattr(phase, key) * self.scale)) for key in ("batch", "pool", "first", "fresh")}
        return replace(phase, **smaller)


def share_out(minutes: float, phases: Iterable[str] = tuple(PHASES)) -> dict[str, float | None]:
    """The seconds of each phase, of so many minutes for all of them."""
    whole = sum(PHASES[name].share for name in phases)
    return {name: 60 * minutes * PHASES[name].share / whole for name in phases}


@dataclass
class Clock:
    """How far a phase is: the greater of its parts of time and of steps. `before` was spent in earlier slices."""

    seconds: float | None
    steps: int | None
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds spent on the phase."""
        return self.before + time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """0 … 1; 1 is done."""
        parts = [0.0]
        if self.seconds is not None:
            parts.append(self.elapsed() / self.seconds)
        if self.steps is not None:
            parts.append(step / self.steps)
        return min(1.0, max(parts))


class Feeder:
    """Chunks drawn ahead of training by a thread."""

    def __init__(self, chunks: Iterator[stream.Chunk], ahead: int) -> None:
        self.chunks = chunks
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.drawn = deque(self.thread.submit(next, chunks) for _ in range(ahead))

    def take(self, *, wait: bool) -> stream.Chunk | None:
        """The next chunk, or None if there is none yet and `wait` is false. Raises what drawing it raised."""
        if not wait and not self.drawn[0].done():
            return None
        chunk = self.drawn.popleft().result()
        self.drawn.append(self.thread.submit(next, self.chunks))
        return chunk

    def stop(self) -> None:
        """End the thread."""
        self.thread.shutdown(cancel_futures=True)


class DevicePool:
    """Rows on the device, the newest in place of the oldest when it is full."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.tensors: Rows = {}
        self.size = self.added = 0

    def add(self, rows: Rows) -> None:
        """Keep rows."""
        count = len(next(iter(rows.values())))
        if not self.tensors:
            self.tensors = {k: v.new_empty((self.capacity, *v.shape[1:])) for k, v in rows.items()}
        places = torch.arange(self.added, self.added + count, device=self.generator.device) % self.capacity
        for name, tensor in rows.items():
            self.tensors[name][places] = tensor
        self.added += count
        self.size = min(self.capacity, self.added)

    def sample(self, count: int) -> Rows:
        """Rows drawn at random, with replacement."""
        device = self.generator.device
        chosen = torch.randint(self.size, (count,), generator=self.generator, device=device)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


def rate_at(phase: Phase, step: int, fraction: float) -> float:
    """The learning rate: a rise over `warmup` steps, a plateau, and a fall to nothing over the last `cooldown`."""
    return phase.lr * max(0.0, min(1.0, (step + 1) / phase.warmup, (1 - fraction) / phase.cooldown))


OnEntry = Callable[[str, dict[str, Any], float], None]
"""Called with each line of the log: the phase, the line, and how much of the phase is done, 0 … 1."""


class PhaseRun:
    """One phase in memory: learner, optimizer, averages, pool and clock."""

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
        """Take what has been drawn, up to what a step may add; before the first step, wait for enough."""
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
        """One step; returns its loss, on the device."""
        loss = self.learner.loss(self.pool.sample(self.phase.batch), self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters(), 1.0)
        self.optimizer.step(rate_at(self.phase, self.step, self.clock.fraction(self.step)))
        self.average.update()
        self.step += 1
        return loss.detach()

    def save(self) -> None:
        """Write the checkpoint of this moment."""
        state = {
            "step": self.step,
            "elapsed": self.clock.elapsed(),
            "modules": {name: module.state_dict() for name, module in self.learner.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        checkpoint.save(self.folder / CHECKPOINT, state)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one, with a new pool, and take later lines out of the log."""
        if not (self.folder / CHECKPOINT).exists():
            cut_log(self.folder / LOG, 0)
            return
        state = checkpoint.load(self.folder / CHECKPOINT)
        for name, module in self.learner.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self.clock = Clock(self.clock.seconds, self.clock.steps, state["elapsed"])
        self.runtime.generator.manual_seed(1 + self.step)  # other noise than the first steps had
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
        """Train until the phase is done, or it is to stop; says whether it is done."""
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
            if stop.wanted(self.runtime.team) or now - saved >= SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
            if stop.wanted(self.runtime.team):
                return False
        if losses:
            self.log(losses, max(1e-9, time.monotonic() - logged), on_entry)
        self.finish(on_entry)
        return True

    def log(self, losses: Sequence[Tensor], seconds: float, on_entry: OnEntry) -> None:
        """A line of the log: the mean loss since the last one, and the rate."""
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


def prepare_kit(settings: Settings) -> None:
    """The folder of the model: its tokenizer, learnt from captions, its scheduler, and its index.

    Raises ModelNotFound where `base` is no model's folder.
    """
    kit = settings.out / KIT
    if settings.base is not None and not (settings.base / "model_index.json").is_file():
        raise ModelNotFound(f"there is no model_index.json in {settings.base}", "name a diffusers folder with --from")
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


def unseen_pictures(settings: Settings, count: int, seed: int) -> Tensor:
    """Pictures (n, 3, 256, 256) in -1 … 1 that no phase trains on, on the CPU."""
    sprites = world.sprites_of(settings.sprites, settings.vocabulary)
    drawn = itertools.islice(world.scenes(seed, settings.vocabulary), count)
    return to_tensor([world.render(scene, sprites).image for scene in drawn])


def learner_of(name: str, settings: Settings, runtime: Runtime) -> Learner:
    """What a phase learns."""
    kit, base = settings.out / KIT, settings.base
    if name == "autoencoder":
        unseen = unseen_pictures(settings, UNSEEN, 10_001)
        return AutoencoderLearner(runtime, unseen, unseen_pictures(settings, FITTED, 10_002), base)
    if name == "captions":
        return CaptionLearner(runtime, kit, settings.vocabulary, base)
    if name == "judge":
        return JudgeLearner(runtime, settings.vocabulary, base)
    return UnetLearner(runtime, kit, name, base)


def feeder_of(name: str, settings: Settings) -> Feeder:
    """The chunks of a phase, from workers of their own."""
    kind = PHASES[name].kind
    tokenizer = settings.out / KIT / "tokenizer"
    seed = 1 + list(PHASES).index(name) + RESUMED_SEED * last_step(settings.out / name)
    vocabulary = replace(settings.vocabulary, mixed=MIXED.get(name, settings.vocabulary.mixed))
    chunks = stream.ChunkSettings(settings.sprites, kind, vocabulary, tokenizer, seed, held_out=name == "judge")
    chunk = min(settings.phase(name).first, CAPTIONS_CHUNK if kind == "captions" else stream.CHUNK)
    return Feeder(stream.stream(chunks, settings.workers, chunk), AHEAD)


def train(settings: Settings, runtime: Runtime, stop: Stop, on_entry: OnEntry) -> bool:
    """Every phase that is not done, in order; says whether all are."""
    prepare_kit(settings)
    for name in settings.phases:
        if (settings.out / name / "done").exists():
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
