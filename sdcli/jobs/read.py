"""Jobs as people and programs write them: JSONL, CSV, or one prompt a line. Knows nothing of models.

A line that cannot be read is a Fault and never an exception: it must not take the others with it.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from sdcli.errors import InputError, InvalidRecipe, SdcliError, UsageError
from sdcli.recipe import recipe

Format = Literal["jsonl", "csv", "text"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "text")
SUFFIXES: Mapping[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
KEYS = (*recipe.keys(), "id", "output")
MAX_LINE = 1024**2  # bytes
MAX_REASON, MAX_QUOTE = 400, 120  # characters; a value may be as long as its line

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_WILDCARD = re.compile(r'\{[^{}":]*\|[^{}]*\}')
_BLANK = re.compile(r"[ \t\r]*")


@dataclass(frozen=True)
class Job:
    """One job as asked: `values` by the flat keys of a recipe, and in which column of its line each stands."""

    line: int
    values: Mapping[str, Any]
    id: str | int | None = None
    output: str | None = None
    columns: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a job, and where. Lines count from 1, as do columns: characters, but cells in CSV."""

    line: int
    reason: str
    column: int | None = None
    field: str | None = None
    id: str | int | None = None

    @property
    def message(self) -> str:
        """The place and the reason: `line 3, column 18, steps: …`."""
        place = [f"line {self.line}"]
        if self.column is not None:
            place.append(f"column {self.column}")
        if self.field is not None:
            place.append(self.field)
        return f"{', '.join(place)}: {shorten(self.reason)}"


