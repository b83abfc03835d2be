"""What a user says of one ControlNet: `NAME=IMAGE[:scale[:start-end]]`. Words only; knows nothing of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Self

from sdcli.errors import InvalidRecipe

MAX_SCALE = 10.0

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_WORDS = re.compile(
    rf"""
    (?P<name> [^=]+? ) (?: = (?P<image> .*? ) )?
    (?: : (?P<scale> {_NUMBER} ) (?: : (?P<start> {_NUMBER} ) - (?P<end> {_NUMBER} ) )? )?
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
FORM = "NAME=IMAGE[:scale[:start-end]]"


@dataclass(frozen=True)
class Control:
    """A ControlNet by name, the picture it reads, how strongly it counts, and from which to which share of the steps.

    Without an image it reads the recipe's segmentation map.
    """

    name: str
    image: str | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `text` says. Numbers at its end are no part of the image's name. Raises InvalidRecipe."""
        match = _WORDS.fullmatch(text)
        if match is None or match["image"] == "":
            raise InvalidRecipe(f"control is {text!r}", f"write it as {FORM}", "control")
        said = {key: float(match[key]) for key in ("scale", "start", "end") if match[key] is not None}
        made = cls(match["name"], match["image"], **said)
        if made.scale > MAX_SCALE:
            hint = f"it must be between 0 and {MAX_SCALE:g}; 1 is as the ControlNet was trained"
            raise InvalidRecipe(f"control {text}: the scale is {made.scale:g}", hint, "control")
        if not 0 <= made.start < made.end <= 1:
            hint = "they are shares of the steps, between 0 and 1, the first the smaller: 0-0.5"
            raise InvalidRecipe(f"control {text}: from {made.start:g} to {made.end:g}", hint, "control")
        return made

    def covers(self, index: int, total: int) -> bool:
        """Whether call `index` of the U-Net, of `total` and counted from 0, lies wholly within the range."""
        return index / total >= self.start and (index + 1) / total <= self.end

    def __str__(self) -> str:
        """The one text for this control, which `parse` reads."""
        numbers = [_plain(self.scale)]
        if (self.start, self.end) != (0, 1):
            numbers.append(f"{_plain(self.start)}-{_plain(self.end)}")
        elif self.scale == 1 and not self._ends_in_numbers:
            numbers = []
        return ":".join([self.name if self.image is None else f"{self.name}={self.image}", *numbers])

    @property
    def _ends_in_numbers(self) -> bool:
        """Whether the words without numbers would be read as words with them."""
        bare = _WORDS.fullmatch(self.name if self.image is None else f"{self.name}={self.image}")
        return bare is None or bare["scale"] is not None


def canonical(text: str) -> str:
    """The one text that says what `text` does. Raises InvalidRecipe."""
    return str(Control.parse(text))


def _plain(number: float) -> str:
    """A number as `parse` reads it back: the shortest that is exact, and no exponent."""
    return f"{Decimal(repr(number)):f}".removesuffix(".0")
