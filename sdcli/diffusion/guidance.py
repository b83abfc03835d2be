"""Classifier-free guidance: one prediction from an unconditional and a conditional one. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sdcli.recipe.skip_layers import SkipLayers

if TYPE_CHECKING:
    from torch import Tensor

    from sdcli.diffusion.denoise import Denoiser, Evaluation
    from sdcli.recipe.interval import Interval
    from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Guidance:
    """How strongly a picture is to follow its context: `guidance_scale`, `guidance_rescale`, and `true_cfg_scale`;
    and `skip_layer_guidance`.

    An architecture may read the scale in its own way; `is_on` and `guide` are those of U-Nets and DiT.
    """

    scale: float
    rescale: float = 0.0
    true_scale: float = 1.0
    skip_layers: SkipLayers | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the guidance of a recipe."""
        sampling, skipped = recipe.sampling, recipe.flow.skip_layer_guidance
        skip_layers = None if skipped is None else SkipLayers.parse(skipped)
        true_scale = recipe.flow.true_cfg_scale or 1.0
        return cls(sampling.guidance_scale, sampling.guidance_rescale, true_scale, skip_layers)

    @property
    def is_on(self) -> bool:
        """Whether there is anything to guide away from: 1 is the conditional prediction itself."""
        return self.scale > 1


def guide(noise_pred: Tensor, guidance: Guidance) -> Tensor:
    """The guided prediction (B, C, h, w) from an unconditional and a conditional one, in that order (2B, C, h, w).

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6: (1 + w) ε(z, y) − w ε(z), where the scale is
    1 + w. `rescale` φ, 0 … 1, draws its standard deviation back to that of the conditional prediction
    (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", §3.4, eqs. 15 and 16).
    """
    unconditional, conditional = noise_pred.chunk(2)
    return rescale(unconditional + guidance.scale * (conditional - unconditional), conditional, guidance.rescale)


def within(interval: Interval, guided: Denoiser, conditional: Denoiser, training_timesteps: int) -> Denoiser:
    """Return f(z, t) that is `guided` in `interval` and only `conditional` outside of it.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models": guidance harms at high noise levels and does little at low ones.
    """

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        chosen = guided if interval.covers(evaluation.timestep / training_timesteps) else conditional
        return chosen(latents, timestep, evaluation)

    return denoiser


def rescale(guided: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """Draw the standard deviation of a guided prediction back to that of the conditional one; see `guide`."""
    if strength > 0:
        axes = tuple(range(1, guided.ndim))
        rescaled = guided * (conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        guided = strength * rescaled + (1 - strength) * guided
    return guided