class _Wrong(ValueError):
    """A fault on the way up to where its line is known."""

    def __init__(self, reason: str, column: int | None, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column, self.field = reason, column, field


def read(data: bytes, source: str, format: str | None = None) -> list[Job | Fault]:
    """The jobs in `data`, in order; blank lines are none.

    `source` is the name of the file they come from. The format is `format`, else what the suffix of `source` tells,
    else what the first line looks like. Raises UsageError for an unknown format, and InputError for a file of which
    no line can be read: UTF-16, or CSV with an unfit header.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", f"--format is one of {', '.join(FORMATS)}")
    if data.startswith(_WIDE_BOMS):
        raise InputError(f"{source} is UTF-16", f"make it UTF-8: iconv -f UTF-16 -t UTF-8 {source}")
    lines = [each.removesuffix(b"\r") for each in data.removeprefix(_BOM).split(b"\n")]
    chosen = format or SUFFIXES.get(PurePath(source).suffix.lower()) or guess(lines)
    if chosen == "csv":
        return list(_read_csv(lines, source))
    parse = _parse_json if chosen == "jsonl" else _parse_text
    return [_read_line(number, raw, parse) for number, raw in enumerate(lines, start=1) if raw.strip()]


def guess(lines: Sequence[bytes]) -> Format:
    """The format that the first line which is not blank looks like.

    JSONL if it begins as an object or list does (a wildcard, `{red|blue} fox`, is none), CSV if it is a header with
    a `prompt` or a `label` among names, else text.
    """
    first = next((each.strip() for each in lines if each.strip()), b"")[:MAX_LINE].decode(errors="replace")
    if first.startswith("{") and not _WILDCARD.match(first):
        return "jsonl"
    if re.match(r'\[\s*([{"\]]|$)', first):
        return "jsonl"
    cells = [cell.strip().strip('"') for cell in first.split(",")]
    return (
        "csv" if {"prompt", "label"} & set(cells) and all(re.fullmatch(r"[a-z_]+", cell) for cell in cells) else "text"
    )


def job_of(line: int, values: Mapping[str, Any], columns: Mapping[str, int]) -> Job:
    """The job that `values` by key are, each checked by itself; None says nothing. Raises _Wrong."""
    said = {key: value for key, value in values.items() if value is not None}
    for key, value in said.items():
        column = columns.get(key)
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(KEYS)}"
            raise _Wrong(f"unknown key {shorten(repr(key), MAX_QUOTE)} ({hint})", column, key)
        if isinstance(value, str) and not _is_unicode(value):
            raise _Wrong("its text is not valid Unicode", column, key)
        if key == "id":
            if type(value) not in (str, int):
                raise _Wrong(
                    f"id is {shorten(repr(value), MAX_QUOTE)} (it must be text or a whole number)", column, key
                )
        elif key == "output":
            if type(value) is not str:
                raise _Wrong(f"output is {shorten(repr(value), MAX_QUOTE)} (it must be text)", column, key)
        else:
            try:
                said[key] = recipe.check_value(key, value)
            except InvalidRecipe as error:
                raise _Wrong(explain(error), column, key) from error
    if not {"prompt", "label"} & said.keys():
        raise _Wrong("prompt is missing", 1, "prompt")
    job_id, output = said.pop("id", None), said.pop("output", None)
    return Job(line, said, job_id, output, columns)


def _read_line(number: int, raw: bytes, parse: Any) -> Job | Fault:
    if len(raw) > MAX_LINE:
        return Fault(number, f"the line is {len(raw):,} bytes long, and at most {MAX_LINE:,} are read", MAX_LINE + 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        return Fault(number, f"byte 0x{raw[error.start]:02x} is not UTF-8", column)
    values: dict[str, Any] = {}
    columns: dict[str, int] = {}
    try:
        parse(text, values, columns)
        return job_of(number, values, columns)
    except _Wrong as wrong:
        return _fault(number, wrong, values)


def _fault(line: int, wrong: _Wrong, values: Mapping[str, Any]) -> Fault:
    """`wrong` as a fault of `line`, under the job's own id where that could be read."""
    job_id = values.get("id")
    known = type(job_id) is int or (isinstance(job_id, str) and _is_unicode(job_id))
    at = None if wrong.field is None else shorten(wrong.field, MAX_QUOTE)
    return Fault(line, wrong.reason, wrong.column, at, job_id if known else None)


def _parse_text(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    values["prompt"] = text.strip()
    columns["prompt"] = len(text) - len(text.lstrip()) + 1


def _parse_json(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    """Fill `values` with the members of the object that `text` is, and `columns` with where their values begin.

    json itself decodes every string and value; walking the members here is what tells their places, and finds keys
    that are said twice. Raises _Wrong, with all members before the fault in `values`.
    """
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        raise _Wrong('not a JSON object such as {"prompt": "a fox"}, one on each line', place + 1)
    place = _skip(text, place + 1)
    while text[place : place + 1] != "}":
        if text[place : place + 1] != '"':
            raise _Wrong('expected a key in double quotes, or the end of the object "}"', place + 1)
        key, end = _decode(text, place, None)
        if key in columns:
            raise _Wrong("the key is said twice", place + 1, key)
        end = _skip(text, end)
        if text[end : end + 1] != ":":
            raise _Wrong("expected a colon after the key", end + 1, key)
        place = _skip(text, end + 1)
        columns[key] = place + 1
        values[key], place = _decode(text, place, key)
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
            if text[place : place + 1] == "}":
                raise _Wrong("a comma before the end of the object", place + 1)
        elif text[place : place + 1] != "}":
            raise _Wrong("expected a comma, or the end of the object", place + 1, key)
    end = _skip(text, place + 1)
    if end < len(text):
        raise _Wrong("more text after the end of the object", end + 1)


def _decode(text: str, place: int, key: str | None) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _Wrong(f"{error.msg[:1].lower()}{error.msg[1:]}", error.pos + 1, key) from error
    except ValueError as error:
        raise _Wrong(str(error), place + 1, key) from error
    except RecursionError as error:
        raise _Wrong("nested too deeply", place + 1, key) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that a job can hold")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def _read_csv(lines: Sequence[bytes], source: str) -> Iterator[Job | Fault]:
    """The jobs of CSV with a header of keys. A quoted cell may go on over lines; an empty one says nothing."""
    texts = [each.decode(errors="surrogateescape") + "\n" for each in lines]
    reader = csv.reader(texts, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise InputError(f"{source}, line {line}: {error}", _HEADER_HINT) from error
            yield Fault(line, _csv_reason(error), 1)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, source, line)
            continue
        yield _read_record(line, cells, header)


_HEADER_HINT = "the first line of CSV names the columns, by keys such as prompt,seed,steps"


def _csv_reason(error: csv.Error) -> str:
    return "a quoted cell is never closed" if "unexpected end of data" in str(error) else str(error)


def _header(cells: Sequence[str], source: str, line: int) -> list[str]:
    """The keys that head the columns; raises InputError where they are not keys, or none is prompt or label."""
    names = [cell.strip() for cell in cells]
    for column, name in enumerate(names, start=1):
        where = f"{source}, line {line}, column {column}"
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(KEYS)}"
            raise InputError(f"{where}: unknown key {shorten(repr(name))}", hint)
        if names.index(name) != column - 1:
            raise InputError(f"{where}: {name} heads two columns", "leave one of them away")
    if not {"prompt", "label"} & set(names):
        raise InputError(f"{source}, line {line}: no column is headed prompt", _HEADER_HINT)
    return names


def _read_record(line: int, cells: Sequence[str], header: Sequence[str]) -> Job | Fault:
    values: dict[str, Any] = {}
    columns = {key: column for column, key in enumerate(header, start=1)}
    try:
        if len(cells) != len(header):
            reason = f"{len(cells)} cells where the header has {len(header)} (quote a cell that holds a comma)"
            raise _Wrong(reason, min(len(cells), len(header)) + 1)
        for key, cell in zip(header, cells, strict=True):
            if cell == "" and key != "prompt":
                continue
            values[key] = cell if key in ("id", "output") or not _is_unicode(cell) else _typed(key, cell, columns[key])
        return job_of(line, values, columns)
    except _Wrong as wrong:
        return _fault(line, wrong, values)


def _typed(key: str, cell: str, column: int) -> Any:
    try:
        return recipe.parse_value(key, cell)
    except InvalidRecipe as error:
        raise _Wrong(explain(error), column, key) from error


def _is_unicode(text: str) -> bool:
    """Whether `text` is free of lone surrogates, which stand for bytes that are not UTF-8, or for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, most: int = MAX_REASON) -> str:
    """`text` in at most `most` characters, on one line, fit for every encoding."""
    flat = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def explain(error: SdcliError) -> str:
    """Message and hint of `error` on one line, the hint whole however long a value the message quotes."""
    return f"{shorten(error.message, MAX_QUOTE)} ({error.hint})"
