"""Tiles that overlap: where they are along one axis, and how they are blended. Imports no torch at the top."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A tile along one axis: it sees `start` … `end`, and contributes to `low` … `high`.

    It is mixed with its neighbours in the first `rise` and the last `fall` of these places.
    """

    start: int
    end: int
    low: int
    high: int
    rise: int = 0
    fall: int = 0

    def weights(self, scale: int = 1) -> Tensor:
        """Return the shares, 0 … 1, of the places `low` … `high`, each `scale` times; the neighbours have the rest."""
        import torch

        shares = torch.ones((self.high - self.low) * scale)
        rise, fall = self.rise * scale, self.fall * scale
        if rise:
            shares[:rise] = (torch.arange(rise) + 0.5) / rise
        if fall:
            shares[-fall:] = 1 - (torch.arange(fall) + 0.5) / fall
        return shares

    def inner(self, scale: int = 1) -> slice:
        """Return the part of the tile that contributes."""
        return slice((self.low - self.start) * scale, (self.high - self.start) * scale)

    def outer(self, scale: int = 1) -> slice:
        """Return where that part is in the whole."""
        return slice(self.low * scale, self.high * scale)

    @property
    def seen(self) -> slice:
        """Return where the tile is in the whole."""
        return slice(self.start, self.end)


def spans(length: int, tile: int, overlap: int, blend: int) -> tuple[Span, ...]:
    """Return tiles of `tile` places that cover `length`, evenly spaced, which overlap by at least `overlap`.

    `blend` places in the middle of an overlap are mixed.
    """
    if length <= tile:
        return (Span(0, length, 0, length),)
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(place * (length - tile) / (count - 1)) for place in range(count)]
    half = blend // 2
    middles = [(start + tile + after) // 2 for start, after in pairwise(starts)]
    lows, highs = [0, *(each - half for each in middles)], [*(each + half for each in middles), length]
    return tuple(
        Span(start, start + tile, low, high, 2 * half if index else 0, 2 * half if index < count - 1 else 0)
        for index, (start, low, high) in enumerate(zip(starts, lows, highs, strict=True))
    )


Tile = tuple[Span, Span]
"""A tile of a picture: its rows and its columns."""


def tiles(size: tuple[int, int], tile: tuple[int, int], overlap: int, blend: int) -> tuple[Tile, ...]:
    """Return tiles (height, width) that cover `size` (height, width), row by row."""
    rows, columns = (spans(side, each, overlap, blend) for side, each in zip(size, tile, strict=True))
    return tuple(product(rows, columns))
