"""Qwen-Image: a transformer over text and image tokens, trained by flow matching.

Wu et al. 2025, "Qwen-Image Technical Report". y is the states of Qwen2.5-VL's last layer, without those of its
template. The autoencoder is one of videos, used for single pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow, packing
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance, rescale
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.recipe.cache import FIRST_BLOCK
from sdcli.recipe.parts import Condition

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from sdcli.diffusion.context import Context
    from sdcli.diffusion.context.language_model import Encoded
    from sdcli.diffusion.denoise import Denoiser, Evaluation
    from sdcli.diffusion.model import LatentDiffusionModel

MOST_TOKENS = 1024


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE. `guidance_scale` is what diffusers calls `true_cfg_scale`."""
    space, edits = LatentSpace.of(vae), index.get("_class_name") == "QwenImageEditPlusPipeline"
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)) // 4,
        latent_space=space,
        cache=FIRST_BLOCK,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        least_references=1 if edits else 0,
        most_references=3 if edits else 0,
        is_flow=True,
        defaults={"scheduler": "euler", "steps": 40 if edits else 50, "guidance_scale": 4.0},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the fourfold hidden layer."""
    width = int(network.get("num_attention_heads", 24)) * int(network.get("attention_head_dim", 128))
    return 12 * width * (latents // 4 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, text = model.network.config, model.text_encoders[0].model.config
    channels = fitting.of_latents(4 * model.latent_channels, config["in_channels"])
    return fitting.of_text(text.text_config.hidden_size, config["joint_attention_dim"]) or channels


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance; their lengths differ.

    The text encoder sees the reference images with both.
    """
    from sdcli.diffusion.context import language_model

    def states(text: str) -> Encoded:
        return _seen_states(model, text, pictures) if pictures else _states(model, text)

    negative = states(condition.negative_prompt) if guidance.is_on else None
    return language_model.context_of(states(condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, L, D) of the tokens of a text in the template of the family, and a note if it was cut."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    parts = dict.fromkeys(("scheduler", "vae", "transformer"))
    pipe = QwenImagePipeline(text_encoder=encoder.model, tokenizer=encoder.tokenizer, **parts)
    skipped = pipe.prompt_template_encode_start_idx
    framed = pipe.prompt_template_encode.format(text)
    ids, note = language_model.ids_of(encoder.tokenizer, framed, MOST_TOKENS + skipped)
    states = language_model.hidden_states(encoder.model, ids)[-1]
    return language_model.Encoded(states[:, skipped:].to(model.device, model.dtype), note)


def _seen_states(model: LatentDiffusionModel, text: str, pictures: Sequence[Picture]) -> Encoded:
    """Return the states (1, L, D) of the tokens of images and a text, in the template for editing; nothing is cut.

    Each image has as many tokens as its patches, which the image processor counts.
    """
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline as Pipeline

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    parts = dict.fromkeys(("scheduler", "vae", "transformer", "processor"))
    pipe = Pipeline(text_encoder=encoder.model, tokenizer=encoder.tokenizer, **parts)
    resized = [_resized(pipe.image_processor, each, CONDITION_IMAGE_SIZE) for each in pictures]
    prepared = encoder.image_processor(images=resized, return_tensors="pt")
    counts = (prepared.image_grid_thw.prod(-1) // encoder.image_processor.merge_size**2).tolist()
    shown = "".join(_SHOWN.format(place, _IMAGE * count) for place, count in enumerate(counts, start=1))
    ids = encoder.tokenizer(pipe.prompt_template_encode.format(shown + text), return_tensors="pt").input_ids
    images = {key: prepared[key].to(encoder.model.device) for key in ("pixel_values", "image_grid_thw")}
    states = language_model.hidden_states(encoder.model, ids, **images)[-1]
    own = states[:, pipe.prompt_template_encode_start_idx :]
    return language_model.Encoded(own.to(model.device, model.dtype))


_IMAGE = "<|image_pad|>"
_SHOWN = "Picture {}: <|vision_start|>{}<|vision_end|>"


def _resized(processor: Any, picture: Picture, area: int) -> Picture:
    """Resize a picture to about `area` pixels, in multiples of 32."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    width, height = calculate_dimensions(area, picture.width / picture.height)
    resized: Picture = processor.resize(picture, height, width)
    return resized


def reference_latents(model: LatentDiffusionModel, picture: Picture) -> Tensor:
    """Encode a reference image of about 1024² pixels."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import VAE_IMAGE_SIZE

    from sdcli.diffusion import autoencode

    processor = VaeImageProcessor(vae_scale_factor=2 * model.vae_scale_factor)
    return autoencode.encode_mean(model, processor.preprocess(_resized(processor, picture, VAE_IMAGE_SIZE)))


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1.

    The guided prediction of each token is scaled to the length of the conditional one.
    """
    import torch

    assert context.prompt_embeds is not None
    dtype = network.dtype
    halves = [half for half in (context.prompt_embeds, context.negative_prompt_embeds) if half is not None]
    embeds = [half.expand(batch, -1, -1).to(dtype) for half in halves]
    references = [packing.pack(each).expand(batch, -1, -1) for each in context.reference_latents]
    shapes = [(1, each.shape[2] // 2, each.shape[3] // 2) for each in context.reference_latents]

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens = packing.pack(latents)
        arguments = {
            "hidden_states": torch.cat([tokens, *references], dim=1).to(dtype),
            "timestep": timestep.expand(batch).to(dtype) / 1000,
            "img_shapes": [[(1, height // 2, width // 2), *shapes]] * batch,
            "return_dict": False,
        }
        whole = [network(encoder_hidden_states=half, **arguments)[0] for half in embeds]
        predicted = [each[:, : tokens.shape[1]].float() for each in whole]
        velocity = predicted[0]
        if len(predicted) == 2:
            combined = predicted[1] + guidance.scale * (velocity - predicted[1])
            combined = combined * (velocity.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
            velocity = rescale(combined, velocity, guidance.rescale)
        return packing.unpack(velocity, height, width)

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    flow.set_even_timesteps(scheduler, steps, shape)
