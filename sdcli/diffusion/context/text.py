"""A text prompt as context: y is the sequence of hidden states of CLIP's text encoders.

Knows nothing of noise or of the loop. Every length of prompt is encoded whole, in chunks of the encoder's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdcli.diffusion.context import Context
from sdcli.diffusion.context.chunks import Chunk, chunks
from sdcli.diffusion.model import LatentDiffusionModel, TextEncoder, Tokenizer
from sdcli.recipe.checks import check_clip_skip


@torch.inference_mode()
def encode(
    model: LatentDiffusionModel,
    prompt: str,
    negative_prompt: str,
    *,
    guidance: bool,
    prompt_2: str | None = None,
    clip_skip: int,
    prompt_weights: bool,
    width: int,
    height: int,
    guidance_scale: float,
) -> Context:
    """Encode a prompt for one picture (B = 1).

    `guidance` adds the unconditional half, from `negative_prompt`. `prompt_2` is the text for a second encoder. A U-Net
    that embeds its guidance scale (LCM) gets `timestep_cond` instead. SDXL is trained with zeros for an empty prompt
    (`force_zeros_for_empty_prompt`), and gets pooled embeddings and time ids: original size, crop at 0, 0, and target
    size, of `width` × `height` pixels; its refiner gets an aesthetic score instead of the target size.

    `clip_skip` counts like Automatic1111, 1 … number of layers: 1 is the layer that the model was trained with (the
    last one; for SDXL the second to last), 2 the layer before. diffusers counts clip_skip − 1, and None for 1. As in
    diffusers, the negative prompt always uses the layer that the model was trained with.

    With `prompt_weights` off, brackets and BREAK are text like all other. A prompt too long for one chunk takes as
    many as it needs, their states set one after the other; both halves are filled up with empty chunks to the same
    number. SDXL's pooled embedding is the first chunk's.

    Raises InvalidRecipe for a `clip_skip` that the text encoder does not have.
    """
    layers = min(int(each.model.config.num_hidden_layers) for each in model.text_encoders)
    facts = model.facts
    check_clip_skip(clip_skip, layers, penultimate=facts.knows_sizes)
    with_negative = guidance and not facts.guidance_distilled
    zeros = with_negative and model.force_zeros_for_empty_prompt and not negative_prompt
    second = prompt if prompt_2 is None else prompt_2
    prompts = [(prompt, second)] if zeros or not with_negative else [(prompt, second), (negative_prompt,) * 2]
    tokens = [
        [chunks(each.tokenizer, text, prompt_weights) for each, text in zip(model.text_encoders, texts, strict=False)]
        for texts in prompts
    ]
    count = max(len(each) for of_prompt in tokens for each in of_prompt)

    prompt_embeds, pooled = _embed(model, tokens[0], count, clip_skip)
    negative_embeds, negative_pooled = None, None
    if zeros:
        negative_embeds = torch.zeros_like(prompt_embeds)
        negative_pooled = None if pooled is None else torch.zeros_like(pooled)
    elif with_negative:
        negative_embeds, negative_pooled = _embed(model, tokens[1], count, clip_skip=1)

    time_ids, negative_ids, timestep_cond = None, None, None
    if facts.takes_aesthetics:
        time_ids, negative_ids = (_time_ids(model, height, width, 0, 0, score) for score in AESTHETIC_SCORES)
    elif facts.knows_sizes:
        time_ids = _time_ids(model, height, width, 0, 0, height, width)
    if facts.guidance_distilled:
        width_of_embedding = model.network.config["time_cond_proj_dim"]
        timestep_cond = guidance_embedding(guidance_scale, width_of_embedding).to(model.device)
    return Context(
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_embeds,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=negative_pooled,
        add_time_ids=time_ids,
        negative_add_time_ids=negative_ids,
        timestep_cond=timestep_cond,
    )


AESTHETIC_SCORES = 6.0, 2.5
"""Those of diffusers, of the picture that is wanted and of the one that is not."""


def _time_ids(model: LatentDiffusionModel, *numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float32, device=model.device)


def embed(model: LatentDiffusionModel, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Return the states (n, L, D) of plain prompts, and their pooled embeddings (n, P), with gradients.

    Brackets are text like all other. All prompts have the chunks of the longest. As in `encode`, an empty prompt is
    zeros for a model that is trained so.
    """
    tokens = [[chunks(each.tokenizer, prompt, False) for each in model.text_encoders] for prompt in prompts]
    count = max(len(each) for of_prompt in tokens for each in of_prompt)
    states, pooled = zip(*(_embed(model, each, count, 1) for each in tokens), strict=True)
    kept = [float(bool(prompt) or not model.force_zeros_for_empty_prompt) for prompt in prompts]
    factors = torch.tensor(kept, device=model.device, dtype=states[0].dtype)[:, None]
    return torch.cat(states) * factors[..., None], None if pooled[0] is None else torch.cat(pooled) * factors


