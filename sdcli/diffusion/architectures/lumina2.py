"""Lumina-Image 2.0: a transformer over text and image tokens in one stream, trained by flow matching.

Qin et al. 2025, "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework". y is the states of the second
to last layer of a Gemma 2 language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow
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

MOST_TOKENS = 256


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE."""
    space, patch = LatentSpace.of(vae), int(network.get("patch_size", 2))
    return Facts(
        native_size=min(1024, int(network.get("sample_size", 128)) * space.vae_scale_factor),
        size_multiple=patch * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 16)),
        latent_space=space,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        defaults={"scheduler": "euler", "steps": 30, "guidance_scale": 4.0},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and two hidden layers of 8/3 of its width."""
    return 10 * int(network.get("hidden_size", 2304)) * (latents // 4 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, width = model.network.config, model.text_encoders[0].model.config.hidden_size
    channels = fitting.of_latents(model.latent_channels, config["in_channels"])
    return fitting.of_text(width, config["cap_feat_dim"]) or channels


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt after the family's instruction, and the negative prompt, without it, if there is guidance."""
    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    from sdcli.diffusion.context import language_model

    parts = dict.fromkeys(("scheduler", "vae", "transformer", "text_encoder", "tokenizer"))
    instruction = Lumina2Pipeline(**parts).system_prompt
    negative = _states(model, condition.negative_prompt) if guidance.is_on else None
    return language_model.context_of(_states(model, f"{instruction} <Prompt Start> {condition.prompt}"), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, L, D) of the tokens of a text, and a note if it was cut.

    There is no padding: the transformer would mask it.
    """
    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    ids, note = language_model.ids_of(encoder.tokenizer, text, MOST_TOKENS)
    states = language_model.hidden_states(encoder.model, ids)
    return language_model.Encoded(states[-2].to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance.

    The network counts time from 0 to 1 towards the picture, and predicts the opposite of the flow. The rows of a guided
    prediction keep the length that those of the conditional one have.
    """
    import torch

    embeds = context.halves(batch, network.dtype)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample, time = latents.to(network.dtype), (1 - timestep / 1000).expand(batch)
        predicted = [
            network(sample, time, half, half.new_ones(half.shape[:2], dtype=torch.bool), return_dict=False)[0].float()
            for half in embeds
        ]
        velocity: Tensor = predicted[-1]
        if len(predicted) == 2:
            guided = predicted[0] + guidance.scale * (velocity - predicted[0])
            velocity = guided * (velocity.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return -velocity

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of channels, as diffusers does."""
    flow.set_timesteps(scheduler, steps, flow.linear_mu(scheduler.config, shape[0]), flow.even(steps, 1 / steps))
