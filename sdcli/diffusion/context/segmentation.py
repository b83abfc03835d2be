"""A scene segmentation as context: y is how much of each class there is under each latent.

A U-Net trained for it takes y by concatenation (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", §4.3.2). The map is known whether or not there is a prompt: both halves of guidance get the same.
Knows nothing of files or of the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encode(indices: Tensor, classes: int, vae_scale_factor: int) -> Tensor:
    """y (B, K, h, w), float32, of maps of class indices (B, H, W), whole numbers 0 … K − 1, where K is `classes`.

    One latent stands for `vae_scale_factor` × `vae_scale_factor` pixels (8 for kit), and channel k is the share, 0 … 1,
    of these pixels that belong to class k: the area average of the one-hot map. The channels sum to 1.

    Raises ValueError for sides that are no multiples of `vae_scale_factor`, RuntimeError for an index of no class.
    """
    batch, height, width = indices.shape
    side = vae_scale_factor
    if height % side or width % side:
        raise ValueError(f"the sides of a map of {width}×{height} pixels are no multiples of {side}")
    rows, columns = height // side, width // side
    blocks = indices.long().reshape(batch, rows, side, columns, side).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    counts = torch.zeros((batch, rows * columns, classes), device=indices.device)
    counts.scatter_add_(2, blocks, torch.ones((), device=indices.device).expand(blocks.shape))
    return (counts / side**2).transpose(1, 2).reshape(batch, classes, rows, columns)
