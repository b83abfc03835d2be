r"""Weights in a prompt, in Automatic1111's syntax: from text to weighted text. Knows nothing of tokens and tensors.

`(fox:1.3)` weighs 1.3, `(fox)` 1.1 and `[fox]` 1/1.1; nested brackets multiply. `BREAK`, a word by itself, starts a
new chunk of the text encoder. A backslash makes the bracket or backslash after it a letter.

Malformed syntax is handled like in Automatic1111: an unclosed bracket applies to everything after it; a closing bracket
without an opening one is literal, as is a weight that is not a number or not in round brackets. There are two
differences, where Automatic1111 fails: BREAK also works inside brackets, and `(fox:1.2.3)` is text.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

ROUND = 1.1
SQUARE = 1 / 1.1

# Possessive quantifiers, and blanks before BREAK stripped afterwards: each letter is read once.
_MARK = re.compile(
    r"""
      \\ (?P<letter> [()\[\]\\] )
    | (?P<open> [(\[] )
    | : \s*+ (?P<weight> [+-]? (?: [0-9]++ \.?+ [0-9]*+ | \. [0-9]++ ) ) \s*+ \)
    | (?P<close> [)\]] )
    | (?P<break> \b BREAK \b \s*+ )
    """,
    re.VERBOSE,
)


class Weighted(NamedTuple):
    """Text without its brackets, and the weight of its tokens; 1 means no weight."""

    text: str
    weight: float


def parse(prompt: str) -> list[list[Weighted]]:
    """Parse `prompt` to weighted texts in order, one list for each part between BREAKs. Never raises.

    Neighbours with the same weight are merged and empty texts are dropped: a prompt without weights is one text.
    """
    texts: list[str | None] = []  # None is a BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(text: str | None) -> None:
        if text == "":
            return
        texts.append(text)
        weights.append(1.0)

    def weigh(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    end = 0
    for mark in _MARK.finditer(prompt):
        before, end = prompt[end : mark.start()], mark.end()
        add(before.rstrip() if mark["break"] else before)
        if mark["open"]:
            opened[mark["open"]].append(len(texts))
        elif mark["weight"] and opened["("] and math.isfinite(float(mark["weight"])):
            weigh("(", float(mark["weight"]))
        elif mark["close"] == ")" and opened["("]:
            weigh("(", ROUND)
        elif mark["close"] == "]" and opened["["]:
            weigh("[", SQUARE)
        elif mark["break"]:
            add(None)
        else:
            add(mark["letter"] or mark[0])
    add(prompt[end:])
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            weigh(bracket, factor)
    return _merged(texts, weights)


def _merged(texts: list[str | None], weights: list[float]) -> list[list[Weighted]]:
    parts: list[list[Weighted]] = [[]]
    for text, weight in zip(texts, weights, strict=True):
        part = parts[-1]
        if text is None:
            parts.append([])
        elif text and part and part[-1].weight == weight:
            part[-1] = Weighted(part[-1].text + text, weight)
        elif text:
            part.append(Weighted(text, weight))
    return parts
