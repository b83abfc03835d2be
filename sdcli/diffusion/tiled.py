"""f(z, t) of pictures that are larger than a network can take, in tiles that overlap.

Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation", §4: in every evaluation
the network sees each tile of z, and its predictions are blended. The loop, its noise and its scheduler see one picture,
so that tiles agree where they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcli.diffusion.denoise import Denoiser, Evaluation
from sdcli.diffusion.spans import Tile, tiles
from sdcli.recipe.parts import OVERLAP

if TYPE_CHECKING:
    from sdcli.diffusion.latent_space import LatentSpace
    from sdcli.recipe.recipe import Recipe


def tiles_of(recipe: Recipe, space: LatentSpace) -> tuple[Tile, ...]:
    """Return the tiles of the latents; one if the network sees all of them. Half of an overlap is blended."""
    (_, height, width), (_, high, wide) = (
        space.shape(*each) for each in ((recipe.width, recipe.height), recipe.seen_at_once)
    )
    overlap = max(high, wide) // OVERLAP
    return tiles((height, width), (high, wide), overlap, overlap // 2)


def crop(values: Tensor, tile: Tile, scale: int = 1) -> Tensor:
    """Return what a tile sees of `values` (…, h, w), which have `scale` numbers for each latent."""
    rows, columns = (slice(each.start * scale, each.end * scale) for each in tile)
    return values[..., rows, columns]


def blended(denoisers: Sequence[Denoiser], of: Sequence[Tile]) -> Denoiser:
    """Return f(z, t) that calls one of `denoisers` with each tile of z, and blends what they return."""
    if len(of) == 1:
        return denoisers[0]

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        result = torch.zeros_like(latents)
        for tile, each in zip(of, denoisers, strict=True):
            rows, columns = tile
            prediction = each(crop(latents, tile), timestep, evaluation)[..., rows.inner(), columns.inner()]
            shares = (rows.weights()[:, None] * columns.weights()).to(prediction)
            result[..., rows.outer(), columns.outer()] += prediction * shares
        return result

    return denoiser
