"""THE denoising loop: every picture is made by it. Knows nothing of prompts, files, images or progress bars.

A latent diffusion model (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", §3)
draws a latent z_T of pure noise and undoes the noise step by step with a U-Net, f(z_t, t, y). What y is, a text or
anything else that can be encoded, is settled before the loop; how far a step goes is the scheduler's business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from sdcli.diffusion.context import Context, Round


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
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    context: Context,
    *,
    timesteps: Tensor,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generators: Sequence[Generator],
    constrain: Callable[[Tensor, Tensor | None], Tensor] = lambda latents, timestep: latents,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """The latents that `latents` (B, C, h, w), float32, come to after the steps of `timesteps`; float32 again.

    Each round is f(z_t, t, y) and then the scheduler's step to z_{t-1}; with DDPM that step is line 4 of Algorithm 2
    of Ho et al. 2020 ("Denoising Diffusion Probabilistic Models"). The U-Net computes in its own dtype and the
    scheduler in float32.

    `timesteps` are the scheduler's own or a tail of them, for latents that are partly denoised. `context` may hold
    B pictures or one, which then stands for all. `guidance_scale` above 1 guides, where the context has an
    unconditional half and the U-Net no guidance of its own (`timestep_cond`); see `guide`. `eta` (0 … 1) goes to
    schedulers that take one. `generators`, one a picture, on the CPU, give the noise of stochastic steps. `constrain`
    makes of what each round led to, and the next round's timestep (None after the last), the latents to go on with:
    what is known of the picture beforehand can be put back there. `on_step` is called after each step, once where a
    step of a second-order scheduler takes two rounds.
    """
    guided = guidance_scale > 1 and context.has_unconditional and context.timestep_cond is None
    conditions, concat_latents = _unet_inputs(context, len(latents), guided, unet.dtype)
    options = _step_options(scheduler, eta, generators)
    skipped = len(scheduler.timesteps) - len(timesteps)
    if hasattr(scheduler, "set_begin_index"):  # without it a timestep that occurs twice is taken for its second
        scheduler.set_begin_index(skipped)
    last_rounds = _last_rounds(scheduler, len(timesteps), skipped)
    # The U-Net takes its timesteps where it runs, the scheduler where its tables are: no round waits for the device.
    unet_timesteps = timesteps.to(latents.device, torch.float32)

    for count, timestep in enumerate(timesteps.cpu()):
        sample = scheduler.scale_model_input(latents, timestep).to(unet.dtype)
        if guided:
            sample = torch.cat([sample, sample])
        residuals: Mapping[str, Any] = {}
        if context.residuals is not None:
            at = Round(count, len(timesteps), guided)
            residuals = context.residuals(sample, unet_timesteps[count], conditions, at)
        if concat_latents is not None:
            sample = torch.cat([sample, concat_latents], dim=1)
        noise_pred = unet(sample, unet_timesteps[count], **conditions, **residuals, return_dict=False)[0].float()
        if guided:
            noise_pred = guide(noise_pred, guidance_scale, guidance_rescale)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False, **options)[0]
        latents = constrain(latents, timesteps[count + 1] if count + 1 < len(timesteps) else None)
        if count in last_rounds:
            on_step(Step(last_rounds[count], len(last_rounds), float(timestep), latents))
    return latents


def guide(noise_pred: Tensor, guidance_scale: float, guidance_rescale: float = 0.0) -> Tensor:
    """The guided prediction (B, C, h, w) from an unconditional and a conditional one, in that order (2B, C, h, w).

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6: (1 + w) ε(z, y) − w ε(z), where guidance_scale
    is 1 + w. `guidance_rescale` φ, 0 … 1, draws its standard deviation back to that of the conditional prediction
    (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", §3.4, eqs. 15 and 16).
    """
    unconditional, conditional = noise_pred.chunk(2)
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale > 0:
        axes = tuple(range(1, guided.ndim))
        rescaled = guided * (conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        guided = guidance_rescale * rescaled + (1 - guidance_rescale) * guided
    return guided


def _unet_inputs(
    context: Context, batch: int, guided: bool, dtype: torch.dtype
) -> tuple[dict[str, Any], Tensor | None]:
    """The U-Net's keyword arguments, and the channels beside the latents, for all rounds alike."""

    def both(conditional: Tensor | None, unconditional: Tensor | None, dtype: torch.dtype = dtype) -> Tensor | None:
        if conditional is None:
            return None
        halves = [unconditional, conditional] if guided and unconditional is not None else [conditional]
        return torch.cat([half.expand(batch, *half.shape[1:]) for half in halves]).to(dtype)

    conditions: dict[str, Any] = {
        "encoder_hidden_states": both(context.prompt_embeds, context.negative_prompt_embeds),
        "class_labels": both(context.class_labels, context.negative_class_labels, torch.int64),
        "timestep_cond": both(context.timestep_cond, None),
    }
    conditions = {key: value for key, value in conditions.items() if value is not None}
    if context.pooled_prompt_embeds is not None:
        conditions["added_cond_kwargs"] = {
            "text_embeds": both(context.pooled_prompt_embeds, context.negative_pooled_prompt_embeds),
            "time_ids": both(context.add_time_ids, context.add_time_ids, torch.float32),
        }
    return conditions, both(context.concat_latents, context.concat_latents)


def _step_options(scheduler: Any, eta: float, generators: Sequence[Generator]) -> dict[str, Any]:
    """What this scheduler's `step` takes of eta and generators; their signatures differ."""
    offered = {"eta": eta, "generator": list(generators)}
    taken = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in offered.items() if key in taken}


def _last_rounds(scheduler: Any, rounds: int, skipped: int) -> dict[int, int]:
    """For each round that completes a step, which step that is, counted from 1.

    A second-order scheduler takes two rounds a step but for its last; PNDM takes its extra rounds at the start.
    """
    steps = scheduler.num_inference_steps - skipped // scheduler.order
    warmup = rounds - steps * scheduler.order
    ends = [count for count in range(rounds) if count >= warmup and (count + 1) % scheduler.order == 0]
    if rounds - 1 not in ends:
        ends.append(rounds - 1)
    return {count: place for place, count in enumerate(ends, start=1)}
