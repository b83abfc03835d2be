"""Tables of jobs: CSV, TSV and what spreadsheets write, with a header of keys.

The header also tells the delimiter, and what is a table: prompts have commas too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdcli.errors import InputError, InvalidRecipe
from sdcli.jobs.job import KEYS, NAMES, Fault, Job, Wrong, explain, fault_of, is_unicode, job_of, shorten
from sdcli.recipe import other_tools, recipe
from sdcli.terminal.spelling import did_you_mean

DELIMITERS = (",", "\t", ";", "|")
_WORDS = ("prompt", "label")
_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,30}")
_HEADER_HINT = "the first line of CSV must be a header of keys, such as prompt,seed,steps"


@dataclass(frozen=True)
class Layout:
    """How a table is written: its delimiter and the number of lines before its header."""

    delimiter: str
    before: int = 0


def layout_of(lines: Sequence[str]) -> Layout | None:
    """Return the layout of a table that starts with `lines`, or None if its first line is no header.

    A header has `prompt` or `label` among names that could be keys; with another delimiter than a comma, any key.
    Excel's `sep=;` before it counts too.
    """
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return None
    told = _SEPARATOR.fullmatch(lines[first].strip("\r\n"))
    if told is not None:
        return Layout(told[1], first + 1)
    for delimiter in DELIMITERS:
        cells = _names(lines[first], delimiter)
        named = [cell for cell in cells if cell]
        if not all(map(_NAME.fullmatch, named)) or (len(cells) == 1 and delimiter != ","):
            continue
        known = set(named) & set(NAMES)
        if known & set(_WORDS) or (known and delimiter != ","):
            return Layout(delimiter)
    return None


def has_keys(line: str) -> bool:
    """Whether a cell of `line` is a key, which a header has and a prompt can have."""
    return any(set(_names(line, each)) & set(NAMES) and each in line for each in DELIMITERS)


def _names(line: str, delimiter: str) -> list[str]:
    """The cells of a header as keys: lower case, with underscores."""
    cells = (cell.strip().strip('"').strip() for cell in line.split(delimiter))
    return [re.sub(r"[ -]+", "_", cell).lower() if _NAME.fullmatch(cell) else cell for cell in cells]


def read(
    texts: Sequence[str], source: str, *, comments: bool = False, supplied: Collection[str] = ()
) -> Iterator[Job | Fault]:
    """Read a table. A quoted field can span lines; an empty field means not given, and an empty column is ignored.

    With `comments`, rows that start with # are skipped. Raises InputError for an invalid header.
    """
    layout = layout_of(texts) or Layout(",")
    reader = csv.reader((f"{text}\n" for text in texts[layout.before :]), strict=True, delimiter=layout.delimiter)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1 + layout.before
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise InputError(f"{source}, line {line}: {error}", _HEADER_HINT) from error
            yield Fault(line, _reason(error), 1)
            continue
        if not any(cell.strip() for cell in cells) or (comments and cells[0].lstrip().startswith("#")):
            continue
        if header is None:
            header = _header(cells, source, line, supplied)
            continue
        yield _row(line, cells, header, supplied)


def _reason(error: csv.Error) -> str:
    return "a quoted field is not closed" if "unexpected end of data" in str(error) else str(error)


def _header(cells: Sequence[str], source: str, line: int, supplied: Collection[str]) -> list[str]:
    """Return the keys of the header, "" for an empty column. Raises InputError if they are invalid or lack a prompt."""
    names = [re.sub(r"[ -]+", "_", cell.strip()).lower() for cell in cells]
    for column, name in enumerate(names, start=1):
        where = f"{source}, line {line}, column {column}"
        if name and name not in NAMES:
            hint = did_you_mean(name, NAMES, f"the keys are {', '.join(KEYS)}")
            raise InputError(f"{where}: unknown key {shorten(repr(cells[column - 1].strip()))}", hint)
        if name and names.index(name) != column - 1:
            raise InputError(f"{where}: {name} occurs twice", "remove one of the columns")
    if not set(_WORDS) & {*names, *supplied}:
        raise InputError(f"{source}, line {line}: there is no column named prompt", _HEADER_HINT)
    while not names[-1]:
        names.pop()
    return names


def _row(line: int, cells: Sequence[str], header: Sequence[str], supplied: Collection[str]) -> Job | Fault:
    values: dict[str, Any] = {}
    columns = {key: column for column, key in enumerate(header, start=1)}
    try:
        filled = len(cells)
        while filled > len(header) and not cells[filled - 1].strip():
            filled -= 1
        if filled != len(header):
            reason = f"{filled} fields, and the header has {len(header)} (quote a field that contains a delimiter)"
            raise Wrong(reason, min(filled, len(header)) + 1)
        for column, (key, cell) in enumerate(zip(header, cells, strict=False), start=1):
            if not key:
                if cell.strip():
                    raise Wrong(f"{shorten(repr(cell), 40)} is in a column without a key", column)
                continue
            if cell == "" and key != "prompt":
                continue
            values[key] = cell if key in ("id", "output") or not is_unicode(cell) else _typed(key, cell, column)
        return job_of(line, values, columns, supplied)
    except Wrong as wrong:
        return fault_of(line, wrong, values)


def _typed(key: str, cell: str, column: int) -> Any:
    if key == "num_images":
        return int(cell) if cell.strip().isdecimal() and len(cell) < 10 else cell
    key = other_tools.ALIASES.get(key, key)
    if key in ("size", "scheduler") or (key == "seed" and cell.strip() == str(other_tools.RANDOM_SEED)):
        return int(cell) if key == "seed" else cell
    try:
        return recipe.parse_value(key, cell)
    except InvalidRecipe as error:
        raise Wrong(explain(error), column, key) from error
