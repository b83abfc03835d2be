"""A masked image as context: y is the mask, and the latents of the image without the part to repaint.

A U-Net trained for it takes y by concatenation. For any other, the known part is restored after every step. Knows
nothing of files or of the loop. Masks are 1 where to repaint, 0 where the image is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from sdcli.diffusion import autoencode
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import add_noise, draw_noise


def encode_image(
    model: LatentDiffusionModel, pixels: Tensor, generators: Sequence[Generator], *, tiled: bool = False
) -> Tensor:
    """Encode an image, `pixels` (1, 3, H, W) in −1 … 1, to normalised latents (B, C, h, w), float32, for B generators.

    The encoder predicts the mean and standard deviation of a Gaussian (Kingma & Welling 2014, "Auto-Encoding
    Variational Bayes"), from which a sample is drawn with each generator. Some autoencoders predict the latents. A
    large image can be encoded in tiles (`tiled`).
    """
    encoded = autoencode.encode(model, pixels, tiled=tiled)
    certain = autoencode.certain(encoded)
    if certain is not None:
        z = certain.float().expand(len(generators), -1, -1, -1)
    else:
        gaussian = encoded.latent_dist
        mean, deviation = gaussian.mean.float(), gaussian.std.float()
        z = mean + deviation * draw_noise(generators, mean.shape[1:]).to(mean.device)
    return model.latent_space.normalize(z)


def mask_latents(model: LatentDiffusionModel, mask: Tensor) -> Tensor:
    """Resize the mask (1, 1, H, W) to the latents' size, (1, 1, h, w), with nearest-neighbour sampling."""
    size = tuple(side // model.vae_scale_factor for side in mask.shape[-2:])
    return torch.nn.functional.interpolate(mask.to(model.device), size=size)


def encode(model: LatentDiffusionModel, pixels: Tensor, mask: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Return y (B, 1 + C, h, w): the mask, then the latents of `pixels` (1, 3, H, W) with the masked part in mid-grey.

    Stable Diffusion's inpainting U-Nets were trained with this order.
    """
    masked_image = encode_image(model, pixels * (mask < 0.5), generators)
    return torch.cat([mask_latents(model, mask).expand(len(generators), -1, -1, -1), masked_image], dim=1)


def hold_known(
    scheduler: Any, image_latents: Tensor, noise: Tensor, mask: Tensor
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return `constrain` for `denoise`, which restores the known part for a U-Net that takes no mask.

    After each evaluation the known part of the latents is replaced by the image's latents (B, C, h, w) with `noise` at
    the level of the next timestep (Lugmayr et al. 2022, "RePaint", eq. 8, without resampling). `mask` is (1, 1, h, w).
    """

    def constrain(latents: Tensor, timestep: Tensor | None) -> Tensor:
        known = image_latents
        if timestep is not None:
            known = add_noise(scheduler, image_latents, noise, timestep.reshape(1))
        return (1 - mask) * known + mask * latents

    return constrain
