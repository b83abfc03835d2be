"""The way from a recipe to a picture: encode the context, draw noise, denoise it, decode. Knows nothing of files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sdcli import images, loading, schedulers
from sdcli.context import text
from sdcli.denoise import Step, denoise, initial_latents
from sdcli.errors import InvalidRecipe, OutOfMemory
from sdcli.model import LatentDiffusionModel
from sdcli.recipe import Recipe

DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Result:
    """One finished picture, 8-bit RGB, with the recipe that makes it again.

    `seconds` is the wall time from the context to the pixels, shared evenly among the pictures of a batch.
    """

    image: Image.Image
    recipe: Recipe
    seconds: float
    warnings: tuple[str, ...] = ()


def resolve_execution(recipe: Recipe) -> Recipe:
    """The recipe with `auto` replaced by what this machine runs: device, dtype and number of CPU threads.

    Raises InvalidRecipe for a device that is not there.
    """
    device = _device(recipe.execution.device)
    # Said each time: an earlier recipe may have changed it, and where nobody says, MKL may take fewer.
    torch.set_num_threads(recipe.execution.threads or DEFAULT_THREADS)
    dtype = _dtype(recipe.execution.dtype, device)
    return recipe.replace(device=device, dtype=dtype, threads=torch.get_num_threads())


def load(path: Path, recipe: Recipe, *, variant: str | None = None, family: str | None = None) -> LatentDiffusionModel:
    """The model at `path`, on the device and in the dtype of a recipe whose execution is resolved."""
    execution = recipe.execution
    with _memory_of(recipe):
        return loading.load(
            path,
            name=recipe.model,
            device=torch.device(execution.device),
            dtype=getattr(torch, execution.dtype),
            variant=variant,
            family=family,
        )


@torch.inference_mode()
def run(
    model: LatentDiffusionModel, recipes: Sequence[Recipe], on_step: Callable[[Step], None] = lambda step: None
) -> list[Result]:
    """Make the pictures of `recipes`, which differ in nothing but their seeds, in one batch.

    Raises InvalidPicture where the model gives NaN, OutOfMemory where the device has too little.
    """
    started = time.perf_counter()
    with _memory_of(recipes[0]):
        pixels = decode(model, sample(model, recipes, on_step))
    pictures = [images.to_image(each) for each in pixels]
    seconds = (time.perf_counter() - started) / len(recipes)
    return [Result(*made, seconds) for made in zip(pictures, recipes, strict=True)]


def sample(
    model: LatentDiffusionModel, recipes: Sequence[Recipe], on_step: Callable[[Step], None] = lambda step: None
) -> Tensor:
    """f(f(…f(N, T)…), 1): the latents (B, C, h, w), float32, of a batch of recipes that differ in their seeds."""
    recipe = recipes[0]
    condition, sampling = recipe.condition, recipe.sampling
    seeds = [each.seed for each in recipes]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    context = text.encode(
        model,
        condition.prompt,
        condition.negative_prompt,
        guidance=sampling.guidance_scale > 1,
        clip_skip=condition.clip_skip,
        prompt_weights=condition.prompt_weights,
        width=recipe.width,
        height=recipe.height,
        guidance_scale=sampling.guidance_scale,
    )
    scheduler = schedulers.make(sampling.scheduler, sampling.sigmas, model.scheduler_config, noise_seeds=seeds)
    scheduler.set_timesteps(sampling.steps)
    size = recipe.height // model.vae_scale_factor, recipe.width // model.vae_scale_factor
    latents = initial_latents(generators, (model.latent_channels, *size), scheduler, model.device)
    return denoise(
        model.unet,
        scheduler,
        latents,
        context,
        timesteps=scheduler.timesteps,
        guidance_scale=sampling.guidance_scale,
        guidance_rescale=sampling.guidance_rescale,
        eta=sampling.eta,
        generators=generators,
        on_step=on_step,
    )


def decode(model: LatentDiffusionModel, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in −1 … 1 from latents; raises InvalidPicture where they are none."""
    scaled = latents / model.vae.config["scaling_factor"]
    pixels: Tensor = model.vae.decode(scaled.to(model.vae.dtype), return_dict=False)[0].float().cpu()
    images.check_picture(pixels)
    return pixels


def _device(asked: str) -> str:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present[asked]:
        here = ", ".join(device for device, found in present.items() if found)
        raise InvalidRecipe(f"there is no {asked} device here", f"choose --device auto or {here}", "device")
    return asked


def _dtype(asked: str, device: str) -> str:
    """bfloat16 where the hardware computes in it, for it halves the memory and keeps float32's range."""
    if asked != "auto":
        return asked
    if device == "mps":
        return "float16"
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


@contextmanager
def _memory_of(recipe: Recipe) -> Iterator[None]:
    """Turn an allocator's complaint, which torch words as a RuntimeError on the CPU, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        starved = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not starved:
            raise
        raise OutOfMemory(
            f"not enough memory for {recipe.width}×{recipe.height} pixels in {recipe.execution.dtype}",
            "make the picture smaller with -W and -H, or take --batch-size 1 or --dtype bfloat16",
        ) from error
