"""Text in pictures: each letter by the first font that has it. Knows nothing of sheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

from sdcli.errors import InputError
from sdcli.terminal.printable import printable

OWN = Path(__file__).with_name("DejaVuSans.ttf")
_ABSENT = "\U0010ffff"
"""A character that no font has; a font draws those that it lacks like this one."""


class Lettering:
    """Text of one size. `fonts` are files, and sdcli's own font is the last one."""

    def __init__(self, fonts: Sequence[str], size: int) -> None:
        self.size = size
        self.fonts = [_load(each, size) for each in (*fonts, str(OWN))]
        self.missing: set[str] = set()
        self._has = cache(self._has_glyph)

    @property
    def height(self) -> int:
        """The height of a line."""
        return round(self.size * 1.3)

    def width(self, text: str) -> float:
        """Return the width of one line of text."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(self, canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str) -> None:
        """Draw one line of text, whose letters start at the left of `place` and whose line is below it."""
        left, top = place
        for font, run in self._runs(text):
            canvas.text((left, top + self.size), run, font=font, fill=fill, anchor="ls")
            left += font.getlength(run)

    def lines(self, text: str, width: float, most: int) -> list[str]:
        """Break text into at most `most` lines that fit into `width`; what does not fit ends with `…`."""
        found: list[str] = []
        rest = printable(" ".join(text.split()))
        while rest and len(found) < most:
            line = self._fitting(rest, width)
            if len(found) == most - 1 and len(line) < len(rest):
                line = self._cut(rest, width)
                rest = ""
            found.append(line.strip())
            rest = rest[len(line) :].strip()
        return found

    def _fitting(self, text: str, width: float) -> str:
        """The words at the start of `text` that fit, or the letters of a word that is too long."""
        if self.width(text) <= width:
            return text
        line = ""
        for word in text.split(" "):
            longer = f"{line} {word}" if line else word
            if self.width(longer) > width:
                break
            line = longer
        return line or self._letters(text, width)

    def _letters(self, text: str, width: float) -> str:
        kept = 1
        while kept < len(text) and self.width(text[: kept + 1]) <= width:
            kept += 1
        return text[:kept]

    def _cut(self, text: str, width: float) -> str:
        return self._letters(text, width - self.width("…")).rstrip() + "…"

    def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """Yield parts of `text` with the font of each."""
        run, last = "", 0
        for letter in text:
            place = self._place(letter)
            if run and place != last:
                yield self.fonts[last], run
                run = ""
            run, last = run + letter, place
        if run:
            yield self.fonts[last], run

    def _place(self, letter: str) -> int:
        for place in range(len(self.fonts)):
            if self._has(place, letter):
                return place
        self.missing.add(letter)
        return len(self.fonts) - 1

    def _has_glyph(self, place: int, letter: str) -> bool:
        font = self.fonts[place]
        return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(_ABSENT))


def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot use the font {path}: {error}", "give a TrueType or OpenType font, such as NotoSansCJK-Regular.ttc"
        ) from error
