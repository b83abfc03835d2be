"""Qwen-Image 2.1: one stream of text and image tokens, in which only the image depends on the time (Qwen team 2026).

y is the states of Qwen3-VL's last layer, before its norm, without those of the system's message. The autoencoder also
has transparency, which is not used, and a place of its latents is a token. Reference images are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow, packing
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

MOST_TOKENS = 1024
_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE, and from model_index.json noise levels of the model's own."""
    space, sigmas = LatentSpace.of(vae), index.get("sample_sigmas")
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)),
        latent_space=space,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        schedule={"sample_sigmas": [float(each) for each in sigmas]} if sigmas else {},
        defaults={"scheduler": "euler", "steps": len(sigmas) if sigmas else 40, "guidance_scale": 1.0},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the two hidden layers of threefold width."""
    width = int(network.get("num_attention_heads", 32)) * int(network.get("attention_head_dim", 128))
    return 12 * width * (latents + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, text = model.network.config, model.text_encoders[0].model.config.text_config
    channels = fitting.of_latents(model.latent_channels, config["in_channels"])
    return fitting.of_text(text.hidden_size, config["context_in_dim"]) or channels


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance; their lengths differ."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.is_on else None
    return language_model.context_of(_states(model, condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, L, D) of the tokens of a text in the template of the family, and a note if it was cut."""
    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    skipped = len(encoder.tokenizer(_SYSTEM).input_ids)
    ids, note = language_model.ids_of(encoder.tokenizer, _SYSTEM + _USER.format(text or " "), MOST_TOKENS + skipped)
    norm = encoder.model.language_model.norm
    hook = norm.register_forward_hook(lambda module, given, made: given[0])  # transformers 5 has no states before it
    try:
        states = language_model.hidden_states(encoder.model, ids)[-1]
    finally:
        hook.remove()
    return language_model.Encoded(states[:, skipped:].to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1."""
    import torch

    embeds = context.halves(batch, network.dtype)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens = packing.flatten(latents).to(network.dtype)
        predicted: list[Tensor] = []
        for half in embeds:
            # four tokens of the image have one place in the text encoder's sequence
            mask = torch.arange(half.shape[1] + tokens.shape[1] // 4, device=latents.device) >= half.shape[1]
            made = network(
                hidden_states=tokens,
                timestep=timestep.expand(batch).to(network.dtype) / 1000,
                encoder_hidden_states=half,
                img_shapes=[[(1, height, width)]] * batch,
                img_mask=mask.expand(batch, -1),
                return_dict=False,
            )[0]
            predicted.append(packing.unflatten(made[:, -tokens.shape[1] :].float(), height, width))
        velocity = torch.cat(predicted)
        return guide(velocity, guidance) if len(embeds) == 2 else velocity

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set the model's own noise levels, if they are of so many steps, or evenly spaced ones, with a shift."""
    own = scheduler.config.get("sample_sigmas")
    sigmas = own if own and len(own) == steps else flow.even(steps, 1 / steps)
    flow.set_timesteps(scheduler, steps, flow.linear_mu(scheduler.config, shape[1] * shape[2]), sigmas)
