"""Reads job files: JSONL, CSV, or one prompt per line. Knows nothing of models.

An invalid line is a Fault and not an exception, so that the other lines are still read.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from sdcli.errors import InputError, InvalidRecipe, SdcliError, UsageError
from sdcli.recipe import recipe
from sdcli.terminal.spelling import did_you_mean

Format = Literal["jsonl", "csv", "text"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "text")
SUFFIXES: Mapping[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
KEYS = (*recipe.keys(), "id", "output")
MAX_LINE = 1024**2  # bytes
MAX_REASON, MAX_QUOTE = 400, 120  # characters

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_WILDCARD = re.compile(r'\{[^{}":]*\|[^{}]*\}')
_BLANK = re.compile(r"[ \t\r]*")


@dataclass(frozen=True)
class Job:
    """One job: `values` by the flat keys of a recipe, and the column of each in its line."""

    line: int
    values: Mapping[str, Any]
    id: str | int | None = None
    output: str | None = None
    columns: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """An invalid job. Lines and columns count from 1; a column is a character, or a field in CSV."""

    line: int
    reason: str
    column: int | None = None
    field: str | None = None
    id: str | int | None = None

    @property
    def message(self) -> str:
        """The position and the reason: `line 3, column 18, steps: …`."""
        place = [f"line {self.line}"]
        if self.column is not None:
            place.append(f"column {self.column}")
        if self.field is not None:
            place.append(self.field)
        return f"{', '.join(place)}: {shorten(self.reason)}"


class _Wrong(ValueError):
    """A fault whose line is not known yet."""

    def __init__(self, reason: str, column: int | None, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column, self.field = reason, column, field


def read(data: bytes, source: str, format: str | None = None) -> list[Job | Fault]:
    """Read the jobs in `data`, in order; blank lines are skipped.

    `source` is the name of the file. The format is `format`, or that of the suffix of `source`, or a guess from the
    first line. Raises UsageError for an unknown format, and InputError for a file that cannot be read at all: UTF-16,
    or CSV with an invalid header.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", f"--format is one of {', '.join(FORMATS)}")
    if data.startswith(_WIDE_BOMS):
        raise InputError(f"{source} is UTF-16", f"convert it to UTF-8: iconv -f UTF-16 -t UTF-8 {source}")
    lines = [each.removesuffix(b"\r") for each in data.removeprefix(_BOM).split(b"\n")]
    chosen = format or SUFFIXES.get(PurePath(source).suffix.lower()) or guess(lines)
    if chosen == "csv":
        return list(_read_csv(lines, source))
    parse = _parse_json if chosen == "jsonl" else _parse_text
    return [_read_line(number, raw, parse) for number, raw in enumerate(lines, start=1) if raw.strip()]


def guess(lines: Sequence[bytes]) -> Format:
    """Guess the format from the first line that is not blank.

    JSONL if it starts like an object or a list (a wildcard, `{red|blue} fox`, does not), CSV if it is a header of names
    with `prompt` or `label`, otherwise text.
    """
    first = next((each.strip() for each in lines if each.strip()), b"")[:MAX_LINE].decode(errors="replace")
    if first.startswith("{") and not _WILDCARD.match(first):
        return "jsonl"
    if re.match(r'\[\s*([{"\]]|$)', first):
        return "jsonl"
    names = [name.strip().strip('"') for name in first.split(",")]
    return (
        "csv" if {"prompt", "label"} & set(names) and all(re.fullmatch(r"[a-z_]+", name) for name in names) else "text"
    )


def job_of(line: int, values: Mapping[str, Any], columns: Mapping[str, int]) -> Job:
    """Make a job of `values`, each of which is checked; None means not given. Raises _Wrong."""
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        column = columns.get(key)
        if key not in KEYS:
            hint = did_you_mean(key, KEYS, f"the keys are {', '.join(KEYS)}")
            raise _Wrong(f"unknown key {shorten(repr(key), MAX_QUOTE)} ({hint})", column, key)
        if isinstance(value, str) and not _is_unicode(value):
            raise _Wrong("the text is not valid Unicode", column, key)
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
                given[key] = recipe.check_value(key, value)
            except InvalidRecipe as error:
                raise _Wrong(explain(error), column, key) from error
    if not {"prompt", "label"} & given.keys():
        raise _Wrong("prompt is missing", 1, "prompt")
    job_id, output = given.pop("id", None), given.pop("output", None)
    return Job(line, given, job_id, output, columns)


def _read_line(number: int, raw: bytes, parse: Any) -> Job | Fault:
    if len(raw) > MAX_LINE:
        return Fault(number, f"the line is {len(raw):,} bytes long; the limit is {MAX_LINE:,}", MAX_LINE + 1)
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
    """Make a fault of `wrong`, with the job's id if that could be read."""
    job_id = values.get("id")
    known = type(job_id) is int or (isinstance(job_id, str) and _is_unicode(job_id))
    at = None if wrong.field is None else shorten(wrong.field, MAX_QUOTE)
    return Fault(line, wrong.reason, wrong.column, at, job_id if known else None)


def _parse_text(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    values["prompt"] = text.strip()
    columns["prompt"] = len(text) - len(text.lstrip()) + 1


def _parse_json(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    """Fill `values` with the members of the JSON object `text`, and `columns` with the columns of their values.

    The json module decodes every string and value. This function iterates over the members itself, which gives their
    columns and finds duplicate keys. Raises _Wrong, with all members before the fault in `values`.
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
            raise _Wrong("the key occurs twice", place + 1, key)
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
        raise ValueError(f"{text} is not a valid number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def _read_csv(lines: Sequence[bytes], source: str) -> Iterator[Job | Fault]:
    """Read CSV with a header of keys. A quoted field can span lines; an empty field means not given."""
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


_HEADER_HINT = "the first line of CSV must be a header of keys, such as prompt,seed,steps"


def _csv_reason(error: csv.Error) -> str:
    return "a quoted field is not closed" if "unexpected end of data" in str(error) else str(error)


def _header(cells: Sequence[str], source: str, line: int) -> list[str]:
    """Return the keys of the header. Raises InputError if they are invalid, or without prompt and label."""
    names = [cell.strip() for cell in cells]
    for column, name in enumerate(names, start=1):
        where = f"{source}, line {line}, column {column}"
        if name not in KEYS:
            hint = did_you_mean(name, KEYS, f"the keys are {', '.join(KEYS)}")
            raise InputError(f"{where}: unknown key {shorten(repr(name))}", hint)
        if names.index(name) != column - 1:
            raise InputError(f"{where}: {name} occurs twice", "remove one of the columns")
    if not {"prompt", "label"} & set(names):
        raise InputError(f"{source}, line {line}: there is no column named prompt", _HEADER_HINT)
    return names


def _read_record(line: int, cells: Sequence[str], header: Sequence[str]) -> Job | Fault:
    values: dict[str, Any] = {}
    columns = {key: column for column, key in enumerate(header, start=1)}
    try:
        if len(cells) != len(header):
            reason = f"{len(cells)} fields, and the header has {len(header)} (quote a field that contains a comma)"
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
    """Whether `text` has no lone surrogates, which represent bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, most: int = MAX_REASON) -> str:
    """Return `text` on one line, at most `most` characters long, without lone surrogates."""
    flat = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def explain(error: SdcliError) -> str:
    """Return message and hint of `error` on one line; a long message is shortened, the hint is not."""
    return f"{shorten(error.message, MAX_QUOTE)} ({error.hint})"
