"""A scene segmentation as context: y is how much of each class there is in each of the latents' cells.

A U-Net trained for it takes y by concatenation (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", §4.3.2). The map is known whether or not there is a prompt: both halves of guidance get the same.
Knows nothing of files or of the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encode(indices: Tensor, classes: int, cell: int) -> Tensor:
    """y (B, K, h, w), float32, of maps of class indices (B, H, W), whole numbers 0 … K − 1, where K is `classes`.

    A cell is the `cell` × `cell` pixels that one latent stands for (8 for kit), and channel k of it the share, 0 … 1,
    of these pixels that belong to class k: the area average of the one-hot map. The channels sum to 1.

    Raises ValueError for sides that are no multiples of `cell`, RuntimeError for an index that is none.
    """
    batch, height, width = indices.shape
    if height % cell or width % cell:
        raise ValueError(f"a map of {width}×{height} pixels has no whole cells of {cell}")
    rows, columns = height // cell, width // cell
    cells = indices.long().reshape(batch, rows, cell, columns, cell).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    counts = torch.zeros((batch, rows * columns, classes), device=indices.device)
    counts.scatter_add_(2, cells, torch.ones((), device=indices.device).expand(cells.shape))
    return (counts / cell**2).transpose(1, 2).reshape(batch, classes, rows, columns)
