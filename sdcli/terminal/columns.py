"""Rows as aligned columns, which are wrapped to the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from sdcli.terminal.printable import printable

_GAP = "  "
_LEAST = 24
"""The width of the last column below which it gets lines of its own."""


def lines(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Yield `rows` as lines of at most `width` characters, or each as one line without a `width`.

    The last column is wrapped. Columns for which there is no place follow on lines of their own, which are indented.
    """
    shown = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)][:-1]
    kept = len(widths)
    while width is not None and kept > 1 and sum(widths[:kept]) + len(_GAP) * (kept - 1) > width:
        kept -= 1
    for cells in shown:
        begin = "".join(f"{cell:{size}}{_GAP}" for cell, size in zip(cells[:kept], widths, strict=False))
        rest = _GAP.join(cells[kept:])
        if width is None:
            yield begin + rest
        elif kept == len(widths) and width - len(begin) >= _LEAST:
            yield from textwrap.wrap(rest, width, initial_indent=begin, subsequent_indent=" " * len(begin)) or [begin]
        else:
            yield begin.rstrip()
            yield from textwrap.wrap(rest, max(width, _LEAST), initial_indent=_GAP, subsequent_indent=_GAP)
