"""Facts about a model, from the configs of its network and autoencoder. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.diffusion.latent_space import LatentSpace


@dataclass(frozen=True)
class Prompts:
    """How a model takes prompts."""

    most_tokens: int | None = None
    """The number of tokens, including those of a template, at which a prompt is cut; None if any length is used."""
    second: bool = False
    """Whether a second text encoder can have a text of its own, `prompt_2`."""
    syntax: bool = True
    """Whether weights, BREAK, embeddings and `clip_skip` work, as they do where CLIP alone encodes prompts."""


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
    takes_aesthetics: bool = False
    """Whether the network takes an aesthetic score instead of the size of the picture (SDXL's refiner)."""
    square_only: bool = False
    takes_controlnets: bool = False
    cache: str | None = None
    """The method of `cache` that works with the network, in sdcli/recipe/cache.py."""
    merges_tokens: bool = False
    """Whether `token_merging` works with the network."""
    unguided: bool = False
    """Whether the model was distilled to make pictures without guidance, and takes no guidance scale."""
    guided_above: float = 1.0
    """The guidance scale up to which there is no guidance."""
    prompts: Prompts = Prompts()
    least_references: int = 0
    most_references: int = 0
    """How many reference images the model takes."""
    true_cfg: bool = False
    """Whether a negative prompt works through `true_cfg_scale`."""
    skippable_layers: int = 0
    """How many layers the network has that `skip_layer_guidance` can leave out; 0 if it has no such guidance."""
    is_flow: bool = False
    """Whether the model was trained by flow matching."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the scheduler's config that the model has elsewhere, and that replace those of the config."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of a recipe that suit every model of the architecture, where models.toml has no entry for it."""

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether the unconditional prediction, which a negative prompt changes, is used."""
        return not (self.guidance_distilled or self.unguided) and guidance_scale > self.guided_above
