"""The words of a prompt, and which tokens of the context each one is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdcli.diffusion.context.chunks import chunks
from sdcli.diffusion.model import LatentDiffusionModel, Tokenizer
from sdcli.recipe.parts import Condition

END = "</w>"
"""What CLIP's last token of a word ends in."""
_START = "▁"
"""What T5's first token of a word starts with."""


@dataclass(frozen=True)
class Word:
    """A word with its tokens: their texts, and their places in the context."""

    text: str
    tokens: tuple[str, ...]
    places: tuple[int, ...]


def of(model: LatentDiffusionModel, condition: Condition) -> list[Word]:
    """Return the words of a prompt in order, if the model's attention to them can be seen."""
    if condition.label is not None or not model.text_encoders:
        return []
    if model.architecture == "flux":
        return _of_t5(model, condition.prompt_2 or condition.prompt)
    tokenizer: Tokenizer = model.text_encoders[0].tokenizer
    if model.architecture == "sd3":
        ids = tokenizer.encode(condition.prompt)[: tokenizer.max_length - 2]
        return list(_words(tokenizer, ids, 1))
    found: list[Word] = []
    for number, chunk in enumerate(chunks(tokenizer, condition.prompt, condition.prompt_weights)):
        found += _words(tokenizer, [token for token, _ in chunk], number * tokenizer.max_length + 1)
    return found


def _words(tokenizer: Tokenizer, ids: Sequence[int], first: int) -> Iterator[Word]:
    """Yield the words of CLIP's tokens, the first of which has the place `first`."""
    from tokenizers.decoders import ByteLevel

    start = 0
    for index, token in enumerate(ids):
        if index + 1 == len(ids) or (tokenizer.byte_pairs.id_to_token(token) or END).endswith(END):
            part = list(ids[start : index + 1])
            tokens = tuple(str(tokenizer.byte_pairs.id_to_token(each)).removesuffix(END) for each in part)
            yield Word(ByteLevel().decode(list(tokens)), tokens, tuple(range(first + start, first + index + 1)))
            start = index + 1


def _of_t5(model: LatentDiffusionModel, prompt: str) -> list[Word]:
    tokenizer = model.text_encoders[1].tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt, add_special_tokens=False).input_ids)
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        if not groups or token.startswith(_START):
            groups.append([])
        groups[-1].append(place)
    return [
        Word(
            "".join(tokens[each] for each in group).replace(_START, ""),
            tuple(tokens[each] for each in group),
            tuple(group),
        )
        for group in groups
    ]
