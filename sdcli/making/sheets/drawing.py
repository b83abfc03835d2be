"""Draws a sheet: grids with the labels of their rows and columns, or pictures with captions, on white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sdcli.errors import UsageError
from sdcli.making.sheets.axes import Arrangement, Block
from sdcli.making.sheets.fonts import Lettering

MAX_PIXELS = 64_000_000
MAX_SIDE = 32_000
SMALLEST = 24
"""Pixels per side of the smallest pictures; more pictures than fit like this need a page."""
_MARGIN, _GAP = 20, 6
_LABEL_WIDTH, _LABEL_LINES, _CAPTION_LINES = 180, 3, 2
_LEAST_FOR_CAPTIONS = 96
_INK, _PALE, _EMPTY = "#1b1b1f", "#5c5c66", "#ececf0"

Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Style:
    """The text of a sheet: labels, and headings."""

    small: Lettering
    large: Lettering


def side_for(count: int, asked: int) -> int:
    """Return the side of the pictures, so that a sheet of `count` has at most about MAX_PIXELS.

    Raises UsageError if it would be below SMALLEST.
    """
    side = min(asked, math.isqrt(MAX_PIXELS // max(count, 1)) - _GAP)
    if side < SMALLEST:
        raise UsageError(f"{count:,} pictures are too many for one PNG", "write a page instead: -o sheet.html")
    return side


def draw(arranged: Arrangement, pictures: Pictures, captions: Sequence[str], style: Style) -> Image.Image:
    """Draw the pictures as `arranged`; `captions` are below them if there are no axes.

    Raises UsageError for a grid that is too large.
    """
    cell = max(each.width for each in pictures), max(each.height for each in pictures)
    if not arranged.blocks:
        return _loose(pictures, captions, cell, style)
    grids = [_Grid(block, pictures, cell, style) for block in arranged.blocks]
    width, height = max(each.width for each in grids), max(each.height for each in grids)
    columns = _columns(len(grids), width, height)
    rows = math.ceil(len(grids) / columns)
    sheet = _canvas(columns * (width + _MARGIN) + _MARGIN, rows * (height + _MARGIN) + _MARGIN)
    canvas = ImageDraw.Draw(sheet)
    for number, grid in enumerate(grids):
        left, top = number % columns * (width + _MARGIN), number // columns * (height + _MARGIN)
        grid.paste(sheet, canvas, (left + _MARGIN, top + _MARGIN))
    return sheet


def _columns(count: int, width: int, height: int) -> int:
    """How many of `count` things of a size are next to each other on a sheet of about 4:3."""
    return max(1, min(count, round(math.sqrt(count * height / width * 4 / 3))))


def _canvas(width: int, height: int) -> Image.Image:
    if max(width, height) > MAX_SIDE or width * height > 3 * MAX_PIXELS:
        raise UsageError(
            f"the sheet would have {width}×{height} pixels",
            "choose a smaller --thumbnail, or write a page with --html",
        )
    return Image.new("RGB", (width, height), "white")


class _Grid:
    """A block, measured: the heights of its heading, of the labels of columns, and the width of the labels of rows."""

    def __init__(self, block: Block, pictures: Pictures, cell: tuple[int, int], style: Style) -> None:
        self.block, self.pictures, self.style = block, pictures, style
        across = max(len(each) for each in block.cells.values())
        self.thumbnail = cell
        self.cell = across * cell[0] + (across - 1) * 2, cell[1]
        small = style.small
        self.columns = [small.lines(each, self.cell[0], _LABEL_LINES) for each in block.columns]
        self.header = max(len(each) for each in self.columns) * small.height + _GAP
        most = max(1, cell[1] // small.height)
        self.rows = [small.lines(each, _LABEL_WIDTH, most) for each in block.rows]
        labelled = [math.ceil(small.width(line)) for lines in self.rows for line in lines]
        self.margin = max(labelled) + 2 * _GAP if labelled else 0
        self.body = len(block.columns) * (self.cell[0] + _GAP) - _GAP
        self.width = self.margin + self.body
        self.heading = style.large.lines(block.heading, self.width, 2)
        self.above = len(self.heading) * style.large.height + (_GAP if self.heading else 0)
        self.height = self.above + self.header + len(block.rows) * (self.cell[1] + _GAP) - _GAP

    def paste(self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
        """Draw the block at `place`."""
        left, top = place
        for number, line in enumerate(self.heading):
            self.style.large.draw(canvas, (left, top + number * self.style.large.height), line, _INK)
        small = self.style.small
        top += self.above + self.header
        for column, lines in enumerate(self.columns):
            middle = left + self.margin + column * (self.cell[0] + _GAP) + self.cell[0] / 2
            above = top - _GAP - len(lines) * small.height
            for number, line in enumerate(lines):
                small.draw(canvas, (middle - small.width(line) / 2, above + number * small.height), line, _INK)
        for row, lines in enumerate(self.rows):
            height = top + row * (self.cell[1] + _GAP)
            first = height + (self.cell[1] - len(lines) * small.height) / 2
            for number, line in enumerate(lines):
                right = left + self.margin - 2 * _GAP - small.width(line)
                small.draw(canvas, (right, first + number * small.height), line, _INK)
            for column in range(len(self.columns)):
                self._cell(sheet, canvas, (row, column), (left + self.margin, height))

    def _cell(
        self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, place: tuple[int, int], origin: tuple[int, int]
    ) -> None:
        left, top = origin[0] + place[1] * (self.cell[0] + _GAP), origin[1]
        found = self.block.cells.get(place, ())
        if not found:
            canvas.rectangle((left, top, left + self.cell[0] - 1, top + self.cell[1] - 1), fill=_EMPTY)
        for number, index in enumerate(found):
            _paste(sheet, self.pictures[index], (left + number * (self.thumbnail[0] + 2), top), self.thumbnail)


def _loose(pictures: Pictures, captions: Sequence[str], cell: tuple[int, int], style: Style) -> Image.Image:
    """Draw pictures one after the other, on about as many rows as make a sheet of 4:3."""
    small = style.small
    captioned = cell[0] >= _LEAST_FOR_CAPTIONS
    lines = [small.lines(each, cell[0], _CAPTION_LINES) if captioned else [] for each in captions]
    below = max(map(len, lines)) * small.height + (_GAP if captioned else 0)
    width, height = cell[0] + _GAP, cell[1] + below + _GAP
    columns = _columns(len(pictures), width, height)
    rows = math.ceil(len(pictures) / columns)
    sheet = _canvas(columns * width - _GAP + 2 * _MARGIN, rows * height - _GAP + 2 * _MARGIN)
    canvas = ImageDraw.Draw(sheet)
    for index, (picture, told) in enumerate(zip(pictures, lines, strict=True)):
        left, top = _MARGIN + index % columns * width, _MARGIN + index // columns * height
        _paste(sheet, picture, (left, top), cell)
        for number, line in enumerate(told):
            small.draw(canvas, (left, top + cell[1] + 2 + number * small.height), line, _PALE)
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, place: tuple[int, int], cell: tuple[int, int]) -> None:
    """Paste a picture in the middle of its cell."""
    sheet.paste(picture, (place[0] + (cell[0] - picture.width) // 2, place[1] + (cell[1] - picture.height) // 2))
