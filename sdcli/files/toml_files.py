"""Parsing TOML of any origin, and the line of a value in it. Knows nothing of its keys."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

_MAX_STATEMENT = 100
"""Lines of a statement in which a line is found exactly."""
_MAX_PARSED = 2**21
"""Characters that are parsed to find one line."""
_DEEP_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){32}""")
"""A key with more parts than any; the time and memory that tomllib takes for one are quadratic."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of TOML. Raises ValueError if it is invalid, and RecursionError if it is nested too deeply."""
    if _DEEP_KEY.search(text):
        raise RecursionError("a key has too many parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python refuses to convert them
        raise ValueError("a number has too many digits") from error


def line_of(path: Path, keys: tuple[str, ...]) -> int | None:
    """Return the line of the statement that defines `keys`; None in a file where finding it takes long.

    Bisects: lines before it do not define them.
    """
    lines, left = path.read_text(encoding="utf-8").split("\n"), _MAX_PARSED
    low, high = 1, len(lines)  # numbers of lines to read
    while low < high:
        middle = (low + high) // 2
        end, tables = 0, None  # the first end of a statement, and what the lines up to it define
        for last in range(middle, min(len(lines), middle + _MAX_STATEMENT) + 1):
            text = "\n".join(lines[:last])
            left -= len(text)
            if left < 0:
                return None
            try:
                end, tables = last, parse_toml(text)
            except (ValueError, RecursionError):  # inside a statement of several lines
                continue
            break
        if tables is not None and _has(tables, keys):
            high = middle
        else:
            low = max(middle, end) + 1
    return low


def _has(tables: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(tables, dict) or key not in tables:
            return False
        tables = tables[key]
    return True
