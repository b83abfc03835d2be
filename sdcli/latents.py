"""z(x) as a file: latents of one picture in `.safetensors`, and the way from a picture to them and back.

The tensor `latents`, (1, C, h, w) in float32, is scaled by the VAE's scaling_factor: z as the U-Net sees it, which is
also what diffusers' pipelines return for `output_type="latent"`. The file's metadata say `model`, `model_digest` and
`scaling_factor`, and of a picture that was made the `recipe` as JSON. Knows nothing of prompts or of the loop.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from sdcli import images, latent_files, pipeline
from sdcli.model import LatentDiffusionModel
from sdcli.recipe import Recipe


@torch.inference_mode()
def encode(model: LatentDiffusionModel, picture: Image.Image) -> Tensor:
    """z(x), scaled, (1, C, h, w) in float32, of an upright picture of whole latents; what is transparent shows white.

    It is the mean of the encoder's Gaussian: nothing is drawn, and the same picture gives the same latents.
    """
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    encoded = model.vae.encode(images.to_pixels(picture).to(model.device, model.vae.dtype))
    mean: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    scaled: Tensor = mean.float().cpu() * model.vae.config["scaling_factor"]
    return scaled


@torch.inference_mode()
def decode(model: LatentDiffusionModel, latents: NDArray[np.float32]) -> Image.Image:
    """The picture of scaled `latents` (1, C, h, w), as the command that saved them made it.

    Raises InvalidPicture where the VAE gives NaN.
    """
    pixels, _ = pipeline.decode_finite(model, torch.from_numpy(latents).to(model.device))
    return images.to_image(pixels[0])


def file_of(latents: Tensor, digest: str, *, model: str, scaling_factor: float, recipe: Recipe | None = None) -> bytes:
    """The file of `latents` (1, C, h, w), of the model of that name and digest; with the recipe, if they have one."""
    said = {"model": model, "model_digest": digest, "scaling_factor": str(scaling_factor)}
    if recipe is not None:
        said["recipe"] = json.dumps(recipe.to_dict(), allow_nan=False)
    return _in_order(save({latent_files.KEY: latents.contiguous()}, said))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library shuffles them, and equal latents make equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
