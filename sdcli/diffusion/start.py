"""Where the loop starts: pure noise, or z(x) of an image, of a file or of the pass before, with noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import autoencode, upscale
from sdcli.diffusion.context import masked_image, segmentation
from sdcli.diffusion.denoise import start_at
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import add_noise, draw_noise, initial_latents
from sdcli.files import canvas, images, maps
from sdcli.files.inputs import Inputs
from sdcli.recipe import checks
from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """The start of the loop: latents, the remaining timesteps, and known parts of the picture."""

    latents: Tensor
    timesteps: Tensor
    concat_latents: Tensor | None = None
    constrain: Callable[[Tensor, Tensor | None], Tensor] = lambda latents, timestep: latents


def start_of(
    model: LatentDiffusionModel,
    recipe: Recipe,
    scheduler: Any,
    generators: Sequence[torch.Generator],
    inputs: Inputs,
) -> Start:
    """Start from pure noise, or from z(x) of an image or a file with noise for `strength` of the steps.

    The generators are used in diffusers' order: the image's latents, noise, the masked image's latents.
    """
    given = inputs.image
    masked = given is not None and given.mask is not None
    mapped = recipe.layout.segmentation_map is not None
    in_channels = model.latent_channels + model.concat_channels
    checks.check_channels(in_channels, model.latent_channels, len(model.classes), masked=masked, mapped=mapped)
    shape = model.latent_space.shape(recipe.width, recipe.height)
    if given is None and inputs.latents is None:
        latents = initial_latents(generators, shape, scheduler, model.device)
        return Start(latents, scheduler.timesteps, _map_channels(model, recipe, inputs))
    strength = 1.0 if recipe.initial.strength is None else recipe.initial.strength
    timesteps = start_at(scheduler, strength)
    if given is None:
        assert inputs.latents is not None
        known = torch.from_numpy(inputs.latents.latents).to(model.device).expand(len(generators), -1, -1, -1)
        noise = draw_noise(generators, shape).to(model.device)
        return Start(add_noise(scheduler, known, noise, timesteps[:1]), timesteps)
    size, padding = (recipe.width, recipe.height), recipe.initial.padding
    pixels = images.to_pixels(_enlarged_image(model, recipe, given) or canvas.working(given, padding, size))
    from_noise = masked and strength == 1
    image_latents = None
    if not (from_noise and model.concat_channels):
        in_tiles = recipe.enlarging.tile is not None
        image_latents = masked_image.encode_image(model, pixels, generators, tiled=in_tiles)
    noise = draw_noise(generators, shape).to(model.device)
    if from_noise:
        latents = noise * scheduler.init_noise_sigma
    else:
        assert image_latents is not None
        latents = add_noise(scheduler, image_latents, noise, timesteps[:1])
    if not masked:
        return Start(latents, timesteps)
    mask = images.to_pixels(canvas.working_mask(given, padding, size, model.vae_scale_factor))
    if model.concat_channels:
        return Start(latents, timesteps, masked_image.encode(model, pixels, mask, generators))
    assert image_latents is not None
    draw_noise(generators, shape)  # diffusers encodes the masked image here too, for stochastic steps to come
    on_grid = masked_image.mask_latents(model, mask)
    return Start(latents, timesteps, None, masked_image.hold_known(scheduler, image_latents, noise, on_grid))


def _enlarged_image(model: LatentDiffusionModel, recipe: Recipe, given: canvas.InitialImage) -> Image.Image | None:
    """Return the image, enlarged and extended to the working size, or None if it is not enlarged."""
    enlarging = recipe.enlarging
    if enlarging.enlarge is None:
        return None
    by = None if enlarging.network is None else model.upscalers[enlarging.network]
    target = enlarging.target(*given.image.size)
    larger = upscale.picture_to_size(by, canvas.fitted(canvas.opaque(given.image), target), target)
    left = recipe.width - target[0], recipe.height - target[1]
    return canvas.extend(larger, (0, 0, *left))[0] if any(left) else larger


def enlarged(
    model: LatentDiffusionModel,
    latents: Tensor,
    size: Sequence[int],
    upscaler: str,
    generators: Sequence[torch.Generator],
    way: str,
) -> Tensor:
    """Resize latents (B, C, h, w) to `size` (h, w): bilinearly, or decoded, enlarged, and encoded again.

    `way` is that of a recipe's `tiling`.
    """
    if latents.shape[2:] == size:
        return latents
    if upscaler == "latent":
        return torch.nn.functional.interpolate(latents, tuple(size), mode="bilinear")
    pixels, _ = autoencode.decode_finite(model, latents, way)
    height, width = (side * model.vae_scale_factor for side in size)
    by = None if upscaler == "lanczos" else model.upscalers[upscaler]
    pictures = [upscale.picture_to_size(by, images.to_image(each), (width, height)) for each in pixels]
    encoded = [
        masked_image.encode_image(model, images.to_pixels(picture), [generator])
        for picture, generator in zip(pictures, generators, strict=True)
    ]
    return torch.cat(encoded)


def continue_from(
    begun: Start, known: Tensor, scheduler: Any, generators: Sequence[torch.Generator], strength: float | None
) -> Start:
    """Replace the latents of `begun` by `known`, those of the pass before in its size, with new noise."""
    noise = draw_noise(generators, known.shape[1:]).to(known.device)
    timesteps = start_at(scheduler, 1.0 if strength is None else strength)
    return replace(begun, latents=add_noise(scheduler, known, noise, timesteps[:1]), timesteps=timesteps)


def _map_channels(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs) -> Tensor | None:
    """Return the channels of a segmentation map, if the U-Net takes them."""
    if not model.classes:
        return None
    indices = maps.fit(inputs.maps[model.classes].indices, (recipe.width, recipe.height))
    channels = segmentation.encode(torch.from_numpy(indices)[None], len(model.classes), model.vae_scale_factor)
    return channels.to(model.device)
