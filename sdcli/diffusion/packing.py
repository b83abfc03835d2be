"""Latents as sequences of tokens, as transformers take them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Convert latents (B, C, h, w) to tokens (B, h/2 · w/2, 4C), one for each square of 2 × 2."""
    batch, channels, height, width = latents.shape
    tokens = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Convert tokens (B, h/2 · w/2, 4C) to latents (B, C, h, w) of `height` × `width`."""
    batch, _, channels = tokens.shape
    latents = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(batch, channels // 4, height, width)


def positions(height: int, width: int, place: float = 0.0) -> Tensor:
    """Return the positions (h · w, 3) of an image's tokens: its place among the images, row, column."""
    import torch

    return torch.cartesian_prod(torch.tensor([place]), torch.arange(float(height)), torch.arange(float(width)))


def flatten(latents: Tensor) -> Tensor:
    """Convert latents (B, C, h, w) to tokens (B, h · w, C)."""
    return latents.flatten(2).transpose(1, 2)


def unflatten(tokens: Tensor, height: int, width: int) -> Tensor:
    """Convert tokens (B, h · w, C) to latents (B, C, h, w)."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, height, width)
