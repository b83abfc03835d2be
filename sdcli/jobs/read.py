"""Reads files of jobs: JSONL, tables, or one prompt per line. Knows nothing of models.

An invalid line is a Fault and not an exception, so that the other lines are still read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from sdcli.errors import InputError, UsageError
from sdcli.jobs import table
from sdcli.jobs.job import Fault, Job, Wrong, fault_of, job_of

Format = Literal["jsonl", "csv", "text"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "text")
SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "text",
}  # fmt: skip
MAX_BYTES = 256 * 1024**2
MAX_LINE = 1024**2  # bytes

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_WILDCARD = re.compile(r'\{[^{}":]*\|[^{}]*\}')
_BLANK = re.compile(r"[ \t\r]*")


def read(
    data: bytes,
    source: str,
    format: str | None = None,
    *,
    comments: bool = False,
    supplied: Collection[str] = (),
    warn: Callable[[str], None] = lambda message: None,
) -> list[Job | Fault]:
    """Read the jobs in `data`, in order; blank lines are skipped, and with `comments` lines that start with # too.

    `source` is the name of the file. The format is `format`, or that of the suffix of `source`, or a guess from the
    first line; a table is one whatever its suffix. `supplied` are keys that the jobs get later. `warn` is called for
    prompts that look like something else.

    Raises UsageError for an unknown format, and InputError for a file that cannot be read at all: UTF-16, a table with
    an invalid header, or one without a header.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", f"--format is one of {', '.join(FORMATS)}")
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} is larger than {MAX_BYTES:,} bytes", "divide it into several files")
    if data.startswith(_WIDE_BOMS):
        raise InputError(f"{source} is UTF-16", f"convert it to UTF-8: iconv -f UTF-16 -t UTF-8 {source}")
    lines = _lines(data)
    if comments:
        lines = _without_first_comments(lines)
    chosen = format or _format_of(source, lines)
    if chosen == "csv":
        texts = [each.decode(errors="surrogateescape") for each in lines]
        return list(table.read(texts, source, comments=comments, supplied=supplied))
    numbered = [(number, raw) for number, raw in enumerate(lines, start=1) if raw.strip()]
    if comments:
        numbered = [(number, raw) for number, raw in numbered if not _is_comment(raw)]
    if chosen == "text" and format is None:
        _check_prompts(numbered, source, warn)
    parse = _parse_json if chosen == "jsonl" else _parse_text
    return [_read_line(number, raw, parse, supplied) for number, raw in numbered]


def _lines(data: bytes) -> list[bytes]:
    """The lines of a file of any system. Files that were joined have a byte order mark at the start of each."""
    ends = b"\n" if b"\n" in data else b"\r"
    return [each.removeprefix(_BOM).removesuffix(b"\r") for each in data.split(ends)]


def _without_first_comments(lines: Sequence[bytes]) -> list[bytes]:
    """Blank the comments before the first line, which tells the format. Later ones can be in quotes of a table."""
    first = next((index for index, line in enumerate(lines) if line.strip() and not _is_comment(line)), len(lines))
    return [b""] * first + list(lines[first:])


def _is_comment(line: bytes) -> bool:
    return line.lstrip().startswith(b"#")


def _format_of(source: str, lines: Sequence[bytes]) -> Format:
    """The format by the suffix of `source`, or by its first line; a .txt can be a table."""
    by_suffix = SUFFIXES.get(PurePath(source).suffix.lower())
    if by_suffix is None:
        return guess(lines)
    return "csv" if by_suffix == "text" and guess(lines) == "csv" else by_suffix


def guess(lines: Sequence[bytes]) -> Format:
    """Guess the format from the first line that is not blank.

    JSONL if it starts like an object or a list (a wildcard, `{red|blue} fox`, does not), CSV if it is the header of a
    table, otherwise text.
    """
    first = next((each.strip(b" \r") for each in lines if each.strip()), b"")[:MAX_LINE].decode(errors="replace")
    if first.lstrip().startswith("{") and not _WILDCARD.match(first.lstrip()):
        return "jsonl"
    if re.match(r'\s*\[\s*([{"\]]|$)', first):
        return "jsonl"
    return "text" if table.layout_of([first]) is None else "csv"


def _check_prompts(numbered: Sequence[tuple[int, bytes]], source: str, warn: Callable[[str], None]) -> None:
    """Warn of lines that are hardly prompts. Raises InputError for tabs, which only tables have."""
    tabbed = next((number for number, raw in numbered if b"\t" in raw.strip()), None)
    if tabbed is not None:
        raise InputError(
            f"{source}, line {tabbed} has a tab, like a table, and the first line is no header of keys",
            "name the columns in the first line, such as prompt and seed; or use --format text",
        )
    if numbered and table.has_keys(numbered[0][1].decode(errors="replace")):
        warn(f"line {numbered[0][0]} of {source} looks like the header of a table, and is drawn as a prompt; "
             "use --format csv, or --format text if it is one")  # fmt: skip
    counts = {raw.count(b";") for _, raw in numbered}
    if len(numbered) > 1 and len(counts) == 1 and 0 not in counts:
        warn(f"{source} looks like a table without a header; each line is drawn as a prompt")
    for beginning, what in ((b"#", "starts with #; use --comments to skip such lines"), (b'{"', "looks like JSON")):
        found = next((number for number, raw in numbered if raw.lstrip().startswith(beginning)), None)
        if found is not None:
            warn(f"line {found} of {source} is drawn as a prompt, and {what}")


def _read_line(number: int, raw: bytes, parse: Any, supplied: Collection[str]) -> Job | Fault:
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
        return job_of(number, values, columns, supplied)
    except Wrong as wrong:
        return fault_of(number, wrong, values)


def _parse_text(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    values["prompt"] = text.strip()
    columns["prompt"] = len(text) - len(text.lstrip()) + 1


def _parse_json(text: str, values: dict[str, Any], columns: dict[str, int]) -> None:
    """Fill `values` with the members of the JSON object `text`, and `columns` with the columns of their values.

    The json module decodes every string and value. This function iterates over the members itself, which gives their
    columns and finds duplicate keys. Raises Wrong, with all members before the fault in `values`.
    """
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        raise Wrong('not a JSON object such as {"prompt": "a fox"}, one on each line', place + 1)
    place = _skip(text, place + 1)
    while text[place : place + 1] != "}":
        if text[place : place + 1] != '"':
            raise Wrong('expected a key in double quotes, or the end of the object "}"', place + 1)
        key, end = _decode(text, place, None)
        if key in columns:
            raise Wrong("the key occurs twice", place + 1, key)
        end = _skip(text, end)
        if text[end : end + 1] != ":":
            raise Wrong("expected a colon after the key", end + 1, key)
        place = _skip(text, end + 1)
        columns[key] = place + 1
        values[key], place = _decode(text, place, key)
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
            if text[place : place + 1] == "}":
                raise Wrong("a comma before the end of the object", place + 1)
        elif text[place : place + 1] != "}":
            raise Wrong("expected a comma, or the end of the object", place + 1, key)
    end = _skip(text, place + 1)
    if end < len(text):
        raise Wrong("more text after the end of the object", end + 1)


def _decode(text: str, place: int, key: str | None) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise Wrong(f"{error.msg[:1].lower()}{error.msg[1:]}", error.pos + 1, key) from error
    except ValueError as error:
        raise Wrong(str(error), place + 1, key) from error
    except RecursionError as error:
        raise Wrong("nested too deeply", place + 1, key) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a valid number")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # Python refuses to convert very long ones
        raise ValueError(f"a number has {len(text):,} digits") from error


_DECODER = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_finite)


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()
