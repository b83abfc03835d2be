"""Images for ControlNets as context: y enters f as residuals, added to the U-Net's skip connections and middle block.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", §3: a ControlNet is a copy of the
U-Net's encoder that takes z_t, t, the text and an image. Unlike any other y its encoding depends on z_t, so the context
has a function. Knows nothing of files or of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, cat, zeros_like

from sdcli.diffusion.context import Residuals
from sdcli.recipe.control import Control

if TYPE_CHECKING:
    from sdcli.diffusion.denoise import Evaluation


@dataclass(frozen=True)
class Reading:
    """A ControlNet (diffusers' ControlNetModel) and its image: (1, 3, H, W), 0 … 1, 8 × 8 pixels per latent.

    `control` has the scale of its residuals and the evaluations where they are added.
    """

    net: Any
    pixels: Tensor
    control: Control


def encode(readings: Sequence[Reading]) -> Residuals:
    """Return a function that computes the sum of the residuals of all `readings`."""

    def residuals(
        sample: Tensor, timestep: Tensor, conditions: Mapping[str, Any], evaluation: Evaluation, guided: bool
    ) -> Mapping[str, Any]:
        summed: list[Tensor] = []
        for reading in readings:
            if reading.control.covers(evaluation.index, evaluation.total):
                one = _residuals(reading, sample, timestep, conditions, guided)
                summed = [each + more for each, more in zip(summed, one, strict=True)] if summed else one
        if not summed:
            return {}
        return {"down_block_additional_residuals": tuple(summed[:-1]), "mid_block_additional_residual": summed[-1]}

    return residuals


def _residuals(
    reading: Reading, sample: Tensor, timestep: Tensor, conditions: Mapping[str, Any], guided: bool
) -> list[Tensor]:
    """Return one ControlNet's residuals: those of the down blocks in order, then that of the middle block.

    With `global_pool_conditions` (shuffle) they are only added to the conditional half, as in training.
    """
    embeds, added = conditions["encoder_hidden_states"], conditions.get("added_cond_kwargs")
    if added is not None:  # the images of an IP-Adapter are for the U-Net alone
        added = {key: each for key, each in added.items() if key != "image_embeds"} or None
    conditional_only = guided and reading.net.config["global_pool_conditions"]
    if conditional_only:
        sample, embeds = sample.chunk(2)[1], embeds.chunk(2)[1]
        added = None if added is None else {key: each.chunk(2)[1] for key, each in added.items()}
    down, middle = reading.net(
        sample,
        timestep,
        encoder_hidden_states=embeds,
        controlnet_cond=reading.pixels.to(sample),
        conditioning_scale=reading.control.scale,
        added_cond_kwargs=added,
        return_dict=False,
    )
    found = [*down, middle]
    return [cat([zeros_like(each), each]) for each in found] if conditional_only else found
