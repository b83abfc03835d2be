"""The syntax of --guidance-interval: `LOW-HIGH`. Knows nothing of schedulers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_KEY = "guidance_interval"


@dataclass(frozen=True)
class Interval:
    """Times from `low` to `high`, as fractions of the training timesteps: 0 is the picture, 1 is pure noise."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`. Raises InvalidRecipe."""
        match = re.fullmatch(rf"{_NUMBER}-{_NUMBER}", text, re.ASCII)
        if match is None:
            raise InvalidRecipe(f"{_KEY} is {text!r}", "write it as LOW-HIGH, such as 0.1-0.8", _KEY)
        made = cls(float(match[1]), float(match[2]))
        if not 0 <= made.low < made.high <= 1:
            hint = "give two numbers between 0 (the picture) and 1 (pure noise), the smaller first: 0.1-0.8"
            raise InvalidRecipe(f"{_KEY} is {text}", hint, _KEY)
        return made

    def covers(self, time: float) -> bool:
        """Whether `time`, a fraction of the training timesteps, is inside; both ends are."""
        return self.low <= time <= self.high
