"""What a step estimates as the finished picture, for previews. Knows nothing of the loop.

f takes latents of variance 1 whatever the scheduler: √ᾱ x_0 + √(1 − ᾱ) n, or (1 − σ) x_0 + σ n with flow matching. x_0
follows from them and the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    config: Mapping[str, Any]
    """The scheduler's config."""
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
        if predicts_flow(self.config):
            sigma = timestep / float(self.scheduler.config.num_train_timesteps)
            return latents - sigma * prediction
        signal = self._signal(timestep)
        noise = math.sqrt(1 - signal**2)
        match self.config.get("prediction_type", "epsilon"):
            case "sample":
                return prediction
            case "v_prediction":
                return signal * latents - noise * prediction
        return (latents - noise * prediction) / max(signal, 1e-3)

    def _signal(self, timestep: float) -> float:
        """√ᾱ at a timestep, which can be between two integers."""
        levels = self.scheduler.alphas_cumprod
        below = min(max(int(timestep), 0), len(levels) - 1)
        above = min(below + 1, len(levels) - 1)
        level = torch.lerp(levels[below].float(), levels[above].float(), min(max(timestep - below, 0.0), 1.0))
        return math.sqrt(float(level))
