r"""Weights in a prompt, in the notation of Automatic1111: text in, weighted text out. Knows no tokens, no tensors.

`(fox:1.3)` weighs 1.3, `(fox)` 1.1 and `[fox]` 1/1.1; nested brackets multiply. `BREAK`, a word by itself, starts a
new chunk of the text encoder. A backslash makes the bracket or backslash after it a letter.

What is not well-formed is taken as Automatic1111 takes it: a bracket that nothing closes weighs all that follows, one
that closes nothing is a letter, and so is a weight that is no number or stands in no round bracket. It differs in two
cases, where that one fails: BREAK works inside brackets too, and `(fox:1.2.3)` is text.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

ROUND = 1.1
SQUARE = 1 / 1.1

_MARK = re.compile(
    r"""
      \\ (?P<letter> [()\[\]\\] )
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? (?: [0-9]+ \.? [0-9]* | \. [0-9]+ ) ) \s* \)
    | (?P<close> [)\]] )
    | (?P<break> \s* \b BREAK \b \s* )
    """,
    re.VERBOSE,
)


class Weighted(NamedTuple):
    """A stretch of text, brackets gone, and the weight of all its tokens; 1 is none."""

    text: str
    weight: float


def parse(prompt: str) -> list[list[Weighted]]:
    """The stretches of `prompt` in order, in one list for each part that BREAK sets off. Never raises.

    Neighbours of one weight are merged, empty stretches dropped: a prompt without marks is one stretch.
    """
    texts: list[str | None] = []  # None is a BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(text: str | None) -> None:
        texts.append(text)
        weights.append(1.0)

    def weigh(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    end = 0
    for mark in _MARK.finditer(prompt):
        add(prompt[end : mark.start()])
        end = mark.end()
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
