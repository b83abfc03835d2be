"""Lets diffusers' multistep classes start in the middle of the timesteps, as image-to-image does. Imports torch.

A multistep method combines the last predictions. These two classes decide by the place in the list of timesteps how
many there are, and are wrong when the first ones were skipped. From the first timestep on, nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch


def order_at_hand(kind: Any) -> Any:
    """Return a subclass of LMSDiscreteScheduler whose order is at most the number of known derivatives."""

    class Midway(kind):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, **options: Any) -> Any:
            return super().step(model_output, timestep, sample, order=min(order, len(self.derivatives) + 1), **options)

    return Midway


def repeat_second(kind: Any) -> Any:
    """Return a subclass of PNDMScheduler that evaluates the second timestep twice wherever it starts.

    PLMS (Liu et al. 2022) starts with Heun's method: its second evaluation repeats the first step. Without that
    timestep twice in the list, every later step would be one timestep ahead of its latents.
    """

    class Midway(kind):  # type: ignore[misc]
        def set_begin_index(self, begin_index: int = 0) -> None:
            once = torch.from_numpy(self._timesteps[::-1].copy())
            self.timesteps = torch.cat([once[: begin_index + 2], once[begin_index + 1 :]])

    return Midway
