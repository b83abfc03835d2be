"""The syntax of --image-prompt: `IMAGE[:scale]`. Knows nothing of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe
from sdcli.recipe.numbers import plain

MAX_SCALE = 5.0
FORM = "IMAGE[:scale]"
_WORDS = re.compile(r"(?P<image>.+?)(?::(?P<scale>\d+(?:\.\d*)?|\.\d+))?", re.DOTALL | re.ASCII)


@dataclass(frozen=True)
class ImagePrompt:
    """An image that says what to draw, and how strongly."""

    image: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`. A number at its end is not part of the image's name. Raises InvalidRecipe."""
        match = _WORDS.fullmatch(text)
        if match is None or "\0" in text:
            raise InvalidRecipe(f"image_prompt is {text!r}", f"write it as {FORM}", "image_prompt")
        scale = 1.0 if match["scale"] is None else float(match["scale"])
        if scale > MAX_SCALE:
            hint = f"it must be between 0 and {MAX_SCALE:g}; usual ones are 0.5 to 1"
            raise InvalidRecipe(f"image_prompt {text}: the scale is {scale:g}", hint, "image_prompt")
        return cls(match["image"], scale)

    def __str__(self) -> str:
        """The canonical text, which `parse` reads."""
        bare = _WORDS.fullmatch(self.image)
        ends_in_number = bare is None or bare["scale"] is not None
        return self.image if self.scale == 1 and not ends_in_number else f"{self.image}:{plain(self.scale)}"


def canonical(text: str) -> str:
    """Return the canonical form of `text`. Raises InvalidRecipe."""
    return str(ImagePrompt.parse(text))
