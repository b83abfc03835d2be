"""FLUX.2 [klein]: a transformer over text and image tokens, trained by flow matching (Black Forest Labs 2025).

y is the states of three layers of a Qwen3 language model, side by side, and reference images as further tokens.
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

MOST_TOKENS = 512
MOST_REFERENCES, MOST_REFERENCE_PIXELS = 10, 1024**2
LAYERS = (9, 18, 27)
"""The layers of the language model whose states are used."""


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a transformer and its VAE, and from model_index.json whether the model is distilled."""
    space, distilled = LatentSpace.of(vae), bool(index.get("is_distilled", False))
    return Facts(
        native_size=1024,
        size_multiple=space.vae_scale_factor,
        in_channels=int(network.get("in_channels", 128)),
        latent_space=space,
        unguided=distilled,
        most_references=MOST_REFERENCES,
        prompts=Prompts(MOST_TOKENS, syntax=False),
        is_flow=True,
        defaults={
            "scheduler": "euler",
            "steps": 4 if distilled else 50,
            "guidance_scale": 1.0 if distilled else 4.0,
        },
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and two hidden layers of three times its width."""
    width = int(network.get("num_attention_heads", 48)) * int(network.get("attention_head_dim", 128))
    return 12 * width * (latents // 4 + MOST_TOKENS)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE: its config, and the statistics of its batch norm, if they are loaded."""
    if vae.bn.running_mean.is_meta:
        return LatentSpace.of(vae.config)
    deviation = (vae.bn.running_var.double() + vae.config.batch_norm_eps).sqrt()
    return LatentSpace.of(vae.config).with_statistics(vae.bn.running_mean.tolist(), deviation.tolist())


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the text encoder's width and the latents' channels with those of the transformer."""
    config, text = model.network.config, model.text_encoders[0].model.config
    width = fitting.of_text(len(LAYERS) * text.hidden_size, config["joint_attention_dim"])
    if width is None and text.num_hidden_layers < LAYERS[-1]:
        return f"its text encoder has {text.num_hidden_layers} layers, and layer {LAYERS[-1]} is used"
    return width or fitting.of_latents(model.latent_channels, config["in_channels"])


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode the prompt, and the negative prompt if there is guidance and the model is not distilled."""
    from sdcli.diffusion.context import language_model

    negative = _states(model, condition.negative_prompt) if model.facts.is_guided(guidance.scale) else None
    return language_model.context_of(_states(model, condition.prompt), negative)


def _states(model: LatentDiffusionModel, text: str) -> Encoded:
    """Return the states (1, 512, 3D) of a text in the template of a chat, padded or cut, and a note if it was cut."""
    import torch

    from sdcli.diffusion.context import language_model

    encoder = model.text_encoders[0]
    framed = language_model.as_chat(encoder.tokenizer, text, enable_thinking=False)
    ids, mask, note = language_model.padded_ids(encoder.tokenizer, framed, MOST_TOKENS)
    states = language_model.hidden_states(encoder.model, ids, mask)
    joined = torch.cat([states[layer] for layer in LAYERS], dim=-1)
    return language_model.Encoded(joined.to(model.device, model.dtype), note)


def reference_latents(model: LatentDiffusionModel, picture: Picture) -> Tensor:
    """Encode a reference image of at most 1024² pixels, cropped to the multiples that the model takes."""
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    from sdcli.diffusion import autoencode

    multiple = model.vae_scale_factor
    processor = Flux2ImageProcessor(vae_scale_factor=multiple)
    if picture.width * picture.height > MOST_REFERENCE_PIXELS:
        picture = processor._resize_to_target_area(picture, MOST_REFERENCE_PIXELS)
    width, height = (max(side // multiple, 1) * multiple for side in picture.size)
    pixels = processor.preprocess(picture, height=height, width=width, resize_mode="crop")
    return autoencode.encode_mean(model, pixels)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for each half of guidance. Its time is 0 … 1."""
    import torch

    assert context.prompt_embeds is not None
    dtype, device = network.dtype, context.prompt_embeds.device
    embeds = context.halves(batch, dtype)
    text_ids = _text_positions(embeds[0].shape[1]).to(device)
    references = [packing.flatten(each).expand(batch, -1, -1) for each in context.reference_latents]
    reference_ids = _reference_positions([(each.shape[2], each.shape[3]) for each in context.reference_latents])

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        height, width = latents.shape[2:]
        tokens = packing.flatten(latents)
        image_ids = torch.cat([_image_positions(0, height, width), *reference_ids]).to(device)
        arguments = {
            "hidden_states": torch.cat([tokens, *references], dim=1).to(dtype),
            "timestep": timestep.expand(batch).to(dtype) / 1000,
            "txt_ids": text_ids.expand(batch, -1, -1),
            "img_ids": image_ids.expand(batch, -1, -1),
            "return_dict": False,
        }
        predicted = [network(encoder_hidden_states=half, guidance=None, **arguments)[0] for half in embeds]
        velocity = torch.cat(
            [packing.unflatten(each[:, : tokens.shape[1]].float(), height, width) for each in predicted]
        )
        return guide(velocity, guidance) if len(embeds) == 2 else velocity

    return denoiser


def _text_positions(length: int) -> Tensor:
    """Return the positions (L, 4) of text tokens: 0, 0, 0, place."""
    import torch

    return torch.nn.functional.pad(torch.arange(length)[:, None], (3, 0))


def _image_positions(place: int, height: int, width: int) -> Tensor:
    """Return the positions (h · w, 4) of an image's tokens: its place among the images, row, column, 0."""
    import torch

    return torch.cartesian_prod(torch.tensor([place]), torch.arange(height), torch.arange(width), torch.arange(1))


def _reference_positions(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the positions of the tokens of reference images, whose places are 10, 20 and so on."""
    return [_image_positions(10 * count, *size) for count, size in enumerate(sizes, start=1)]


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Set evenly spaced timesteps with a shift by the numbers of tokens and of steps."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    mu = compute_empirical_mu(image_seq_len=shape[1] * shape[2], num_steps=steps)
    flow.set_timesteps(scheduler, steps, mu, flow.even(steps, 1 / steps))
