"""Sana: a transformer with linear attention over the latents of a deep autoencoder, trained by flow matching.

Xie et al. 2024, "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers". y is the states
of the last layer of a Gemma 2 language model, after an instruction that enhances the prompt.
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

MOST_TOKENS = 300


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its autoencoder."""
    if network.get("guidance_embeds"):
        raise ValueError("a Sana with guidance_embeds (Sprint) is not supported")
    space = LatentSpace.of(vae)
    return Facts(
        native_size=min(1024, int(network.get("sample_size", 32)) * space.vae_scale_factor),
        size_multiple=int(network.get("patch_size", 1)) * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 32)),
        latent_space=space,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        defaults={"scheduler": "dpm++-2m", "steps": 20, "guidance_scale": 4.5},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the hidden layer, which has a gate."""
    width = int(network.get("num_attention_heads", 70)) * int(network.get("attention_head_dim", 32))
    return round((5 + 2 * float(network.get("mlp_ratio", 2.5))) * width * latents)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, width = model.network.config, model.text_encoders[0].model.config.hidden_size
    text = fitting.of_text(width, config["caption_channels"])
    if text is None and config["in_channels"] != model.latent_channels:
        return "its transformer and its autoencoder disagree about the latents' channels"
    return text


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt after the family's instruction, and the negative prompt, without it, if there is guidance."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt, "") if guidance.is_on else None
    return language_model.context_of(_states(model, condition.prompt, _instruction()), negative)


def _instruction() -> str:
    """Return the default instruction of diffusers' pipeline."""
    import inspect

    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


def _states(model: LatentDiffusionModel, text: str, instruction: str) -> Encoded:
    """Return the states of the first token and of those after the instruction (1, L, D), and a note if it was cut.

    The text is in lower case, as in training. There is no padding: the transformer would mask it.
    """
    import torch

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    length = MOST_TOKENS
    if instruction:
        length += len(encoder.tokenizer(instruction).input_ids) - 2
    ids, note = language_model.ids_of(encoder.tokenizer, instruction + text.lower().strip(), length)
    states = language_model.hidden_states(encoder.model, ids)[-1]
    kept = torch.cat([states[:, :1], states[:, length - MOST_TOKENS + 1 :]], dim=1)
    return language_model.Encoded(kept.to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1000."""
    embeds = context.halves(batch, network.dtype)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = latents.to(network.dtype)
        time = timestep.expand(batch) * network.config["timestep_scale"]
        predicted = [network(sample, half, timestep=time, return_dict=False)[0].float() for half in embeds]
        velocity: Tensor = predicted[-1]
        if len(predicted) == 2:
            velocity = predicted[0] + guidance.scale * (velocity - predicted[0])
        return velocity[:, : sample.shape[1]]

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set the scheduler's own timesteps with the config's shift."""
    flow.set_timesteps(scheduler, steps, 0.0)
