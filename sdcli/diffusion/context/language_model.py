"""A text prompt as context: y is the hidden states of a language model, Qwen, Gemma or T5, and not of CLIP.

Knows nothing of noise or of the loop. A prompt that is too long is cut, which is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcli.diffusion.context import Context
from sdcli.errors import ModelCorrupt

if TYPE_CHECKING:
    from sdcli.diffusion.model import TextEncoder


@dataclass(frozen=True)
class Encoded:
    """An encoded text: `embeds` (1, L, D), and a note if it was cut.

    `pooled` (1, P) and the `mask` (1, L) of tokens are for models that take them.
    """

    embeds: Tensor
    note: str | None = None
    pooled: Tensor | None = None
    mask: Tensor | None = None


def as_chat(tokenizer: Any, text: str, **options: Any) -> str:
    """Return `text` as the message of a user, in the tokenizer's template. Raises ModelCorrupt without a valid one."""
    messages = [{"role": "user", "content": text}]
    try:
        framed: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # the library raises anything for an invalid template
        what = f"the model's tokenizer has no valid chat template: {' '.join(str(error).split())}"
        raise ModelCorrupt(what, "download the model's folder again, with its tokenizer") from error
    return framed


def ids_of(tokenizer: Any, text: str, most: int) -> tuple[Tensor, str | None]:
    """Return the ids (1, L) of at most `most` tokens of `text`, and a note if there are more."""
    ids = tokenizer(text).input_ids
    return torch.tensor([ids[:most]]), _too_long(len(ids), most)


def padded_ids(tokenizer: Any, text: str, length: int) -> tuple[Tensor, Tensor, str | None]:
    """Return ids (1, length) of `text`, padded or cut, their attention mask, and a note if it was cut."""
    whole = tokenizer(text).input_ids
    padded = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return padded.input_ids, padded.attention_mask, _too_long(len(whole), length)


def _too_long(count: int, most: int) -> str | None:
    """Return the note about a prompt of `count` tokens, or None if it is not too long."""
    if count <= most:
        return None
    return f"the prompt has {count} tokens with its template, and the text encoder takes {most}: the rest is not used"


@torch.inference_mode()
def hidden_states(model: Any, ids: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, ...]:
    """Return the states (1, L, D) before the first layer and after each layer of a language model."""
    if mask is not None:
        options["attention_mask"] = mask.to(model.device)
    states: tuple[Tensor, ...] = model(
        input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False, **options
    ).hidden_states
    return states


@torch.inference_mode()
def t5_states(encoder: TextEncoder, text: str, length: int) -> tuple[Tensor, str | None]:
    """Return the states (1, length, D) of T5's encoder, of a prompt padded or cut to `length` tokens, and a note.

    T5 is run without a mask, as the models were trained.
    """
    ids, _, note = padded_ids(encoder.tokenizer, text, length)
    states: Tensor = encoder.model(ids.to(encoder.model.device))[0]
    return states, note


@torch.inference_mode()
def clip_output(encoder: TextEncoder, text: str) -> Any:
    """Return the output of a CLIP text encoder with all hidden states, for one chunk; longer prompts are cut."""
    tokenizer = encoder.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode(text)[: tokenizer.max_length - 2], tokenizer.eos_id]
    ids += [tokenizer.pad_id] * (tokenizer.max_length - len(ids))
    return encoder.model(torch.tensor([ids], device=encoder.model.device), output_hidden_states=True)


def context_of(prompt: Encoded, negative: Encoded | None) -> Context:
    """Return the context of an encoded prompt, with an unconditional half if a negative prompt was encoded."""
    halves = [prompt] if negative is None else [prompt, negative]
    return Context(
        prompt_embeds=prompt.embeds,
        negative_prompt_embeds=None if negative is None else negative.embeds,
        prompt_mask=prompt.mask,
        negative_prompt_mask=None if negative is None else negative.mask,
        pooled_prompt_embeds=prompt.pooled,
        negative_pooled_prompt_embeds=None if negative is None else negative.pooled,
        notes=tuple(dict.fromkeys(each.note for each in halves if each.note is not None)),
    )
