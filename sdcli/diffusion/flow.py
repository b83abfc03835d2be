"""Flow matching: the timesteps of models that predict the velocity from a picture to noise (rectified flow).

z_σ = (1 − σ) z_0 + σ ε, and f predicts ε − z_0; t = 1000 σ (Liu et al. 2022, "Flow Straight and Fast"). Large pictures
need more noise for the same loss of detail, so σ is shifted by the number of tokens: σ' = e^μ σ / (1 + (e^μ − 1) σ)
(Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", §5.3.2).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def with_common_names(kind: Any) -> Any:
    """Return a subclass of a scheduler of flow matching with the methods that all other schedulers have."""
    if hasattr(kind, "add_noise"):
        return kind

    class Named(kind):  # type: ignore[misc]
        init_noise_sigma = 1.0

        def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return sample

        def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            noised: Tensor = self.scale_noise(sample, timesteps, noise)
            return noised

    return Named


def linear_mu(config: Mapping[str, Any], tokens: int, *, max_shift: float = 1.15) -> float:
    """Return μ for a picture of `tokens`: linear between the two numbers of tokens of the scheduler's config.

    `max_shift` is the default of the family's pipeline in diffusers.
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (most - base) / (high - low)
    return float(tokens * slope + base - slope * low)


def set_timesteps(scheduler: Any, steps: int, mu: float, sigmas: Sequence[float] | None = None) -> None:
    """Set the timesteps of a scheduler made for a model of flow matching.

    `mu` is used if the scheduler's config has `use_dynamic_shifting`, otherwise the config's own shift. `sigmas` are
    the noise levels before the shift, for the schedulers that take them; None is the scheduler's own spacing.
    """
    config, taken = scheduler.config, inspect.signature(scheduler.set_timesteps).parameters
    dynamic = bool(config.get("use_dynamic_shifting", False))
    if config.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, **({"mu": mu} if dynamic else {}))
    elif "sigmas" in taken and sigmas is not None:
        scheduler.set_timesteps(sigmas=sigmas, mu=mu if dynamic else None)
    elif "mu" in taken:
        scheduler.set_timesteps(steps, mu=mu if dynamic else None)
    else:  # Heun's class has a fixed shift only
        if dynamic:
            scheduler.register_to_config(shift=math.exp(mu))
        scheduler.set_timesteps(steps)


def set_even_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps for latents of `shape` (C, h, w), of which 2 × 2 are a token."""
    mu = linear_mu(scheduler.config, shape[1] // 2 * (shape[2] // 2))
    set_timesteps(scheduler, steps, mu, even(steps, 1 / steps))


def even(steps: int, last: float) -> list[float]:
    """Return `steps` evenly spaced noise levels from 1 to `last`."""
    if steps == 1:
        return [1.0]
    return [1 + (last - 1) * place / (steps - 1) for place in range(steps)]
