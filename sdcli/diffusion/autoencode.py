"""The autoencoder: pictures to normalised latents, latents to pixels. Knows nothing of prompts or of the loop."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files import images


@torch.inference_mode()
def encode_picture(model: LatentDiffusionModel, picture: Image.Image) -> Tensor:
    """Encode an upright picture to normalised latents (1, C, h, w), float32.

    Transparent pixels become white. The latents are the mean of the encoder's Gaussian, so the same picture always
    gives the same latents.
    """
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return encode_mean(model, images.to_pixels(picture)).cpu()


@torch.inference_mode()
def encode_mean(model: LatentDiffusionModel, pixels: Tensor) -> Tensor:
    """Encode `pixels` (1, 3, H, W) in −1 … 1 to normalised latents (1, C, h, w), float32: the mean of the Gaussian."""
    encoded = model.vae.encode(as_input(model, pixels))
    mean: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    return model.latent_space.normalize(mean.float())


@torch.inference_mode()
def decode_picture(model: LatentDiffusionModel, latents: NDArray[np.float32]) -> Image.Image:
    """Decode `latents` (1, C, h, w) to a picture. Raises InvalidPicture if the VAE returns NaN."""
    pixels, _ = decode_finite(model, torch.from_numpy(latents).to(model.device))
    return images.to_image(pixels[0])


def decode(model: LatentDiffusionModel, latents: Tensor) -> Tensor:
    """Decode latents to pixels (B, 3, H, W), float32, nominally in −1 … 1; they can be NaN."""
    z = model.latent_space.denormalize(latents)
    pixels: Tensor = model.vae.decode(z.to(model.vae.dtype), return_dict=False)[0].float().cpu()
    return pixels.squeeze(2) if model.latent_space.has_frames else pixels


def as_input(model: LatentDiffusionModel, pixels: Tensor) -> Tensor:
    """Return `pixels` (B, 3, H, W) on the device and in the dtype of the encoder, as one frame if it takes frames."""
    pixels = pixels.to(model.device, model.vae.dtype)
    return pixels.unsqueeze(2) if model.latent_space.has_frames else pixels


def decode_finite(model: LatentDiffusionModel, latents: Tensor) -> tuple[Tensor, list[int]]:
    """Decode, and repeat in float32 the pictures whose pixels are not finite; returns pixels and those pictures.

    Raises InvalidPicture if pixels are still not finite.
    """
    pixels = decode(model, latents)
    broken = _overflowed(model, latents, pixels)
    if broken:
        pixels[broken] = decode_in_float32(model, latents[broken])
    images.check_picture(pixels)
    return pixels, broken


def decode_in_float32(model: LatentDiffusionModel, latents: Tensor) -> Tensor:
    """Decode with the VAE in float32, and restore its dtype, so that later pictures do not depend on it."""
    dtype = model.vae.dtype
    model.vae.to(torch.float32)
    try:
        return decode(model, latents)
    finally:
        model.vae.to(dtype)


def _overflowed(model: LatentDiffusionModel, latents: Tensor, pixels: Tensor) -> list[int]:
    """Return the pictures that overflowed in the VAE's dtype: their latents are finite, and their pixels are not."""
    if model.vae.dtype == torch.float32:
        return []
    finite = latents.isfinite().flatten(1).all(1).cpu()
    lost: list[int] = (finite & ~pixels.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    return lost
