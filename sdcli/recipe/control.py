"""The syntax of --control: `NAME=[canny[(low,high)]:]IMAGE[:scale[:start-end]]`. Knows nothing of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe
from sdcli.recipe.numbers import plain

MAX_SCALE = 10.0
CANNY = 100, 200
"""The usual thresholds of Canny's detector, of up to MAX_THRESHOLD."""
MAX_THRESHOLD = 2000

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_WORDS = re.compile(
    rf"""
    (?P<name> [^=]+? ) (?: = (?P<canny> canny (?: \( (?P<low> \d{{1,4}} ) , (?P<high> \d{{1,4}} ) \) )? :
    (?! {_NUMBER} (?: : {_NUMBER} - {_NUMBER} )? \Z ) )? (?P<image> .*? ) )?
    (?: : (?P<scale> {_NUMBER} ) (?: : (?P<start> {_NUMBER} ) - (?P<end> {_NUMBER} ) )? )?
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
FORM = "NAME=IMAGE[:scale[:start-end]]"


@dataclass(frozen=True)
class Control:
    """A ControlNet's name, the image it reads, its scale, and the fraction of the steps where it starts and ends.

    Without an image it reads the recipe's segmentation map. With `canny`, the thresholds of Canny's detector, it reads
    the edges of the image.
    """

    name: str
    image: str | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    canny: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`. Numbers at its end are not part of the image's name. Raises InvalidRecipe."""
        match = _WORDS.fullmatch(text)
        if match is None or match["image"] == "":
            raise InvalidRecipe(f"control is {text!r}", f"write it as {FORM}", "control")
        numbers = {key: float(match[key]) for key in ("scale", "start", "end") if match[key] is not None}
        canny = None
        if match["canny"] is not None:
            canny = CANNY if match["low"] is None else (int(match["low"]), int(match["high"]))
            if not canny[0] <= canny[1] <= MAX_THRESHOLD:
                hint = f"give two numbers up to {MAX_THRESHOLD}, the lower first, such as canny(100,200)"
                raise InvalidRecipe(f"control {text}: the thresholds are {canny[0]} and {canny[1]}", hint, "control")
        made = cls(match["name"], match["image"], **numbers, canny=canny)
        if made.scale > MAX_SCALE:
            hint = f"it must be between 0 and {MAX_SCALE:g}; ControlNets are trained with 1"
            raise InvalidRecipe(f"control {text}: the scale is {made.scale:g}", hint, "control")
        if not 0 <= made.start < made.end <= 1:
            hint = "give two fractions of the steps between 0 and 1, the smaller first: 0-0.5"
            raise InvalidRecipe(f"control {text}: from {made.start:g} to {made.end:g}", hint, "control")
        return made

    def covers(self, index: int, total: int) -> bool:
        """Whether evaluation `index` of `total`, counted from 0, is completely inside the range."""
        return index / total >= self.start and (index + 1) / total <= self.end

    def __str__(self) -> str:
        """The canonical text of this control, which `parse` reads."""
        numbers = [plain(self.scale)]
        if (self.start, self.end) != (0, 1):
            numbers.append(f"{plain(self.start)}-{plain(self.end)}")
        elif self.scale == 1 and not self._ends_in_numbers:
            numbers = []
        return ":".join([self._bare, *numbers])

    @property
    def _ends_in_numbers(self) -> bool:
        """Whether the text without numbers would be parsed as if it had numbers."""
        bare = _WORDS.fullmatch(self._bare)
        return bare is None or bare["scale"] is not None

    @property
    def _bare(self) -> str:
        """The text without numbers."""
        if self.image is None:
            return self.name
        usual = "canny:" if self.canny == CANNY else f"canny({','.join(map(str, self.canny or ()))}):"
        return f"{self.name}={usual if self.canny else ''}{self.image}"


def canonical(text: str) -> str:
    """Return the canonical form of `text`. Raises InvalidRecipe."""
    return str(Control.parse(text))
