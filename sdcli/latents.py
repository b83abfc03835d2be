"""z(x) as a file: latents of one picture in `.safetensors`, and the way from a picture to them and back.

The tensor `latents`, (1, C, h, w) in float32, is scaled by the VAE's scaling_factor: z as the U-Net sees it, which is
also what diffusers' pipelines return for `output_type="latent"`. The file's metadata say `model`, `model_digest` and
`scaling_factor`. Knows nothing of prompts or of the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdcli import images, pipeline
from sdcli.errors import InputError
from sdcli.metadata import file_bytes
from sdcli.model import LatentDiffusionModel

KEY = "latents"


@dataclass(frozen=True)
class Decoded:
    """A picture, and the shape (1, C, h, w) of the latents that it was decoded from."""

    image: Image.Image
    shape: tuple[int, ...]


@torch.inference_mode()
def encode(model: LatentDiffusionModel, picture: Image.Image, name: str) -> Tensor:
    """z(x), scaled, (1, C, h, w) in float32, of an upright picture; what is transparent in it shows white.

    It is the mean of the encoder's Gaussian: nothing is drawn, and the same picture gives the same latents. Raises
    InputError, naming the nearest sizes, for sides that are no multiples of a latent's.
    """
    cell = model.vae_scale_factor
    if picture.width % cell or picture.height % cell:
        below = f"{picture.width // cell * cell}×{picture.height // cell * cell}"
        above = f"{-(-picture.width // cell) * cell}×{-(-picture.height // cell) * cell}"
        raise InputError(
            f"{name} is {picture.width}×{picture.height}, and this model's latents stand for {cell} pixels a side",
            f"crop or scale it; the nearest sizes are {below} and {above}",
        )
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    encoded = model.vae.encode(images.to_pixels(picture).to(model.device, model.vae.dtype))
    mean: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    scaled: Tensor = mean.float().cpu() * model.vae.config["scaling_factor"]
    return scaled


@torch.inference_mode()
def decode(model: LatentDiffusionModel, file: str) -> Decoded:
    """The picture of the latents in `file`. Raises what `read` raises, and InvalidPicture where the VAE gives NaN."""
    latents = read(model, file)
    pixels = pipeline.decode(model, latents.to(model.device))
    images.check_picture(pixels)
    return Decoded(images.to_image(pixels[0]), tuple(latents.shape))


def file_of(model: LatentDiffusionModel, latents: Tensor, digest: str) -> bytes:
    """The file that holds `latents` of a model with this digest."""
    said = {"model": model.name, "model_digest": digest, "scaling_factor": str(model.vae.config["scaling_factor"])}
    return save({KEY: latents.contiguous()}, said)


def read(model: LatentDiffusionModel, file: str) -> Tensor:
    """The latents in `file`, (1, C, h, w) in float32.

    Raises InputError where it is no such file, holds numbers that are none, or latents of another shape or scale than
    this model's.
    """
    file_bytes(file)  # the errors of a missing or unreadable file
    try:
        with safe_open(Path(file), framework="pt") as opened:
            keys, said = list(opened.keys()), opened.metadata() or {}
            latents = opened.get_tensor(KEY) if KEY in keys else None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is no safetensors file, or is cut short: {error}", _HINT) from error
    if latents is None:
        raise InputError(f"{file} holds no tensor {KEY!r}, only {', '.join(keys[:3]) or 'nothing'}", _HINT)
    channels, shape = model.latent_channels, list(latents.shape)
    if latents.ndim != 4 or shape[:2] != [1, channels] or 0 in shape or not latents.is_floating_point():
        raise InputError(
            f"{file} holds {latents.dtype} latents of the shape {shape}, and this model's are [1, {channels}, h, w]",
            f"choose the model that made them with -m{_said_by(said)}",
        )
    if not latents.isfinite().all():
        raise InputError(f"{file} holds latents that are not numbers (NaN or infinity)", _HINT)
    scaling, recorded = model.vae.config["scaling_factor"], said.get("scaling_factor", "")
    if recorded and recorded != str(scaling):
        raise InputError(
            f"{file} holds latents scaled by {recorded}, and this model scales by {scaling}",
            f"choose the model that made them with -m{_said_by(said)}",
        )
    read: Tensor = latents.float()
    return read


def _said_by(metadata: dict[str, str]) -> str:
    """` NAME`, of the model that a file says it is of, or nothing."""
    return f" {metadata['model']}" if metadata.get("model") else ""


_HINT = "give a file that sdcli encode has written"
