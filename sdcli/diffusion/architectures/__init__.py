"""The architectures of f(z, t, y): one module for each in this package, and a row in the table. Imports no torch.

To add one, add a module with the functions of `Architecture` and a row. The loop, the contexts of images, masks and
latents, the schedulers and the autoencoder do not change.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from sdcli.diffusion.facts import Facts
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.errors import ModelError
from sdcli.recipe.schedulers import predicts_flow

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from sdcli.diffusion.context import Context
    from sdcli.diffusion.denoise import Denoiser
    from sdcli.diffusion.guidance import Guidance
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.recipe.parts import Condition


class Architecture(Protocol):
    """The functions of a module. Modules import torch only inside `encode` and `bind`: planning uses `facts`."""

    def facts(self, network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
        """Read the two configs and model_index.json. Raises KeyError, TypeError or ValueError if they are invalid."""

    def activations(self, network: Mapping[str, Any], latents: int) -> int:
        """About how many numbers the network keeps at once for one picture of `latents` places, by its config."""

    def latent_space(self, vae: Any) -> LatentSpace:
        """Return the latent space of a loaded autoencoder."""

    def misfit(self, model: LatentDiffusionModel) -> str | None:
        """Return how the parts of the model do not fit each other, or None."""

    def encode(
        self,
        model: LatentDiffusionModel,
        condition: Condition,
        size: tuple[int, int],
        guidance: Guidance,
        pictures: Sequence[Picture] = (),
    ) -> Context:
        """Encode y for one picture (B = 1) of `size` (width, height) pixels, without channels to concatenate.

        `pictures` are reference images, RGB, for text encoders that see them. Raises InvalidRecipe for a condition that
        the model does not take.
        """

    def reference_latents(self, model: LatentDiffusionModel, picture: Picture) -> Tensor:
        """Encode a reference image, RGB, at a size that the model takes, to latents (1, C, h, w).

        Only in modules whose facts have `most_references`.
        """

    def bind(self, network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
        """Return f(z, t) for `batch` pictures: the network with y and guidance bound.

        Everything specific to a network is in this function: the halves of guidance, concatenated channels, packing to
        tokens, the meaning of t, the sign of the prediction.
        """

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        """Set the scheduler's timesteps for latents of `shape` (C, h, w), with any shift of the architecture."""


@dataclass(frozen=True)
class Row:
    """An architecture: how its models are recognised, and their classes. Its module has the name of the row.

    `part` is the network's name in model_index.json. `networks` are the class names that it can have there, each with
    the location of diffusers' class, `module:class`. `pipelines` are the possible pipelines, with the parts that they
    require. `components` are the classes that the other parts can have. With `flow`, the models are trained by flow
    matching.
    """

    part: str
    networks: Mapping[str, str]
    pipelines: Mapping[str, tuple[str, ...]]
    components: Mapping[str, tuple[str, ...]]
    flow: bool = False


_CLIP, _T5 = ("CLIPTextModel", "CLIPTextModelWithProjection"), ("T5EncoderModel",)
_GEMMA = ("Gemma2Model", "Gemma2ForCausalLM")
_QWEN3, _QWEN_VL = ("Qwen3Model", "Qwen3ForCausalLM"), ("Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration")
_QWEN3_VL = ("Qwen3VLModel", "Qwen3VLForConditionalGeneration")
_VAE = ("AutoencoderKL", "AutoencoderTiny")
_QWEN_PIPELINES = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageEditPlusPipeline")
_LDM = {"vae": (*_VAE, "VQModel"), "text_encoder": _CLIP, "text_encoder_2": _CLIP, "class_embedder": ("Embedding",)}


def _transformer(
    class_name: str,
    module: str,
    pipelines: tuple[str, ...],
    encoders: tuple[tuple[str, ...], ...],
    vae: tuple[str, ...] = _VAE,
    optional: int = 0,
    flow: bool = True,
) -> Row:
    """Return the row of a transformer with text encoders, most of them trained by flow matching.

    `encoders` are the classes of each text encoder; the last `optional` ones can be absent.
    """
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    parts = ("transformer", "vae", *names[: len(encoders) - optional])
    networks = {class_name: f"diffusers.models.transformers.{module}:{class_name}"}
    components = {"vae": vae, **dict(zip(names, encoders, strict=False))}
    return Row("transformer", networks, dict.fromkeys(pipelines, parts), components, flow)


