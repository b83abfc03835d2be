"""A prompt's tokens, divided into the chunks that a text encoder takes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdcli.diffusion.context import weights
from sdcli.diffusion.model import Tokenizer
from sdcli.errors import InvalidRecipe

MAX_CHUNKS = 100
"""About 7,500 tokens. The states of each chunk take memory, and time in each step."""

Chunk = list[tuple[int, float]]
"""The tokens of one call of the encoder, without special tokens: ids and weights."""


def chunks(tokenizer: Tokenizer, prompt: str, prompt_weights: bool = True) -> list[Chunk]:
    """The tokens of `prompt`, divided into chunks of at most `max_length` − 2; at least one, which may be empty.

    A word's tokens stay together unless they fill more than a chunk. BREAK ends a chunk, even an empty one. Raises
    InvalidRecipe for more than MAX_CHUNKS.
    """
    room = tokenizer.max_length - 2
    parts = weights.parse(prompt) if prompt_weights else [[weights.Weighted(prompt, 1.0)]]
    least = len(parts) if parts[-1] else len(parts) - 1
    if least > MAX_CHUNKS:
        raise _too_long(least)
    result: list[Chunk] = []
    for part in parts:
        result.append([])
        for word in _words(tokenizer, part):
            if len(result[-1]) + len(word) > room >= len(word):
                result.append([])
            for token in word:
                if len(result[-1]) == room:
                    result.append([])
                result[-1].append(token)
    if len(result) > 1 and not result[-1]:
        result.pop()
    if len(result) > MAX_CHUNKS:
        raise _too_long(len(result))
    return result


def _too_long(count: int) -> InvalidRecipe:
    return InvalidRecipe(
        f"a prompt takes {count} chunks of the text encoder", f"shorten it to at most {MAX_CHUNKS} chunks", "prompt"
    )


def _words(tokenizer: Tokenizer, part: Sequence[weights.Weighted]) -> Iterator[Chunk]:
    """Yield the tokens of each word, with its weight."""
    for text, weight in part:
        for word in tokenizer.split(text):
            yield [(token, weight) for token in word]
