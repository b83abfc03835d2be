"""Krea 2: a transformer over text and image tokens in one stream, trained by flow matching (Krea 2026).

y is the states of several layers of a Qwen3-VL language model, which the transformer weighs itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow, packing
from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance, rescale
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
LAYERS = tuple(range(2, 36, 3))
"""The layers of the language model whose states are used."""
DISTILLED_MU = 1.15
"""The shift of the distilled model for every size."""


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE, and from model_index.json whether the model is distilled."""
    space, distilled = LatentSpace.of(vae), bool(index.get("is_distilled", False))
    if tuple(index.get("text_encoder_select_layers") or LAYERS) != LAYERS:
        raise ValueError(f"text_encoder_select_layers must be {list(LAYERS)}")
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 64)) // 4,
        latent_space=space,
        guided_above=0.0,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        schedule={"base_shift": DISTILLED_MU, "max_shift": DISTILLED_MU} if distilled else {},
        defaults={
            "scheduler": "euler",
            "steps": 8 if distilled else 28,
            "guidance_scale": 0.0 if distilled else 4.5,
        },
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and two hidden layers of 8/3 of its width."""
    width = int(network.get("num_attention_heads", 48)) * int(network.get("attention_head_dim", 128))
    return 10 * width * (latents // 4 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, text = model.network.config, model.text_encoders[0].model.config.text_config
    width = fitting.of_text(text.hidden_size, config["text_hidden_dim"])
    if width is None and (text.num_hidden_layers < LAYERS[-1] or config["num_text_layers"] != len(LAYERS)):
        return f"its text encoder has {text.num_hidden_layers} layers, and its transformer takes other ones"
    return width or fitting.of_latents(4 * model.latent_channels, config["in_channels"])


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance; their lengths differ."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.scale > 0 else None
    return language_model.context_of(_states(model, condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, L, layers, D) of the tokens of a text in the family's template, and a note if it was cut.

    There is no padding: the transformer would mask it.
    """
    import torch
    from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    parts = dict.fromkeys(("scheduler", "vae", "transformer"))
    pipe = Krea2Pipeline(text_encoder=encoder.model, tokenizer=encoder.tokenizer, **parts)
    skipped = pipe.prompt_template_encode_start_idx
    most = MOST_TOKENS + skipped - pipe.prompt_template_encode_num_suffix_tokens
    ids, note = language_model.ids_of(encoder.tokenizer, pipe.prompt_template_encode_prefix + text, most)
    suffix = encoder.tokenizer(pipe.prompt_template_encode_suffix, return_tensors="pt").input_ids
    states = language_model.hidden_states(encoder.model, torch.cat([ids, suffix], dim=1))
    joined = torch.stack([states[layer] for layer in LAYERS], dim=2)[:, skipped:]
    return language_model.Encoded(joined.to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1.

    The prediction is pos + s (pos − neg), and 0 is the conditional one.
    """
    import torch

    embeds = context.halves(batch, network.dtype)

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens, time = packing.pack(latents).to(network.dtype), timestep.expand(batch).to(network.dtype) / 1000
        image_ids = packing.positions(height // 2, width // 2).to(latents.device)
        predicted: list[Tensor] = []
        for half in embeds:
            ids = torch.cat([image_ids.new_zeros(half.shape[1], 3), image_ids])
            made = network(tokens, encoder_hidden_states=half, timestep=time, position_ids=ids, return_dict=False)[0]
            predicted.append(packing.unpack(made.float(), height, width))
        velocity = predicted[-1]
        if len(predicted) == 2:
            guided = velocity + guidance.scale * (velocity - predicted[0])
            velocity = rescale(guided, velocity, guidance.rescale)
        return velocity

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    flow.set_even_timesteps(scheduler, steps, shape)
