"""A loaded latent diffusion model. Knows nothing of files, prompts or pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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

    from sdcli.diffusion.facts import Facts
    from sdcli.diffusion.latent_space import LatentSpace
    from sdcli.diffusion.upscale import Upscaler
    from sdcli.files.palette import Class
    from sdcli.recipe.labels import Labels


@dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer: lower-cased text as byte-pair ids, and the special ids that frame a chunk of them.

    A thin layer over the `tokenizers` library: transformers' class around the same byte pairs warns of texts longer
    than a chunk, which are valid here, and reads no vocabulary but its own files. `pad_id` fills a chunk after
    `eos_id`; SDXL's second encoder and SD 2.x pad with 0, others with `eos_id` again. `max_length` includes the two
    special tokens (77). `words` are the ids of embeddings by their names, and `word_pattern` finds these in a text.
    """

    byte_pairs: tokenizers.Tokenizer
    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    words: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    word_pattern: re.Pattern[str] | None = None

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without special tokens; there can be any number."""
        return [token for word in self.split(text) for token in word]

    def split(self, text: str) -> Iterator[list[int]]:
        """Yield the ids of each word of `text`. CLIP marks the last token of a word with `</w>`."""
        end = 0
        for match in self.word_pattern.finditer(text) if self.word_pattern else ():
            yield from self._split_plain(text[end : match.start()])
            yield list(self.words[match[1].casefold()])
            end = match.end()
        yield from self._split_plain(text[end:])

    def _split_plain(self, text: str) -> Iterator[list[int]]:
        word: list[int] = []
        for token in self.byte_pairs.encode(text, add_special_tokens=False).ids:
            word.append(token)
            if (self.byte_pairs.id_to_token(token) or "").endswith("</w>"):
                yield word
                word = []
        if word:
            yield word


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder and its tokenizer: a `Tokenizer` for CLIP, that of transformers for T5 and Qwen.

    `image_processor` prepares the reference images that an encoder of texts and images sees (Qwen-Image-Edit).
    """

    tokenizer: Any
    model: Any
    image_processor: Any = None


@dataclass(frozen=True)
class ImageEncoder:
    """CLIP's vision tower (CLIPVisionModelWithProjection), and what prepares an image for it."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet, and its classes if it reads segmentation maps."""

    net: ControlNetModel
    classes: tuple[Class, ...] = ()


@dataclass(frozen=True)
class LatentDiffusionModel:
    """The parts of a latent diffusion model, ready to run on `device` in `dtype`.

    Only the VAE can be in float32 with another `dtype`: SDXL's overflows in float16 (`force_upcast`), and a VQModel
    searches the nearest of its codes. `text_encoders` has one (SD 1.x, 2.x, kit) or two (SDXL) encoders, in the order
    in which their hidden states are concatenated, and none if the model takes `labels`, which go through
    `class_embedder` or directly into `network`. `network` is f(z, t, y), a U-Net or a transformer, and `architecture`
    the name of the module that encodes y for it and calls it; that module reads `facts` and `latent_space` from the
    configs. `scheduler_config` is the training noise schedule in diffusers' key names. `classes` are those of the
    segmentation maps that the network takes. `controlnets` are by their names in the recipe. What a model can do is
    read from the configs of its parts, never from its name.
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
    refiner: LatentDiffusionModel | None = None
    """Another model that takes the last steps; it decodes nothing."""
    upscalers: Mapping[str, Upscaler] = field(default_factory=dict)
    """Networks that enlarge pictures between passes, by their names in the recipe."""
    image_encoder: ImageEncoder | None = None
    """Encodes images that are prompts, for the IP-Adapter in the network."""
    sees_patches: bool = False
    """Whether that adapter takes the encodings of all patches of an image, instead of that of the whole image."""
    labels: Labels | None = None
    class_embedder: torch.nn.Embedding | None = None
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The parameters of each part into which LoRAs are merged."""
    notes: tuple[str, ...] = ()
    """Warnings about what was loaded, which belong to each picture."""
    offload: str = "none"
    """Which weights wait in main memory until they are used on `device`: none, those of whole parts (`model`), or of
    layers (`group`)."""

    @property
    def storage(self) -> torch.device:
        """Where weights are while they are not used."""
        import torch

        return self.device if self.offload == "none" else torch.device("cpu")

    @property
    def has_text_encoders(self) -> bool:
        """Whether the weights of the text encoders are loaded; a model without any has them."""
        return not any(each.is_meta for encoder in self.text_encoders for each in encoder.model.parameters())

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per side of a latent: 8 for Stable Diffusion, 4 for LDM's VQ-f4."""
        return self.latent_space.vae_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of z: 4 for Stable Diffusion, 3 for LDM's VQ-f4."""
        return self.latent_space.channels

    @property
    def concat_channels(self) -> int:
        """Channels of context that are concatenated with the latents; 0 for text-to-image."""
        return self.facts.in_channels - self.latent_channels
