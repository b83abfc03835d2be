"""Decoding in slices and in tiles: what fits into less memory, and what it changes. Imports no torch at the top.

A tile is decoded by itself and blended with its neighbours. The norms of its layers see the tile alone, so pixels
differ slightly from those of the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TILE = 512
"""Pixels of a tile's side."""
OVERLAP = 0.25
"""The share of a tile that is blended with the next one."""
_WITHOUT = ("VQModel",)

NOTES: Mapping[str, str] = {
    "slices": "the pictures were decoded one at a time to fit into memory, which can change pixels slightly",
    "tiles": "the picture was decoded in tiles to fit into memory, which changes pixels slightly",
}
"""The warnings about pictures that were decoded in another way than their recipe had asked for."""


def ways(first: str, size: tuple[int, int], batch: int, vae_class: str) -> tuple[str, ...]:
    """Return the ways to decode `batch` pictures of `size`, from `first` to those that take less memory.

    Slices have no effect on a single picture, nor tiles on a picture that is no larger than a tile or with a VAE that
    has none. The first is always tried.
    """
    possible = {"off": True, "slices": batch > 1, "tiles": has_tiles(size, vae_class)}
    after = list(possible)[list(possible).index(first) + 1 :]
    return (first, *(each for each in after if possible[each]))


def has_tiles(size: tuple[int, int], vae_class: str) -> bool:
    """Whether pictures of `size` (width, height) are decoded in more than one tile by a VAE of this class."""
    return max(size) > TILE and vae_class not in _WITHOUT


@contextmanager
def tiles(vae: Any, pixels_per_latent: int) -> Iterator[None]:
    """Let `vae` decode in tiles of `TILE` pixels, each of which is `pixels_per_latent` times as wide as its latents."""
    if not hasattr(vae, "use_tiling"):  # a VQModel
        yield
        return
    ours = {"use_tiling": True, **_sizes(vae, pixels_per_latent)}
    before = {key: getattr(vae, key) for key in ours}
    try:
        for key, value in ours.items():
            setattr(vae, key, value)
        yield
    finally:
        for key, value in before.items():
            setattr(vae, key, value)


def _sizes(vae: Any, pixels_per_latent: int) -> dict[str, Any]:
    """Return the attributes of diffusers' autoencoders that set the size of tiles; those of videos have other names."""
    if hasattr(vae, "tile_sample_min_height"):
        stride = TILE - int(TILE * OVERLAP)
        sides = {f"tile_sample_min_{side}": TILE for side in ("height", "width")}
        return sides | {f"tile_sample_stride_{side}": stride for side in ("height", "width")}
    sizes = {"tile_sample_min_size": TILE, "tile_latent_min_size": TILE // pixels_per_latent}
    return {**sizes, "tile_overlap_factor": OVERLAP}
