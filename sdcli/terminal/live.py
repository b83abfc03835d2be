"""A small picture above a progress bar, of half-block characters, while a picture is made. Nothing here can fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.segment import Segment

COLUMNS, ROWS = 48, 20
SHARE = 0.02
"""Of the time since the start, at most this much is used for pictures; drawing frames takes about a hundredth more."""
_BLOCK = "▀"


class Live:
    """What rich draws above the bar: the last picture, or nothing."""

    def __init__(self, console: Console) -> None:
        encoding = (console.encoding or "").lower()
        colours = console.color_system in ("256", "truecolor") and not os.environ.get("NO_COLOR")
        self._fits = colours and "utf" in encoding
        self._size = min(COLUMNS, console.width), min(ROWS, console.height - 4)
        self._started, self._spent = time.monotonic(), 0.0
        self._segments: list[Segment] = []

    def update(self, preview: Callable[[], Image | None]) -> None:
        """Draw what `preview` returns, if it can be drawn and there is time for it."""
        now = time.monotonic()
        if not self._fits or min(self._size) < 1 or self._spent > SHARE * (now - self._started):
            return
        with suppress(Exception):
            image = preview()
            if image is not None:
                self._segments = list(_half_blocks(image, *self._size))
        self._spent += time.monotonic() - now

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Segment]:
        """Yield what was drawn; rich calls this for every frame."""
        yield from self._segments


def _half_blocks(image: Image, columns: int, rows: int) -> Iterator[Segment]:
    """Yield the picture in at most so many columns and rows: each character has two pixels, one above the other."""
    from rich.color import Color
    from rich.segment import Segment
    from rich.style import Style

    scale = min(columns / image.width, 2 * rows / image.height, 1)
    width, height = max(1, int(image.width * scale)), max(2, int(image.height * scale) // 2 * 2)
    pixels = image.convert("RGB").resize((width, height)).tobytes()
    for top in range(0, height, 2):
        for column in range(width):
            upper, lower = (3 * ((top + below) * width + column) for below in (0, 1))
            colours = (Color.from_rgb(*pixels[place : place + 3]) for place in (upper, lower))
            yield Segment(_BLOCK, Style(color=next(colours), bgcolor=next(colours)))
        yield Segment.line()