_TEXT_TO_IMAGE = ("unet", "vae", "text_encoder")
_DIT = "diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel"

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "unet": Row(
            "unet",
            {"UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel"},
            {
                "StableDiffusionPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionImg2ImgPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionInpaintPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLImg2ImgPipeline": _TEXT_TO_IMAGE,
                "StableDiffusionXLInpaintPipeline": _TEXT_TO_IMAGE,
                "LatentConsistencyModelPipeline": _TEXT_TO_IMAGE,
                "LatentConsistencyModelImg2ImgPipeline": _TEXT_TO_IMAGE,
                "LDMClassToImagePipeline": ("unet", "vae", "class_embedder"),  # sdcli's own name
            },
            _LDM,
        ),
        # before diffusers 0.29 a DiT was a Transformer2DModel
        "dit": Row(
            "transformer",
            {"DiTTransformer2DModel": _DIT, "Transformer2DModel": _DIT},
            {"DiTPipeline": ("transformer", "vae")},
            _LDM,
        ),
        "z_image": _transformer(
            "ZImageTransformer2DModel", "transformer_z_image", ("ZImagePipeline", "ZImageImg2ImgPipeline"), (_QWEN3,)
        ),
        "flux": _transformer(
            "FluxTransformer2DModel",
            "transformer_flux",
            ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline"),
            (_CLIP, _T5),
        ),
        "flux2": _transformer(
            *("Flux2Transformer2DModel", "transformer_flux2", ("Flux2KleinPipeline",), (_QWEN3,)),
            vae=("AutoencoderKLFlux2",),
        ),
        "sd3": _transformer(
            *("SD3Transformer2DModel", "transformer_sd3"),
            ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
            (_CLIP[1:], _CLIP[1:], _T5),
            optional=1,
        ),
        "qwen_image": _transformer(
            *("QwenImageTransformer2DModel", "transformer_qwenimage", _QWEN_PIPELINES, (_QWEN_VL,)),
            vae=("AutoencoderKLQwenImage",),
        ),
        "qwen_image21": _transformer(
            *("QwenImage21Transformer2DModel", "transformer_qwenimage21", ("QwenImage21Pipeline",), (_QWEN3_VL,)),
            vae=("AutoencoderKLQwenImage21",),
        ),
        "chroma": _transformer(
            "ChromaTransformer2DModel", "transformer_chroma", ("ChromaPipeline", "ChromaImg2ImgPipeline"), (_T5,)
        ),
        "krea2": _transformer(
            *("Krea2Transformer2DModel", "transformer_krea2", ("Krea2Pipeline",), (_QWEN3_VL,)),
            vae=("AutoencoderKLQwenImage",),
        ),
        "lumina2": _transformer(
            *("Lumina2Transformer2DModel", "transformer_lumina2"),
            ("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
            (_GEMMA,),
        ),
        "sana": _transformer(
            *("SanaTransformer2DModel", "sana_transformer", ("SanaPipeline",), (_GEMMA,)), vae=("AutoencoderDC",)
        ),
        "pixart": _transformer(
            *("PixArtTransformer2DModel", "pixart_transformer_2d"),
            ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
            (_T5,),
            flow=False,
        ),
    }
)


def find(part: str, config: Mapping[str, Any]) -> str:
    """Return the name of the architecture of the network `part` with this config.

    If the config has no class name, it is the first architecture with that part. Raises ModelError for an unknown
    class.
    """
    class_name = config.get("_class_name")
    for name, row in TABLE.items():
        if row.part == part and class_name in (None, *row.networks):
            return name
    known = ", ".join(next(iter(row.networks)) for row in TABLE.values())
    raise ModelError(f"the model's {part} is a {class_name}, which is not supported", f"supported classes are {known}")


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError unless the scheduler config is of the kind that models of the architecture are trained with."""
    if predicts_flow(config) != TABLE[name].flow:
        kind = "flow matching" if TABLE[name].flow else "steps of noise"
        what = f"the model's scheduler is a {config.get('_class_name')}, and models of its class are trained by {kind}"
        raise ModelError(what, "download the model's folder again; its parts must belong together")


def networks(part: str) -> Mapping[str, str]:
    """Return the class names that `part` can have in model_index.json, each with its location, `module:class`."""
    return {name: place for row in TABLE.values() if row.part == part for name, place in row.networks.items()}


def load(name: str) -> Architecture:
    """Import the module of the architecture `name`."""
    return cast(Architecture, importlib.import_module(f"{__name__}.{name}"))
