"""A scene segmentation as context: y is the fraction of each class in the area of each latent.

A U-Net trained for it takes y by concatenation (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", §4.3.2). Both halves of guidance get the same map.
Knows nothing of files or of the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encode(indices: Tensor, classes: int, vae_scale_factor: int) -> Tensor:
    """Return y (B, K, h, w), float32, for maps of class indices (B, H, W), integers 0 … K − 1, where K is `classes`.

    A latent covers `vae_scale_factor` × `vae_scale_factor` pixels (8 for kit). Channel k is the fraction, 0 … 1, of
    these pixels that belong to class k: the area average of the one-hot map. The channels add up to 1.

    Raises ValueError for sides that are not multiples of `vae_scale_factor`, and RuntimeError for an invalid index.
    """
    batch, height, width = indices.shape
    side = vae_scale_factor
    if height % side or width % side:
        raise ValueError(f"the sides of a map of {width}×{height} pixels are not multiples of {side}")
    rows, columns = height // side, width // side
    blocks = indices.long().reshape(batch, rows, side, columns, side).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    counts = torch.zeros((batch, rows * columns, classes), device=indices.device)
    counts.scatter_add_(2, blocks, torch.ones((), device=indices.device).expand(blocks.shape))
    return (counts / side**2).transpose(1, 2).reshape(batch, classes, rows, columns)
