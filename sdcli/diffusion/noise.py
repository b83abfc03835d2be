"""Noise. Each picture has its own CPU generator, so its noise is the same on every device and in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor


def initial_latents(
    generators: Sequence[Generator], shape: Sequence[int], scheduler: Any, device: torch.device | str = "cpu"
) -> Tensor:
    """Return z_T, one picture per generator: (B, *shape), float32, with the scheduler's initial standard deviation."""
    latents: Tensor = draw_noise(generators, shape) * scheduler.init_noise_sigma
    return latents.to(device)


def add_noise(scheduler: Any, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Add noise to `latents` (B, C, h, w) up to the level of `timestep` (1,), which is on the CPU.

    The scheduler computes the two factors on the CPU, where its tables stay: its own `add_noise` would move them to the
    GPU and synchronise with the device in every call.
    """
    one, zero = torch.ones((1, 1, 1, 1)), torch.zeros((1, 1, 1, 1))
    of_latents, of_noise = scheduler.add_noise(one, zero, timestep), scheduler.add_noise(zero, one, timestep)
    noised: Tensor = of_latents.reshape(()) * latents + of_noise.reshape(()) * noise
    return noised


def draw_noise(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise (B, *shape), float32, on the CPU: one picture from each of B generators."""
    return torch.cat([torch.randn((1, *shape), generator=each, dtype=torch.float32) for each in generators])
