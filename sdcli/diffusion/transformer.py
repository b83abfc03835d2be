"""A class-conditional transformer as f(z, t, y), to be called as a U-Net is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """DiT (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers") with a U-Net's call and config.

    Of a transformer that predicts its variance too (`out_channels` twice the latents') it gives the noise alone,
    which is all that the schedulers take.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        dtype: torch.dtype = self.inner.dtype  # type: ignore[assignment]
        return dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """What a U-Net's config says, in its words: no added conditions, no embedded guidance, and the channels."""
        said: Mapping[str, Any] = self.inner.config  # type: ignore[assignment]
        channels = said["in_channels"]
        predicted = said["out_channels"] or channels
        none = {"addition_embed_type": None, "time_cond_proj_dim": None, "encoder_hid_dim": None}
        none["cross_attention_dim"] = None
        return {"in_channels": channels, "out_channels": channels if predicted == 2 * channels else predicted, **none}

    def forward(
        self, sample: Tensor, timestep: Tensor, *, class_labels: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The noise (B, C, h, w) in `sample`, square latents of that shape, at `timestep` (); `class_labels` (B,)."""
        timesteps = timestep.expand(len(sample))
        predicted = self.inner(sample, timestep=timesteps, class_labels=class_labels, return_dict=False)[0]
        return (predicted[:, : sample.shape[1]],)
