"""THE denoising loop: every picture is made by it. Knows nothing of prompts, networks, files or progress bars.

A latent diffusion model (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", §3)
draws a latent z_T of pure noise and undoes the noise step by step with a network, f(z_t, t, y). What y is, a text or
anything else that can be encoded, is bound before the loop, which sees f(z, t) alone; how far a step goes is the
scheduler's business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of f: which of `total`, counted from 0."""

    index: int
    total: int


Denoiser = Callable[[Tensor, Tensor, Evaluation], Tensor]
"""f(z, t) with y and guidance bound: from latents (B, C, h, w), float32, scaled as the scheduler scales them, and a
timestep (), float32, on their device, to the prediction (B, C, h, w), float32, that the scheduler takes."""


@dataclass(frozen=True)
class Step:
    """One step of `total` done: `index` counts from 1, `latents` (B, C, h, w) are what it led to.

    `timestep` is the one the step started from, 0 … number of training timesteps, and not always whole.
    """

    index: int
    total: int
    timestep: float
    latents: Tensor


def start_at(scheduler: Any, strength: float) -> Tensor:
    """The tail of the scheduler's timesteps that `strength` of the steps (0 … 1) takes, rounded down to whole ones.

    The scheduler is told where it begins. This is diffusers' counting, with which strengths are known.
    """
    steps = scheduler.num_inference_steps
    skipped = (steps - min(int(steps * strength), steps)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    timesteps: Tensor = scheduler.timesteps[skipped:]
    return timesteps


@torch.inference_mode()
def denoise(
    denoiser: Denoiser,
    scheduler: Any,
    latents: Tensor,
    *,
    timesteps: Tensor,
    eta: float = 0.0,
    generators: Sequence[Generator],
    constrain: Callable[[Tensor, Tensor | None], Tensor] = lambda latents, timestep: latents,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """The latents that `latents` (B, C, h, w), float32, come to after the steps of `timesteps`; float32 again.

    Each evaluation is f(z_t, t) and then the scheduler's step to z_{t-1}; with DDPM that step is line 4 of Algorithm 2
    of Ho et al. 2020 ("Denoising Diffusion Probabilistic Models"). The scheduler computes in float32.

    `timesteps` are the scheduler's own or a tail of them, for latents that are partly denoised. `eta` (0 … 1) goes to
    schedulers that take one. `generators`, one a picture, on the CPU, give the noise of stochastic steps. `constrain`
    makes of what each evaluation led to, and the next one's timestep (None after the last), the latents to go on with:
    what is known of the picture beforehand can be put back there. `on_step` is called after each step, once where a
    step of a second-order scheduler takes two evaluations.
    """
    options = _step_options(scheduler, eta, generators)
    skipped = len(scheduler.timesteps) - len(timesteps)
    if hasattr(scheduler, "set_begin_index"):  # without it a timestep that occurs twice is taken for its second
        scheduler.set_begin_index(skipped)
    step_ends = _step_ends(scheduler, len(timesteps), skipped)
    # f takes its timesteps where it runs, the scheduler where its tables are: no evaluation waits for the device.
    on_device = timesteps.to(latents.device, torch.float32)

    for count, timestep in enumerate(timesteps.cpu()):
        sample = scheduler.scale_model_input(latents, timestep)
        prediction = denoiser(sample, on_device[count], Evaluation(count, len(timesteps)))
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        latents = constrain(latents, timesteps[count + 1] if count + 1 < len(timesteps) else None)
        if count in step_ends:
            on_step(Step(step_ends[count], len(step_ends), float(timestep), latents))
    return latents


def _step_options(scheduler: Any, eta: float, generators: Sequence[Generator]) -> dict[str, Any]:
    """What this scheduler's `step` takes of eta and generators; their signatures differ."""
    offered = {"eta": eta, "generator": list(generators)}
    taken = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in offered.items() if key in taken}


def _step_ends(scheduler: Any, evaluations: int, skipped: int) -> dict[int, int]:
    """For each evaluation that completes a step, which step that is, counted from 1.

    A second-order scheduler takes two evaluations a step but for its last; PLMS takes one more, at the start.
    """
    steps = scheduler.num_inference_steps - skipped // scheduler.order
    warmup = evaluations - steps * scheduler.order
    ends = [count for count in range(evaluations) if count >= warmup and (count + 1) % scheduler.order == 0]
    if evaluations - 1 not in ends:
        ends.append(evaluations - 1)
    return {count: place for place, count in enumerate(ends, start=1)}
