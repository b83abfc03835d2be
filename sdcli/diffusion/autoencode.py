"""The autoencoder: pictures to normalised latents, latents to pixels. Knows nothing of prompts or of the loop."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdcli.diffusion import heap, tiling
from sdcli.diffusion.device import free_memory, is_out_of_memory
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.offload import on_device
from sdcli.files import canvas, images


@torch.inference_mode()
def encode_picture(model: LatentDiffusionModel, picture: Image.Image) -> Tensor:
    """Encode an upright picture to normalised latents (1, C, h, w), float32.

    Transparent pixels become white. The latents are the mean of the encoder's Gaussian, so the same picture always
    gives the same latents.
    """
    return encode_mean(model, images.to_pixels(canvas.opaque(picture))).cpu()


@torch.inference_mode()
def encode_mean(model: LatentDiffusionModel, pixels: Tensor) -> Tensor:
    """Encode `pixels` (1, 3, H, W) in −1 … 1 to normalised latents (1, C, h, w), float32: the mean of the Gaussian."""
    encoded = encode(model, pixels)
    plain = certain(encoded)
    mean: Tensor = encoded.latent_dist.mean if plain is None else plain
    return model.latent_space.normalize(mean.float())


@torch.inference_mode()
def decode_picture(
    model: LatentDiffusionModel, latents: NDArray[np.float32], way: str = "off"
) -> tuple[Image.Image, str]:
    """Decode `latents` (1, C, h, w) to a picture, and return it and the way (see `decode_that_fits`).

    Raises InvalidPicture if the VAE returns NaN.
    """
    pixels, _, used = decode_that_fits(model, torch.from_numpy(latents).to(model.device), way)
    return images.to_image(pixels[0]), used


def encode(model: LatentDiffusionModel, pixels: Tensor, *, tiled: bool = False) -> Any:
    """Return what the encoder returns for `pixels` (B, 3, H, W) in −1 … 1, all at once or in tiles."""
    pixels, space = pixels.to(model.device, model.vae.dtype), model.latent_space
    in_tiles = tiling.tiles(model.vae, space.vae_scale_factor // space.patch) if tiled else nullcontext()
    if getattr(model.vae.config, "in_channels", 3) == 4:
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)  # opaque
    with on_device(model, model.vae), in_tiles:
        return model.vae.encode(pixels.unsqueeze(2) if model.latent_space.has_frames else pixels)


def certain(encoded: Any) -> Tensor | None:
    """Return the latents of an encoder that predicts them, AutoencoderTiny's, VQModel's or AutoencoderDC's.

    None for an encoder that predicts a Gaussian.
    """
    found: Tensor | None = getattr(encoded, "latents", getattr(encoded, "latent", None))
    return found


def decode(model: LatentDiffusionModel, latents: Tensor, way: str = "off") -> Tensor:
    """Decode latents to pixels (B, 3, H, W), float32, nominally in −1 … 1; they can be NaN. `way` is that of a recipe's
    `tiling`.
    """
    space, vae = model.latent_space, model.vae
    z = space.denormalize(latents).to(vae.dtype)
    tiled = tiling.tiles(vae, space.vae_scale_factor // space.patch) if way == "tiles" else nullcontext()
    with heap.kept(), on_device(model, vae), tiled:
        parts = [z] if way == "off" else z.split(1)
        pixels = torch.cat([vae.decode(each, return_dict=False)[0].float().cpu() for each in parts])
    return (pixels.squeeze(2) if space.has_frames else pixels)[:, :3]


def decode_that_fits(model: LatentDiffusionModel, latents: Tensor, way: str) -> tuple[Tensor, list[int], str]:
    """Do what `decode_finite` does in the given way, or if memory runs out, in one that takes less; also returns which.

    The latents are kept for each try. Raises the exception of the last way if memory runs out in that too.
    """
    factor = model.vae_scale_factor
    size = latents.shape[3] * factor, latents.shape[2] * factor
    *others, last = tiling.ways(way, size, len(latents), type(model.vae).__name__)
    for each in others:
        try:
            return *decode_finite(model, latents, each), each
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # not in the except block, because the exception keeps references
    return *decode_finite(model, latents, last), last


def decode_finite(model: LatentDiffusionModel, latents: Tensor, way: str = "off") -> tuple[Tensor, list[int]]:
    """Decode, and repeat in float32 the pictures whose pixels are not finite; returns pixels and those pictures.

    Raises InvalidPicture if pixels are still not finite.
    """
    pixels = decode(model, latents, way)
    broken = _overflowed(model, latents, pixels)
    if broken:
        pixels[broken] = decode_in_float32(model, latents[broken], way)
    images.check_picture(pixels)
    return pixels, broken


def decode_in_float32(model: LatentDiffusionModel, latents: Tensor, way: str = "off") -> Tensor:
    """Decode with the VAE in float32, and restore its dtype, so that later pictures do not depend on it."""
    dtype = model.vae.dtype
    model.vae.to(torch.float32)
    try:
        return decode(model, latents, way)
    finally:
        model.vae.to(dtype)


def _overflowed(model: LatentDiffusionModel, latents: Tensor, pixels: Tensor) -> list[int]:
    """Return the pictures that overflowed in the VAE's dtype: their latents are finite, and their pixels are not."""
    if model.vae.dtype == torch.float32:
        return []
    finite = latents.isfinite().flatten(1).all(1).cpu()
    lost: list[int] = (finite & ~pixels.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    return lost
