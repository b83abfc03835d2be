"""The syntax of --cache: `deepcache:INTERVAL` or `first-block:THRESHOLD`. Knows nothing of networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe
from sdcli.terminal.spelling import did_you_mean

DEEPCACHE, FIRST_BLOCK = "deepcache", "first-block"
METHODS = (DEEPCACHE, FIRST_BLOCK)
MAX_INTERVAL = 100
_MOST_FIRST = 3
_DEFAULTS = {DEEPCACHE: 3.0, FIRST_BLOCK: 0.1}
_KEY = "cache"
_EXAMPLE = "write it as deepcache:3 or first-block:0.1"


@dataclass(frozen=True)
class Cache:
    """What is reused between the steps of a picture.

    `deepcache` computes the whole U-Net in the first evaluations and then in every `value`-th, and only its outer
    layers in the others.
    `first-block` computes only the first block of a transformer if its result has changed by less than `value`,
    relative to the last time that all blocks were computed.
    """

    method: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`; without a value, it is 3 for deepcache and 0.1 for first-block. Raises InvalidRecipe."""
        method, _, value = text.partition(":")
        if method not in METHODS:
            hint = did_you_mean(method, METHODS, _EXAMPLE)
            raise InvalidRecipe(f"{_KEY} is {text!r}, and there is no such method", hint, _KEY)
        if ":" not in text:
            return cls(method, _DEFAULTS[method])
        if not re.fullmatch(r"\d{1,3}" if method == DEEPCACHE else r"\d{1,3}(\.\d{1,9})?|\.\d{1,9}", value, re.ASCII):
            raise InvalidRecipe(f"{_KEY} is {text!r}", _EXAMPLE, _KEY)
        made = cls(method, float(value))
        if method == DEEPCACHE and not 2 <= made.value <= MAX_INTERVAL:
            raise InvalidRecipe(f"{_KEY} is {text}", f"the interval must be between 2 and {MAX_INTERVAL}", _KEY)
        if method == FIRST_BLOCK and not 0 < made.value <= 1:
            raise InvalidRecipe(f"{_KEY} is {text}", "the threshold must be above 0, and at most 1", _KEY)
        return made

    @property
    def first(self) -> int:
        """How many evaluations at the beginning of a picture are whole."""
        return min(int(self.value), _MOST_FIRST) if self.method == DEEPCACHE else 1

    def __str__(self) -> str:
        return f"{self.method}:{self.value:.9f}".rstrip("0").rstrip(".")
