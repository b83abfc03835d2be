"""From latents to pictures: decode, in less memory if need be, and put edited pictures together. Opens no files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import autoencode
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.tiling import NOTES
from sdcli.errors import OutOfMemory
from sdcli.files import canvas, images
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.recipe.recipe import Recipe

RETRIED = "the VAE returned pixels that are not numbers, and was run again in float32"


@dataclass(frozen=True)
class Result:
    """A finished picture, 8-bit RGB, with the recipe that makes it again.

    `seconds` is the wall time from the context to the pixels, shared evenly among the pictures of a batch.
    """

    image: Image.Image
    recipe: Recipe
    seconds: float
    latents: Tensor
    """The latents before decoding, (1, C, h, w), float32, on the CPU, multiplied by the VAE's `scaling_factor`."""
    scaling_factor: float
    warnings: tuple[str, ...] = ()
    flat: str | None = None
    """The warning about a picture of a single colour, or nearly so; it is also in `warnings`."""
    batch: Mapping[str, Any] | None = None
    """For pictures made in one batch: all `seeds` in order, and the `index` of this one."""


@dataclass(frozen=True)
class Sampled:
    """Latents (B, C, h, w) that are to be decoded, with the warnings and the seconds until then."""

    latents: Tensor
    notes: tuple[str, ...]
    seconds: float


class Undecoded(OutOfMemory):
    """Memory ran out in the VAE; `sampled` can be decoded later."""

    def __init__(self, message: str, hint: str, sampled: Sampled) -> None:
        super().__init__(message, hint)
        self.sampled = sampled


@torch.inference_mode()
def finish(
    model: LatentDiffusionModel,
    recipes: Sequence[Recipe],
    sampled: Sampled,
    *,
    inputs: Inputs = NO_INPUTS,
    tiling: str | None = None,
) -> list[Result]:
    """Decode latents to the pictures of `recipes`.

    If decoding gives NaN for finite latents, that picture is decoded again in float32, with a warning. If memory runs
    out, the pictures are decoded one at a time or in tiles, with a warning unless the recipe asks for it. Raises
    InvalidPicture if the model still gives NaN, and Undecoded.
    """
    started, first, latents = time.perf_counter(), recipes[0], sampled.latents
    try:
        with memory_of(first):
            pixels, broken, way = autoencode.decode_that_fits(model, latents, tiling or first.execution.tiling)
    except OutOfMemory as error:
        raise Undecoded(error.message, error.hint, sampled) from error
    pictures = [images.to_image(each) for each in pixels]
    flatness = [images.flatness(each) for each in pictures]
    if inputs.image is not None and first.enlarging.enlarge is not None:
        box = (0, 0, *first.enlarging.target(*inputs.image.image.size))
        pictures = [each.crop(box) for each in pictures]
    elif inputs.image is not None:
        pictures = [canvas.put_back(each, inputs.image, recipes[0].initial.padding) for each in pictures]
    if first.references.match_reference:
        size = inputs.references[0].picture.size
        pictures = [each.resize(size, Image.Resampling.LANCZOS) if each.size != size else each for each in pictures]
    seconds = (sampled.seconds + time.perf_counter() - started) / len(recipes)
    seeds = [recipe.seed for recipe in recipes]
    scaling, on_cpu = model.latent_space.scaling_factor, latents.cpu()
    notes = (*model.notes, *sampled.notes, *_note_of(way, first))
    results = []
    for index, (picture, recipe) in enumerate(zip(pictures, recipes, strict=True)):
        flat = flatness[index]
        warnings = (*notes, RETRIED) if index in broken else notes
        batch = {"seeds": seeds, "index": index} if len(seeds) > 1 else None
        recorded = (*warnings, *filter(None, [flat]))
        z = on_cpu[index : index + 1]
        made = recipe.replace(tiling=way)
        results.append(Result(picture, made, seconds, z, scaling, recorded, flat, batch))
    return results


def _note_of(way: str, asked: Recipe) -> tuple[str, ...]:
    """Return the warning about decoding in another way than the recipe asks for, by itself or by its `memory`."""
    if way == asked.execution.tiling or asked.execution.memory == "low":
        return ()
    return (NOTES[way],)
