"""PixArt-α and PixArt-Σ: DiT with text by cross-attention, which predicts noise.

Chen et al. 2023, "PixArt-α: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis", and
2024, "PixArt-Σ". y is T5's states; PixArt-α of 1024 pixels also takes the size of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting
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

_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE, and from model_index.json how long prompts can be."""
    space = LatentSpace.of(vae)
    return Facts(
        native_size=int(network.get("sample_size", 128)) * space.vae_scale_factor,
        size_multiple=space.vae_scale_factor * int(network.get("patch_size", 2)),
        in_channels=int(network.get("in_channels", 4)),
        latent_space=space,
        cache=FIRST_BLOCK,
        prompts=Prompts(_TOKENS[index["_class_name"]], syntax=False),
        defaults={"scheduler": "dpm++-2m", "steps": 20, "guidance_scale": 4.5},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the fourfold hidden layer."""
    width = int(network.get("num_attention_heads", 16)) * int(network.get("attention_head_dim", 72))
    return 10 * width * latents // int(network.get("patch_size", 2)) ** 2


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer.

    If the transformer also predicts its variance, it has twice as many output channels.
    """
    config, width, channels = model.network.config, model.text_encoders[0].model.config.d_model, model.latent_channels
    takes = config["caption_channels"] or config["cross_attention_dim"]
    outputs: int = model.network.out_channels
    without_variance = outputs // 2 if outputs == 2 * channels else outputs
    latents = fitting.of_latents(channels, config["in_channels"]) or fitting.of_latents(channels, without_variance)
    return fitting.of_text(width, takes) or latents


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance; and the size, if the transformer takes it."""
    from dataclasses import replace

    import torch

    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.is_on else None
    context = language_model.context_of(_states(model, condition.prompt), negative)
    if not model.network.use_additional_conditions:
        return context
    width, height = size
    sizes = torch.tensor([[height, width, height / width]], device=model.device, dtype=model.dtype)
    return replace(context, add_time_ids=sizes)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return T5's states (1, L, D) of a text in lower case, as in training, and a note if it was cut.

    There is no padding: both networks would mask it.
    """
    from sdcli.diffusion.context import language_model

    encoder, most = model.text_encoders[0], model.facts.prompts.most_tokens
    assert most is not None
    ids, mask, note = language_model.padded_ids(encoder.tokenizer, text.lower().strip(), most)
    states = language_model.hidden_states(encoder.model, ids[:, : int(mask.sum())])[-1]
    return language_model.Encoded(states.to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance, without its variance."""
    embeds = context.halves(batch, network.dtype)
    sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if context.add_time_ids is not None:
        of_each = context.add_time_ids.expand(batch, -1).to(network.dtype)
        sizes = {"resolution": of_each[:, :2], "aspect_ratio": of_each[:, 2:]}

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample, time = latents.to(network.dtype), timestep.expand(batch)
        predicted = [
            network(sample, half, timestep=time, added_cond_kwargs=sizes, return_dict=False)[0].float()
            for half in embeds
        ]
        noise_pred: Tensor = predicted[-1]
        if len(predicted) == 2:
            noise_pred = predicted[0] + guidance.scale * (noise_pred - predicted[0])
        return noise_pred[:, : sample.shape[1]]

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Use the scheduler's own spacing for every size."""
    scheduler.set_timesteps(steps)
