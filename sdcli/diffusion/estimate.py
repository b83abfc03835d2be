"""x̂_0: what an evaluation of f estimates as the finished picture. Knows nothing of the loop.

f takes latents of variance 1 whatever the scheduler: √ᾱ x_0 + √(1 − ᾱ) ε, or (1 − s) x_0 + s ε with flow matching. With
σ, the noise level in x_0 + σ ε, x̂_0 follows from them and the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.diffusion.denoise import Denoiser, Evaluation
from sdcli.recipe.schedulers import predicts_flow


@dataclass
class Watched:
    """A denoiser that remembers its last evaluation, of which it estimates x_0."""

    denoiser: Denoiser
    scheduler: Any
    last: tuple[Tensor, float, Tensor] | None = None

    def __call__(self, latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        """Evaluate f."""
        prediction = self.denoiser(latents, timestep, evaluation)
        self.last = latents, evaluation.timestep, prediction
        return prediction

    def estimate(self) -> Tensor:
        """Return x_0 (B, C, h, w) as the last evaluation predicts it. Call it after one."""
        assert self.last is not None
        latents, timestep, prediction = self.last
        return clean_latents(self.scheduler, latents, prediction, sigma_of(self.scheduler, timestep))


def sigma_of(scheduler: Any, timestep: float) -> float:
    """Return σ, in z = x_0 + σ ε up to a factor, at a timestep; between two timesteps by interpolation."""
    count: int = scheduler.config.num_train_timesteps
    if is_flow(scheduler):
        share = timestep / count
        return share / max(1 - share, 1e-6)
    sigmas = levels(scheduler)
    below = min(max(int(timestep), 0), count - 1)
    above = min(below + 1, count - 1)
    part = timestep - below
    return float(torch.exp((1 - part) * sigmas[below].log() + part * sigmas[above].log()))


def levels(scheduler: Any) -> Tensor:
    """Return σ of each training timestep."""
    if is_flow(scheduler):
        count: int = scheduler.config.num_train_timesteps
        share = torch.arange(1, count + 1) / count
        return share / (1 - share).clamp(min=1e-6)
    alphas: Tensor = scheduler.alphas_cumprod.double().clamp(min=1e-10)
    return ((1 - alphas) / alphas).sqrt()


def clean_latents(scheduler: Any, latents: Tensor, prediction: Tensor, sigma: float) -> Tensor:
    """Return x̂_0 by the prediction of f for latents of unit variance (or, for flow matching, (1 − s) x_0 + s ε)."""
    if is_flow(scheduler):
        return latents - sigma / (1 + sigma) * prediction
    alpha = (1 / (1 + sigma**2)) ** 0.5
    match scheduler.config.prediction_type:
        case "v_prediction":
            clean: Tensor = alpha * latents - alpha * sigma * prediction
        case "sample":
            clean = prediction
        case _:
            clean = latents / alpha - sigma * prediction
    return clean


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler is one of flow matching, or runs with its sigmas."""
    return not hasattr(scheduler, "alphas_cumprod") or predicts_flow(scheduler.config)