def _embed(
    model: LatentDiffusionModel, tokens: Sequence[list[Chunk]], count: int, clip_skip: int
) -> tuple[Tensor, Tensor | None]:
    """The states (1, count · max_length, D) of one prompt's tokens, one list of chunks an encoder, and the pooled.

    D is the sum of the encoders' widths. The pooled embedding (1, P) is the last encoder's, None where the U-Net
    takes none.
    """
    states, pooled, penultimate = [], None, model.facts.knows_sizes
    for encoder, of_encoder in zip(model.text_encoders, tokens, strict=True):
        filled = [*of_encoder, *[[] for _ in range(count - len(of_encoder))]]
        output = _run(encoder, filled)
        if penultimate:  # SDXL: the last layer but one, without the final layer norm
            hidden = output.hidden_states[-(clip_skip + 1)]
            pooled = getattr(output, "text_embeds", None)
        elif clip_skip == 1:
            hidden = output.last_hidden_state
        else:
            inner = getattr(encoder.model, "text_model", encoder.model)
            hidden = inner.final_layer_norm(output.hidden_states[-clip_skip])
        hidden = emphasize(hidden, _framed(encoder.tokenizer, filled, 1, 1.0, 1.0, 1.0))
        states.append(hidden.flatten(0, 1)[None])
    embeds = torch.cat(states, dim=-1).to(model.device)
    return embeds, None if pooled is None else pooled[:1].to(model.device)


def _run(encoder: TextEncoder, filled: Sequence[Chunk]) -> Any:
    tokenizer = encoder.tokenizer
    ids = _framed(tokenizer, filled, 0, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return encoder.model(torch.tensor(ids, device=encoder.model.device), output_hidden_states=True)


def _framed(
    tokenizer: Tokenizer, filled: Sequence[Chunk], part: int, first: float, last: float, pad: float
) -> list[list[Any]]:
    """Ids (part 0) or weights (part 1) of all chunks, each between its special tokens and padded to max_length."""
    rows = [[first, *(token[part] for token in chunk), last] for chunk in filled]
    return [row + [pad] * (tokenizer.max_length - len(row)) for row in rows]


def emphasize(hidden: Tensor, token_weights: Sequence[Sequence[float]]) -> Tensor:
    """Hidden states (n, L, D) with each token's multiplied by its weight, then each chunk's mean restored.

    That is Automatic1111's way ("Original" emphasis): the weights shift attention within a chunk and leave its mean
    over tokens and features as it was. Chunks without weights come back untouched.
    """
    factors = torch.tensor(token_weights, dtype=torch.float32, device=hidden.device)
    if (factors == 1).all():
        return hidden
    weighted = hidden.float() * factors[..., None]
    weighted *= hidden.float().mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True)
    return weighted.to(hidden.dtype)


def guidance_embedding(guidance_scale: float, width: int) -> Tensor:
    """Return the embedding (1, width) of w = guidance_scale − 1 for a guidance-distilled U-Net, float32.

    Sines and cosines of 1000 w at frequencies from 1 down to 1/10000 (Luo et al. 2023, "Latent Consistency Models",
    §4.1, after Meng et al. 2023), as the distilled checkpoints were trained.
    """
    # The angles are thousands of radians: computed in float32 and in this order, as in training, or the sines differ.
    half = width // 2
    spacing = torch.tensor(10_000.0).log() / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -spacing)
    angles = torch.tensor(guidance_scale - 1, dtype=torch.float32) * 1000 * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]
