"""Stable Diffusion 3 and 3.5: a transformer over text and image tokens, trained by flow matching.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis". y is the states of two
CLIP encoders, concatenated, then those of T5 as further tokens, which are zeros without T5; and CLIP's pooled
states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import flow
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance, guide
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
        prompts=Prompts(MOST_TOKENS, second=True, syntax=False),
        skippable_layers=int(network.get("num_layers", 18)),
        is_flow=True,
        defaults={"scheduler": "euler", "steps": 28, "guidance_scale": 7.0},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the fourfold hidden layer."""
    width = int(network.get("num_attention_heads", 18)) * int(network.get("attention_head_dim", 64))
    return 10 * width * (latents // int(network.get("patch_size", 2)) ** 2 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoders' widths and the latents' channels with those of the transformer."""
    config = model.network.config
    clips, t5 = model.text_encoders[:2], model.text_encoders[2:]
    takes, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
    if t5 and t5[0].model.config.d_model != takes:
        return (
            f"its text encoder T5 gives {t5[0].model.config.d_model} features per token, its transformer takes {takes}"
        )
    if sum(each.model.config.hidden_size for each in clips) > takes:
        return f"its text encoders give more features per token than its transformer takes, {takes}"
    given = sum(each.model.config.projection_dim for each in clips)
    if given != pooled:
        return f"its text encoders give {given} pooled features, its transformer takes {pooled}"
    if config["in_channels"] != model.latent_channels:
        return "its transformer and its VAE disagree about the latents' channels"
    return None


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt with all encoders, and the negative prompt if there is guidance."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.is_on else None
    return language_model.context_of(_states(model, condition.prompt, condition.prompt_2), negative)


def _states(model: LatentDiffusionModel, text: str, second: str | None = None) -> Encoded:
    """Return the states (1, 77 + 256, D) and the pooled states (1, P) of a text, and a note if it was cut.

    `second` is for the second CLIP encoder.
    """
    import torch

    from sdcli.diffusion.context import language_model

    texts = (text, text if second is None else second)
    clips = [language_model.clip_output(*each) for each in zip(model.text_encoders[:2], texts, strict=True)]
    states = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
    pooled = torch.cat([each.text_embeds for each in clips], dim=-1)
    width, note = model.network.config["joint_attention_dim"], None
    if len(model.text_encoders) > 2:
        of_t5, note = language_model.t5_states(model.text_encoders[2], text, MOST_TOKENS)
    else:
        of_t5 = torch.zeros(1, MOST_TOKENS, width)
    padded = torch.nn.functional.pad(states, (0, width - states.shape[-1]))
    joined = torch.cat([each.to(model.device, model.dtype) for each in (padded, of_t5)], dim=1)
    return language_model.Encoded(joined, note, pooled.to(model.device, model.dtype))


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for both halves of guidance. Its time is 0 … 1000.

    With skip-layer guidance there is one more call without some layers, in some steps: the prediction is also guided
    away from that one.
    """
    import torch

    guided = guidance.is_on and context.has_unconditional

    def both(conditional: Tensor | None, unconditional: Tensor | None) -> Tensor:
        halves = [each for each in (unconditional if guided else None, conditional) if each is not None]
        return torch.cat([half.expand(batch, *half.shape[1:]) for half in halves]).to(network.dtype)

    embeds = both(context.prompt_embeds, context.negative_prompt_embeds)
    pooled = both(context.pooled_prompt_embeds, context.negative_pooled_prompt_embeds)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = latents.to(network.dtype)
        if guided:
            sample = torch.cat([sample, sample])
        velocity: Tensor = network(sample, embeds, pooled, timestep.expand(len(sample)), return_dict=False)[0].float()
        if not guided:
            return velocity
        skipped, made = guidance.skip_layers, guide(velocity, guidance)
        if skipped is not None and skipped.covers(evaluation.index, evaluation.total):
            own, time = (each[batch:] for each in (embeds, pooled)), timestep.expand(batch)
            options = {"skip_layers": list(skipped.layers), "return_dict": False}
            without: Tensor = network(sample[batch:], *own, time, **options)[0].float()
            made = made + (velocity[batch:] - without) * skipped.scale
        return made

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set the scheduler's own timesteps with the config's shift, or one by the number of tokens."""
    mu = flow.linear_mu(scheduler.config, shape[1] // 2 * (shape[2] // 2), max_shift=1.16)
    flow.set_timesteps(scheduler, steps, mu)
