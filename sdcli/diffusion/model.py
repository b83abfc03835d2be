"""What a loaded latent diffusion model is. Knows nothing of files, prompts or pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers
    import torch
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        ControlNetModel,
        DiTTransformer2DModel,
        UNet2DConditionModel,
        VQModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from sdcli.diffusion.facts import Facts
    from sdcli.diffusion.latent_space import LatentSpace
    from sdcli.files.palette import Class
    from sdcli.recipe.labels import Labels


@dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer: lower-cased text as byte-pair ids, and the special ids that frame a chunk of them.

    A thin hold on the `tokenizers` library: transformers' class around the same byte pairs warns of texts longer
    than a chunk, which are no mistake here, and reads no vocabulary but its own files. `pad_id` fills a chunk
    after `eos_id`; SDXL's second encoder and SD 2.x pad with 0, others with `eos_id` again. `max_length` counts the
    two special tokens in (77).
    """

    byte_pairs: tokenizers.Tokenizer
    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, however many, without special tokens around them."""
        return self.byte_pairs.encode(text, add_special_tokens=False).ids


@dataclass(frozen=True)
class TextEncoder:
    """One CLIP text encoder beside the tokenizer it was trained with."""

    tokenizer: Tokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet, and the classes whose colours it reads, if it reads maps."""

    net: ControlNetModel
    classes: tuple[Class, ...] = ()


@dataclass(frozen=True)
class LatentDiffusionModel:
    """The parts of a latent diffusion model, ready to run on `device` in `dtype`.

    The VAE alone may be in float32 where `dtype` is not: SDXL's overflows in float16 (`force_upcast`), and a VQModel
    looks for the nearest of its codes. `text_encoders` holds one (SD 1.x, 2.x, kit) or two (SDXL) encoders, in the
    order in which their hidden states are concatenated, and none where the model takes `labels`; these go through
    `class_embedder`, or into `network` as they are. `network` is f(z, t, y), a U-Net or a transformer, and
    `architecture` the name of the module that encodes y for it and calls it; `facts` and `latent_space` are what that
    module reads from the configs. `scheduler_config` is the training noise schedule in diffusers' key names. `classes`
    are those of the maps that the network takes. `controlnets` stand beside it, by the names that a recipe calls them.
    Everything a model can do is read from the configs of its parts, never from its name.
    """

    name: str
    vae: AutoencoderKL | AutoencoderTiny | VQModel
    text_encoders: tuple[TextEncoder, ...]
    network: UNet2DConditionModel | DiTTransformer2DModel
    architecture: str
    facts: Facts
    latent_space: LatentSpace
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    force_zeros_for_empty_prompt: bool = False
    classes: tuple[Class, ...] = ()
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    labels: Labels | None = None
    class_embedder: torch.nn.Embedding | None = None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side that one latent stands for: 8 for every Stable Diffusion, 4 for LDM's VQ-f4."""
        return self.latent_space.vae_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of z: 4 for every Stable Diffusion, 3 for LDM's VQ-f4."""
        return self.latent_space.channels

    @property
    def concat_channels(self) -> int:
        """Channels of context that the network takes beside the latents, 0 for plain text-to-image."""
        return self.facts.in_channels - self.latent_channels
