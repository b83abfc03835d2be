"""Z-Image: a transformer over text and image tokens in one stream, trained by flow matching.

Z-Image Team 2025, "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer".
The text encoder is a Qwen3 language model: y is the states of its second to last layer, as long as the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import fitting, flow
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


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE. The defaults are those of Z-Image-Turbo."""
    space = LatentSpace.of(vae)
    return Facts(
        native_size=1024,
        size_multiple=2 * space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 16)),
        latent_space=space,
        guided_above=0.0,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        defaults={"scheduler": "euler", "steps": 9, "guidance_scale": 0.0},
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and two hidden layers of 8/3 of its width."""
    return 10 * int(network.get("dim", 3840)) * (latents // 4 + MOST_TOKENS)


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
    """Encode the prompt, and the negative prompt if there is guidance; their lengths differ."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if guidance.scale > 0 else None
    return language_model.context_of(_states(model, condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, L, D) of the tokens of a text in the template of a chat, and a note if it was cut.

    There is no padding: in a causal model, it would not change the states of the tokens before it.
    """
    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    framed = language_model.as_chat(encoder.tokenizer, text, enable_thinking=True)
    ids, note = language_model.ids_of(encoder.tokenizer, framed, MOST_TOKENS)
    states = language_model.hidden_states(encoder.model, ids)
    return language_model.Encoded(states[-2].to(model.device, model.dtype), note)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t). The network counts time from 0 to 1 towards the picture, and predicts the opposite of the flow.

    With guidance, one call has both halves: the prediction is pos + s (pos − neg), and 0 is the conditional one.
    """
    import torch

    assert context.prompt_embeds is not None
    guided = guidance.scale > 0 and context.negative_prompt_embeds is not None
    embeds = [context.prompt_embeds[0].to(network.dtype)] * batch
    if guided:
        assert context.negative_prompt_embeds is not None
        embeds += [context.negative_prompt_embeds[0].to(network.dtype)] * batch

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = latents.to(network.dtype).unsqueeze(2)
        if guided:
            sample = torch.cat([sample, sample])
        time = ((1000 - timestep) / 1000).expand(len(sample))
        predicted = network(list(sample.unbind(0)), time, embeds, return_dict=False)[0]
        velocity = torch.stack([each.float() for each in predicted]).squeeze(2)
        if guided:
            conditional, unconditional = velocity.chunk(2)
            velocity = conditional + guidance.scale * (conditional - unconditional)
            velocity = rescale(velocity, conditional, guidance.rescale)
        return -velocity

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with the config's shift, or one by the number of tokens."""
    flow.set_even_timesteps(scheduler, steps, shape)
