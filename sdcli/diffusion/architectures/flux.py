"""FLUX.1: a transformer over text and image tokens, trained by flow matching (Black Forest Labs 2024).

y is T5's states as tokens, and CLIP's pooled state with the time. [dev] is distilled from guidance and takes the scale
as an input; [schnell] takes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import flow, packing
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.recipe.parts import Condition

if TYPE_CHECKING:
    from torch import Tensor

    from sdcli.diffusion.context import Context
    from sdcli.diffusion.denoise import Denoiser, Evaluation
    from sdcli.diffusion.model import LatentDiffusionModel

MOST_TOKENS = 512


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE."""
    space, takes_scale = LatentSpace.of(vae), bool(network.get("guidance_embeds", False))
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)) // 4,
        latent_space=space,
        guidance_distilled=takes_scale,
        unguided=not takes_scale,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        defaults={
            "scheduler": "euler",
            "steps": 28 if takes_scale else 4,
            "guidance_scale": 3.5 if takes_scale else 0.0,
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


def encode(model: LatentDiffusionModel, condition: Condition, size: tuple[int, int], guidance: Guidance) -> Context:
    """Encode the prompt with both encoders. There is no unconditional half."""
    from sdcli.diffusion.context import Context, language_model

    clip, t5 = model.text_encoders
    pooled = language_model.clip_output(clip, condition.prompt).pooler_output
    embeds, note = language_model.t5_states(t5, condition.prompt, MOST_TOKENS)
    return Context(
        prompt_embeds=embeds.to(model.device, model.dtype),
        pooled_prompt_embeds=pooled.to(model.device, model.dtype),
        notes=language_model.listed(note),
    )


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer. Its time is 0 … 1."""
    import torch

    assert context.prompt_embeds is not None
    assert context.pooled_prompt_embeds is not None
    dtype, device = network.dtype, context.prompt_embeds.device
    embeds = context.prompt_embeds.expand(batch, -1, -1).to(dtype)
    pooled = context.pooled_prompt_embeds.expand(batch, -1).to(dtype)
    text_ids = torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype)
    scale = torch.full([batch], guidance.scale, device=device) if network.config["guidance_embeds"] else None

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        velocity = network(
            hidden_states=packing.pack(latents).to(dtype),
            timestep=timestep.expand(batch).to(dtype) / 1000,
            guidance=scale,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=_positions(height // 2, width // 2).to(device, dtype),
            return_dict=False,
        )[0]
        return packing.unpack(velocity.float(), height, width)

    return denoiser


def _positions(height: int, width: int) -> Tensor:
    """Return the positions (h · w, 3) of image tokens: 0, row, column."""
    import torch

    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    mu = flow.linear_mu(scheduler.config, shape[1] // 2 * (shape[2] // 2))
    flow.set_timesteps(scheduler, steps, mu, flow.even(steps, 1 / steps))
