"""Enlarges pictures with a network that was trained to, in tiles that overlap. Opens no files.

Such a network (Wang et al. 2018, "ESRGAN", and its successors) makes every pixel several pixels at once. Its memory
grows with the picture, so that a large one is enlarged tile by tile. A tile sees more than it contributes: the outer
parts of an overlap, where the network misses its surroundings, are not used, and the inner parts are blended. Rows of
tiles are written as soon as they are complete, so that memory holds one row of tiles and the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion.spans import Span
from sdcli.diffusion.spans import spans as overlapping
from sdcli.errors import InvalidPicture
from sdcli.files import raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE = 256
"""Pixels of the side of a tile, before it is enlarged."""
OVERLAP = 32
"""Pixels that neighbouring tiles share at least."""
BLEND = 8
"""Pixels in the middle of an overlap in which two tiles are mixed; outside of it, only one of them is used."""
MIN_TILE = 2 * OVERLAP


@dataclass(frozen=True)
class Upscaler:
    """A network on `device` in `dtype`, which enlarges (1, C, H, W) in 0 … 1 to `scale` times the size.

    It takes RGB or grey pictures, 3 or 1 `channels`. One that must see the `whole` picture is given no tiles.
    """

    network: Any
    scale: int
    channels: int
    device: torch.device
    dtype: torch.dtype
    whole: bool = False


def spans(length: int, tile: int) -> tuple[Span, ...]:
    """Return the tiles of `tile` pixels along one side; 0 is all of it."""
    return overlapping(length, tile or length, OVERLAP, BLEND)


def count_tiles(size: tuple[int, int], tile: int) -> int:
    """Return the number of tiles of a picture of `size` (width, height); a `tile` of 0 is all of it."""
    return math.prod(len(spans(side, tile)) for side in size)


def sizes(size: tuple[int, int], target: tuple[int, int], scale: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the pictures that a network of `scale` takes, one after the other, to reach `target`.

    The first is `size` itself. A later one is the result before it, or a reduced one, if that is enough.
    """
    factor = max(wanted / own for wanted, own in zip(target, size, strict=True))
    taken, reached = [size], float(scale)
    while reached < factor:
        least = min(reached, factor / scale)
        taken.append((math.ceil(size[0] * least), math.ceil(size[1] * least)))
        reached = least * scale
    return tuple(taken)


@torch.inference_mode()
def enlarge(
    upscaler: Upscaler,
    pixels: NDArray[Any],
    tile: int = TILE,
    on_tile: Callable[[int], None] = lambda count: None,
) -> NDArray[Any]:
    """Enlarge `pixels` (H, W, C), RGB or grey with 8 or 16 bits, to `upscaler.scale` times the size, in the same dtype.

    `tile` is the side of a tile, 0 for all of the picture at once. `on_tile` is called with the number of finished
    tiles. Raises InvalidPicture if the network gives numbers that are not finite.
    """
    height, width, channels = pixels.shape
    scale, most = upscaler.scale, np.iinfo(pixels.dtype).max
    rows, columns = (spans(side, 0 if upscaler.whole else tile) for side in (height, width))
    made = np.empty((height * scale, width * scale, channels), pixels.dtype)
    carried: Tensor | None = None
    for row in rows:
        band = torch.zeros((row.high - row.low) * scale, width * scale, channels)
        for column in columns:
            seen = pixels[row.seen, column.seen]
            band[:, column.outer(scale)] += _weighted(upscaler, seen, row, column, most)
            on_tile(1)
        if carried is not None:
            band[: len(carried)] += carried
        fall = row.fall * scale
        carried = band[len(band) - fall :].clone() if fall else None
        finished = band[: len(band) - fall].mul_(most).round_().clamp_(0, most)
        top = row.low * scale
        made[top : top + len(finished)] = finished.numpy()
    return made


def to_size(
    upscaler: Upscaler | None,
    pixels: NDArray[Any],
    size: tuple[int, int],
    tile: int = TILE,
    on_tile: Callable[[int], None] = lambda count: None,
) -> NDArray[Any]:
    """Enlarge `pixels` (H, W, C) to `size` (width, height): by a network as often as needed and then Lanczos's filter.

    Without a network, only by the filter.
    """
    if upscaler is not None:
        for each in sizes((pixels.shape[1], pixels.shape[0]), size, upscaler.scale):
            pixels = enlarge(upscaler, raster.resized(pixels, each), tile, on_tile)
    return raster.resized(pixels, size)


def picture_to_size(upscaler: Upscaler | None, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Do what `to_size` does with an 8-bit RGB picture."""
    return Image.fromarray(to_size(upscaler, np.asarray(picture), size))


def _weighted(upscaler: Upscaler, seen: NDArray[Any], row: Span, column: Span, most: int) -> Tensor:
    """Return what a tile contributes, (h, w, C), multiplied by its shares."""
    scale = upscaler.scale
    tile = torch.from_numpy(seen.astype(np.float32) / most).permute(2, 0, 1)[None]
    enlarged = _run(upscaler, tile.to(upscaler.device, upscaler.dtype)).float().cpu()[0]
    if not enlarged.isfinite().all():
        raise InvalidPicture(
            "the upscaler produced pixels that are not numbers (NaN or infinity)",
            "try --dtype float32, because some upscalers overflow in float16; otherwise the weights are damaged",
        )
    shares = row.weights(scale)[:, None, None] * column.weights(scale)[None, :, None]
    return enlarged[:, row.inner(scale), column.inner(scale)].permute(1, 2, 0) * shares


def _run(upscaler: Upscaler, tile: Tensor) -> Tensor:
    """Call the network with a picture (1, C, h, w), grey as RGB or RGB channel by channel if it takes the other."""
    channels = tile.shape[1]
    if channels == upscaler.channels:
        made: Tensor = upscaler.network(tile)
        return made
    if upscaler.channels == 1:
        return torch.cat([upscaler.network(each) for each in tile.split(1, dim=1)], dim=1)
    grey: Tensor = upscaler.network(tile.expand(-1, upscaler.channels, -1, -1)).mean(1, keepdim=True)
    return grey


def total_tiles(taken: Sequence[tuple[int, int]], upscaler: Upscaler, tile: int) -> int:
    """Return the number of tiles of all pictures that the network takes."""
    return sum(count_tiles(each, 0 if upscaler.whole else tile) for each in taken)
