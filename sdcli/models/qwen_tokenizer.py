"""The tokenizer that Qwen2, Qwen2.5 and Qwen3 share, from the merges in families/qwen."""

from __future__ import annotations

import lzma
from functools import cache
from typing import Any

from sdcli.models import families
from sdcli.models.tokenizer import byte_letters

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's template makes of messages without tools."""


def make(kind: Any) -> Any:
    """Return the tokenizer that Qwen2, Qwen2.5 and Qwen3 share, with Qwen3's tokens."""
    from transformers import AddedToken

    vocab, merges = _vocabulary()
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    added = {
        len(vocab) + place: AddedToken(token, normalized=False, special=token in _SPECIAL)
        for place, token in enumerate((*_SPECIAL, *_ADDED))
    }
    return kind(vocab=vocab, merges=merges, added_tokens_decoder=added, chat_template=_CHAT, **ends)


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = lzma.decompress((families.QWEN / "merges.txt.xz").read_bytes()).decode().splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    tokens = [*byte_letters().values(), *("".join(pair) for pair in merges)]
    return {token: place for place, token in enumerate(tokens)}, merges
