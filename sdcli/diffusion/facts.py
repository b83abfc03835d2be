"""What the configs of a network and its autoencoder say of the pictures they make. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.diffusion.latent_space import LatentSpace


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning and the pipeline need to know of a model; an architecture reads it. Sizes in pixels."""

    native_size: int
    size_multiple: int
    in_channels: int
    """Channels of the latents and of what the network takes beside them, before any packing."""
    latent_space: LatentSpace
    guidance_distilled: bool = False
    """Whether the network takes its guidance scale as an input (LCM), and no unconditional half."""
    knows_sizes: bool = False
    """Whether the network is told the size of the picture (SDXL)."""
    square_only: bool = False
    takes_controlnets: bool = False
