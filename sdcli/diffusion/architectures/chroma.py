"""Chroma: FLUX.1 [schnell] without CLIP, trained again with guidance (Lodestone Rock 2025).

y is T5's states as tokens. What modulates the layers is computed from the time alone, by a small network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow, packing
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.latent_space import LatentSpace
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
    space = LatentSpace.of(vae)
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)) // 4,
        latent_space=space,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        defaults={"scheduler": "euler", "steps": 35, "guidance_scale": 5.0},
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
    config, width = model.network.config, model.text_encoders[0].model.config.d_model
    channels = fitting.of_latents(4 * model.latent_channels, config["in_channels"])
    return fitting.of_text(width, config["joint_attention_dim"]) or channels


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.is_on else None
    return language_model.context_of(_states(model, condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return T5's states (1, 512, D), and a mask (1, 512): 1 for the tokens of a text and the one after it."""
    import torch

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    ids, mask, note = language_model.padded_ids(encoder.tokenizer, text, MOST_TOKENS)
    states = language_model.hidden_states(encoder.model, ids, mask)[-1]
    used = torch.arange(MOST_TOKENS)[None] <= mask.sum(1, keepdim=True)
    return language_model.Encoded(states.to(model.device, model.dtype), note, mask=used.to(model.device, model.dtype))


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1.

    As in diffusers, the mask is added to the logits of attention: padding counts less, and is not left out.
    """
    import torch

    assert context.prompt_embeds is not None
    dtype, device = network.dtype, context.prompt_embeds.device
    halves = [(context.negative_prompt_embeds, context.negative_prompt_mask)] if guidance.is_on else []
    halves += [(context.prompt_embeds, context.prompt_mask)]
    texts = [
        (embeds.expand(batch, -1, -1).to(dtype), mask.expand(batch, -1).to(dtype))
        for embeds, mask in halves
        if embeds is not None and mask is not None
    ]
    text_ids = torch.zeros(context.prompt_embeds.shape[1], 3, device=device, dtype=dtype)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens = packing.pack(latents)
        arguments = {
            "hidden_states": tokens.to(dtype),
            "timestep": timestep.expand(batch).to(dtype) / 1000,
            "txt_ids": text_ids,
            "img_ids": packing.positions(height // 2, width // 2).to(device, dtype),
            "return_dict": False,
        }
        predicted = [
            network(encoder_hidden_states=embeds, attention_mask=_with_image(mask, tokens), **arguments)[0].float()
            for embeds, mask in texts
        ]
        velocity = predicted[-1]
        if len(predicted) == 2:
            velocity = predicted[0] + guidance.scale * (velocity - predicted[0])
        return packing.unpack(velocity, height, width)

    return denoiser


def _with_image(mask: Tensor, tokens: Tensor) -> Tensor:
    """Return the mask of the text with ones for the tokens of the image."""
    import torch

    return torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1)


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    flow.set_even_timesteps(scheduler, steps, shape)
