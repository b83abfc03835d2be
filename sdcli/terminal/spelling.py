"""Hints for words that are not known: the known word that is spelt most like them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is spelt most like `word`, or None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return a hint for the unknown `word`: the nearest known word, or `otherwise` if none is close."""
    near = nearest(word, known)
    return otherwise if near is None else f"did you mean {near!r}?"
