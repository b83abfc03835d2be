"""Facts about a model, from the configs of its network and autoencoder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.diffusion.latent_space import LatentSpace


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning and the pipeline need to know of a model; an architecture reads it. Sizes in pixels."""

    native_size: int
    size_multiple: int
    in_channels: int
    """Channels of the network's input: the latents and concatenated channels, before any packing."""
    latent_space: LatentSpace
    guidance_distilled: bool = False
    """Whether the network takes the guidance scale as an input (LCM) and has no unconditional half."""
    knows_sizes: bool = False
    """Whether the network takes the size of the picture as an input (SDXL)."""
    square_only: bool = False
    takes_controlnets: bool = False
