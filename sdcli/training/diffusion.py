"""Training a latent diffusion model on encoded pictures: its U-Net, and its text encoder if requested.

The text-to-image, inpainting and semantic stages differ only in their task. A new U-Net learns to predict v (Salimans
and Ho 2022, eq. 30 ff.) with a schedule whose last step is pure noise (Lin et al. 2023, "Common Diffusion Noise
Schedules and Sample Steps Are Flawed"). A model from a folder keeps its prediction type and schedule.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sdcli.training import checkpoint
from sdcli.training.loop import finish_step, step_noise
from sdcli.training.optimizers import AveragedWeights, MatrixOptimizer
from sdcli.training.parts import Parts, tokenize
from sdcli.training.pool import CHUNK, Pool
from sdcli.training.settings import DiffusionTraining
from sdcli.training.team import Team


@dataclass(frozen=True)
class Batch:
    """n pictures with noise and timesteps.

    kept: the pool's tensors; noise: (n, C, h, w); timesteps: (n,), integers; token_ids: (n, 77).
    """

    kept: Mapping[str, Tensor]
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor


def draw_batch(pool: Pool, size: int, parts: Parts, settings: DiffusionTraining, step: int) -> Batch:
    """Return this process' part of the batch of a step, from the first `size` items of the pool.

    It depends only on the arguments. Timesteps are logit-normal (Esser et al. 2024, section 3.1), shifted towards
    noise, where shapes are decided.
    """
    process, processes = pool.team.process, pool.team.processes
    count = settings.batch // processes
    rng = np.random.default_rng([settings.seed, step, process])
    chosen = [int(index) for index in rng.integers(size, size=count)]
    empty = rng.uniform(size=count) < settings.empty_prompts
    prompts = ["" if e else pool.caption(index, rng) for index, e in zip(chosen, empty, strict=True)]
    kept = pool.take(chosen)
    noisiness = 1 / (1 + np.exp(-rng.normal(settings.timestep_shift, 1.0, size=count)))
    steps = parts.scheduler.config.num_train_timesteps
    timesteps = torch.from_numpy(np.minimum((noisiness * steps).astype(np.int64), steps - 1))
    noise = step_noise(settings.seed + 1000 * process, step, tuple(kept["latents"].shape))
    return Batch(kept, noise, timesteps, tokenize(parts.tokenizer, prompts))


def target_of(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the prediction target: the noise or v, by the scheduler's prediction type.

    v = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) latents.
    """
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return latents if kind == "sample" else noise


def loss_of(parts: Parts, pool: Pool, batch: Batch, team: Team, trains_text: bool) -> Tensor:
    """Return the mean squared error of the prediction, with the weights of the task."""
    kept = {name: tensor.to(team.device) for name, tensor in batch.kept.items()}
    latents, noise, timesteps = kept["latents"].float(), batch.noise.to(team.device), batch.timesteps.to(team.device)
    sample = parts.scheduler.add_noise(latents, noise, timesteps)
    context, weights = pool.task.context(kept), pool.task.weights(kept)
    if context is not None:
        sample = torch.cat([sample, context], dim=1)
    with team.autocast():
        with torch.set_grad_enabled(trains_text):
            states = parts.text_encoder(batch.token_ids.to(team.device)).last_hidden_state
        prediction = parts.unet(sample, timesteps, states).sample
    error = (prediction.float() - target_of(parts.scheduler, latents, noise, timesteps)).square()
    return weighted_mean(error, weights)


def weighted_mean(error: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of `error` (n, C, h, w); `weights` (n, 1, h, w) are normalized to a mean of 1."""
    if weights is not None:
        error = error * (weights / weights.mean())
    return error.mean()


Preview = Callable[[Path], None]
"""Writes a sheet of pictures to a file."""


class DiffusionRun:
    """A diffusion run: models, optimizer, averages and step. `load_state(state())` restores it exactly."""

    def __init__(
        self, parts: Parts, pool: Pool, settings: DiffusionTraining, team: Team, *, trains_text: bool = False
    ) -> None:
        self.parts, self.pool, self.settings, self.team = parts, pool, settings, team
        self.trains_text = trains_text
        self.modules = {"unet": parts.unet.train(), "text_encoder": parts.text_encoder.train(trains_text)}
        if not trains_text:
            del self.modules["text_encoder"]
            parts.text_encoder.requires_grad_(False)
        self.optimizer = MatrixOptimizer(self.modules.values(), settings.lr, weight_decay=0.01)
        self.average = AveragedWeights(self.modules.values(), settings.average_decay)
        self.step = 0
        self.preview: Preview | None = None

    def size_at(self, step: int) -> int:
        """Return the number of items that this process draws batches from at a step."""
        settings = self.settings
        wanted = min(settings.most_scenes, settings.scenes + step * settings.fresh)
        return self.pool.limit(max(1, wanted // self.team.processes))

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Encode the pictures that the next step needs, one chunk per iteration."""
        size = self.size_at(self.step)
        while len(self.pool) < size:
            yield len(self.pool), size
            self.pool.grow_by(min(CHUNK, size - len(self.pool)))

    def keep(self, folder: Path) -> None:
        """Write the pictures that this process has encoded."""
        self.pool.save(folder / "latents")

    def state(self) -> checkpoint.State:
        """Return the state that all processes share."""
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        return {**modules, "optimizer": self.optimizer.state_dict(), "average": self.average.state_dict()}

    def load_state(self, state: checkpoint.State) -> None:
        """Restore the result of `state`."""
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])

    def train_step(self) -> float:
        """Train one step and return its loss, averaged over the processes."""
        settings = self.settings
        size = self.size_at(self.step)
        self.pool.grow(size)
        batch = draw_batch(self.pool, size, self.parts, settings, self.step)
        loss = loss_of(self.parts, self.pool, batch, self.team, self.trains_text)
        mean_loss = finish_step(self, loss, self.modules.values())
        self.average.update()
        return mean_loss

    def report(self) -> dict[str, object]:
        """Return additional log values."""
        return {"samples": self.step * self.settings.batch, "scenes": len(self.pool) * self.team.processes}

    def sheet(self, path: Path) -> None:
        """Write a sheet of pictures, generated with the averaged weights."""
        if self.preview is not None:
            self.average.swap()
            try:
                self.preview(path)
            finally:
                self.average.swap()
