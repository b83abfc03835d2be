"""FLUX.1: a transformer over text and image tokens, trained by flow matching (Black Forest Labs 2024).

y is T5's states as tokens, and CLIP's pooled state with the time. [dev] is distilled from guidance and takes the scale
as an input; [schnell] takes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import flow, packing
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance
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

MOST_TOKENS = 512


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE."""
    space, takes_scale = LatentSpace.of(vae), bool(network.get("guidance_embeds", False))
    edits = index.get("_class_name") == "FluxKontextPipeline"
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)) // 4,
        latent_space=space,
        cache=FIRST_BLOCK,
        guidance_distilled=takes_scale,
        unguided=not takes_scale,
        true_cfg=True,
        most_references=1 if edits else 0,
        prompts=Prompts(MOST_TOKENS, second=True, syntax=False),
        is_flow=True,
        defaults={
            "scheduler": "euler",
            "steps": 28 if takes_scale else 4,
            "guidance_scale": (2.5 if edits else 3.5) if takes_scale else 0.0,
        },
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the fourfold hidden layer."""
    width = int(network.get("num_attention_heads", 24)) * int(network.get("attention_head_dim", 128))
    return 12 * width * (latents // 4 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoders' widths and the latents' channels with those of the transformer."""
    config = model.network.config
    clip, t5 = (each.model.config for each in model.text_encoders)
    if t5.d_model != config["joint_attention_dim"]:
        takes = config["joint_attention_dim"]
        return f"its text encoder T5 gives {t5.d_model} features per token, its transformer takes {takes}"
    if clip.hidden_size != config["pooled_projection_dim"]:
        takes = config["pooled_projection_dim"]
        return f"its text encoder CLIP gives {clip.hidden_size} pooled features, its transformer takes {takes}"
    if config["in_channels"] != 4 * model.latent_channels:
        return "its transformer and its VAE disagree about the latents' channels"
    return None


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt with `true_cfg_scale`. `prompt_2` is for T5."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.true_scale > 1 else None
    return language_model.context_of(_states(model, condition.prompt, condition.prompt_2), negative)


def _states(model: LatentDiffusionModel, text: str, second: str | None = None) -> Encoded:
    """Return T5's states (1, 512, D), CLIP's pooled state (1, P) of a text, and a note if it was cut for T5."""
    from sdcli.diffusion.context import language_model

    clip, t5 = model.text_encoders
    pooled = language_model.clip_output(clip, text).pooler_output
    embeds, note = language_model.t5_states(t5, text if second is None else second, MOST_TOKENS)
    return language_model.Encoded(embeds.to(model.device, model.dtype), note, pooled.to(model.device, model.dtype))


def reference_latents(model: LatentDiffusionModel, picture: Picture) -> Tensor:
    """Encode a reference image at the size, of those that [Kontext] was trained on, with the nearest aspect ratio."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    from sdcli.diffusion import autoencode

    multiple, aspect = 2 * model.vae_scale_factor, picture.width / picture.height
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    width, height = width // multiple * multiple, height // multiple * multiple
    processor = VaeImageProcessor(vae_scale_factor=multiple)
    resized = processor.resize(picture, height, width)
    return autoencode.encode_mean(model, processor.preprocess(resized, height, width))


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1."""
    import torch

    assert context.prompt_embeds is not None
    dtype, device = network.dtype, context.prompt_embeds.device
    halves = [(context.negative_prompt_embeds, context.negative_pooled_prompt_embeds)]
    halves += [(context.prompt_embeds, context.pooled_prompt_embeds)]
    texts = [
        {
            "encoder_hidden_states": embeds.expand(batch, -1, -1).to(dtype),
            "pooled_projections": pooled.expand(batch, -1).to(dtype),
        }
        for embeds, pooled in halves
        if embeds is not None and pooled is not None
    ]
    text_ids = torch.zeros(context.prompt_embeds.shape[1], 3, device=device, dtype=dtype)
    scale = torch.full([batch], guidance.scale, device=device) if network.config["guidance_embeds"] else None
    references = [packing.pack(each).expand(batch, -1, -1) for each in context.reference_latents]
    reference_ids = [
        packing.positions(each.shape[2] // 2, each.shape[3] // 2, 1.0) for each in context.reference_latents
    ]

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens = packing.pack(latents)
        arguments = {
            "hidden_states": torch.cat([tokens, *references], dim=1).to(dtype),
            "timestep": timestep.expand(batch).to(dtype) / 1000,
            "guidance": scale,
            "txt_ids": text_ids,
            "img_ids": torch.cat([packing.positions(height // 2, width // 2), *reference_ids]).to(device, dtype),
            "return_dict": False,
        }
        predicted = [network(**text, **arguments)[0][:, : tokens.shape[1]].float() for text in texts]
        velocity = predicted[-1]
        if len(predicted) == 2:
            velocity = predicted[0] + guidance.true_scale * (velocity - predicted[0])
        return packing.unpack(velocity, height, width)

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    flow.set_even_timesteps(scheduler, steps, shape)
