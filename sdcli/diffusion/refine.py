"""A refiner: another model, trained for the lowest noise levels alone, takes the last steps.

Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", §2.5. Knows nothing
of prompts and networks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdcli.errors import InvalidRecipe


def split(scheduler: Any, timesteps: Tensor, switch: float) -> tuple[int, int]:
    """Return how many of `timesteps`, the scheduler's last ones, come before the switch, and the first of the
    scheduler's steps that comes after it, in timesteps.

    The switch is at the fraction `switch` of the training timesteps, counted from pure noise, as in diffusers. Both
    halves have whole steps. Raises InvalidRecipe if no step comes after it.
    """
    trained = scheduler.config.num_train_timesteps
    cutoff = round(trained - switch * trained)
    before = int((timesteps >= cutoff).sum()) // scheduler.order * scheduler.order
    if before == len(timesteps):
        what = f"no step comes after refiner_switch {switch:g}"
        raise InvalidRecipe(what, "use more steps, or a lower refiner_switch", "refiner_switch")
    skipped = len(scheduler.timesteps) - len(timesteps)
    repeated = len(scheduler.timesteps) - scheduler.num_inference_steps if scheduler.order == 1 else 0  # PLMS
    return before, skipped + before - (repeated if before > 1 else 0)
