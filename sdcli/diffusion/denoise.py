"""THE denoising loop: every picture is made by it. Knows nothing of prompts, networks, files or progress bars.

A latent diffusion model (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", §3)
starts from a latent z_T of pure noise and removes the noise step by step with a network, f(z_t, t, y). y, a text or
anything else that can be encoded, is bound before the loop, which only sees f(z, t). The scheduler computes the steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of f out of `total`; `index` counts from 0.

    `timestep` is that of f, on the CPU: reading a timestep from a device would wait for it.
    """

    index: int
    total: int
    timestep: float = 0.0


Denoiser = Callable[[Tensor, Tensor, Evaluation], Tensor]
"""f(z, t) with y and guidance bound: from latents (B, C, h, w), float32, scaled by the scheduler, and a timestep (),
float32, on their device, to the prediction (B, C, h, w), float32, that the scheduler takes."""


@dataclass(frozen=True)
class Step:
    """A finished step out of `total`: `index` counts from 1, and `latents` (B, C, h, w) are its result.

    `timestep` is where the step started, 0 … number of training timesteps, and not always an integer. `preview`
    returns a small picture of what the first one of the batch is to become, or None if that is unknown; it can only be
    called before the next step.
    """

    index: int
    total: int
    timestep: float
    latents: Tensor
    preview: Callable[[], Picture | None] = lambda: None


def start_at(scheduler: Any, strength: float) -> Tensor:
    """Return the last timesteps of the scheduler for `strength` (0 … 1) of the steps, rounded down.

    Sets the scheduler's begin index. Counts like diffusers, so strengths have the usual meaning.
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
    stop: int | None = None,
    eta: float = 0.0,
    generators: Sequence[Generator],
    constrain: Callable[[Tensor, Tensor | None], Tensor] = lambda latents, timestep: latents,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Denoise `latents` (B, C, h, w), float32, over `timesteps`, and return the result, float32.

    Each evaluation is f(z_t, t) and then the scheduler's step to z_{t-1}; with DDPM that step is line 4 of Algorithm 2
    of Ho et al. 2020 ("Denoising Diffusion Probabilistic Models"). The scheduler computes in float32.

    `timesteps` are the scheduler's own, or the last of them for latents that are partly denoised. `stop` is the number
    of them after which latents are returned that are still partly noise. `eta` (0 … 1) is for
    schedulers that take one. `generators`, one per picture, on the CPU, are for the noise of stochastic steps.
    `constrain` is called after each evaluation with the latents and the next timestep (None after the last), and
    returns the latents to continue with; it can restore known parts of the picture. `on_step` is called after each
    step, which is two evaluations of a second-order scheduler.
    """
    options = _step_options(scheduler, eta, generators)
    skipped = len(scheduler.timesteps) - len(timesteps)
    if hasattr(
        scheduler, "set_begin_index"
    ):  # otherwise a timestep that occurs twice is looked up as its second occurrence
        scheduler.set_begin_index(skipped)
    step_ends = _step_ends(scheduler, len(timesteps), skipped)
    # f takes its timesteps on its device, and the scheduler on the CPU: no evaluation synchronises with the device.
    on_device = timesteps.to(latents.device, torch.float32)

    for count, timestep in enumerate(timesteps.cpu()[:stop]):
        sample = scheduler.scale_model_input(latents, timestep)
        prediction = denoiser(sample, on_device[count], Evaluation(count, len(timesteps), float(timestep)))
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        latents = constrain(latents, timesteps[count + 1] if count + 1 < len(timesteps) else None)
        if count in step_ends:
            on_step(Step(step_ends[count], len(step_ends), float(timestep), latents))
    return latents


def _step_options(scheduler: Any, eta: float, generators: Sequence[Generator]) -> dict[str, Any]:
    """Return the arguments among eta and generators that this scheduler's `step` takes."""
    offered = {"eta": eta, "generator": list(generators)}
    taken = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in offered.items() if key in taken}


def _step_ends(scheduler: Any, evaluations: int, skipped: int) -> dict[int, int]:
    """Return the step, counted from 1, for each evaluation that completes a step.

    A second-order scheduler has two evaluations per step except the last. PLMS has one more at the start.
    """
    steps = scheduler.num_inference_steps - skipped // scheduler.order
    warmup = evaluations - steps * scheduler.order
    ends = [count for count in range(evaluations) if count >= warmup and (count + 1) % scheduler.order == 0]
    if evaluations - 1 not in ends:
        ends.append(evaluations - 1)
    return {count: place for place, count in enumerate(ends, start=1)}
