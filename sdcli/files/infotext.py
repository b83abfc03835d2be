"""Parses the text of AUTOMATIC1111's web UI: the prompt, the negative prompt, and fields `key: value`.

modules/infotext_utils.py writes it as `key: value` pairs separated by commas, on the last line. A value with a comma,
colon or line break is a JSON string there; Civitai and others write JSON objects and arrays without quotes, add lines,
and repeat keys. The first of a repeated key counts, and what is inside brackets or quotes is no field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

NEGATIVE = "Negative prompt:"
_LEAST_FIELDS = 3
_STEPS = re.compile(r"^[ \t]*Steps:[ \t]*\d+[ \t]*(?:,|$)", re.MULTILINE)
_KEY = re.compile(r"\s*(\w[\w \-/.]{1,80}):[ \t]*")
_STRING = re.compile(r'"(?:\\.|[^\\"])*"', re.DOTALL)
_PLAIN = re.compile(r"[^,\n]*")
_END = re.compile(r"[ \t]*(?:[,\n]|$)")
_SDCPP = ', SDCPP: {"'
"""stable-diffusion.cpp (from late 2025) repeats everything at the end, as JSON that includes the prompt."""
MAX_FIELDS = 1000


def parse(text: str) -> dict[str, str]:
    """Parse A1111's text to fields, `Prompt` and `Negative prompt` first; values are unquoted strings.

    The fields start at the last line that starts with `Steps:`, or else are the last line, if there are at least three
    of them. The negative prompt is what comes between a line that starts with `Negative prompt:` and the fields.
    Everything else is the prompt.
    """
    text = text.strip().replace("\r\n", "\n")
    start, pairs = _fields(text)
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, text[:start].strip().split("\n")):
        if line.startswith(NEGATIVE):
            part = negative
            line = line.removeprefix(NEGATIVE).strip()
        part.append(line)
    fields = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    for key, value in pairs:
        fields.setdefault(key, value)
    return fields


def _fields(text: str) -> tuple[int, list[tuple[str, str]]]:
    """Return where the fields start, and the fields; the end of the text and none if there are too few."""
    starts = [match.start() for match in _STEPS.finditer(text)][-1:]
    for start in (*starts, text.rfind("\n") + 1):
        pairs = list(_scan(text[start:].partition(_SDCPP)[0]))
        if len(pairs) >= _LEAST_FIELDS:
            return start, pairs
    return len(text), []


def _scan(text: str) -> Iterator[tuple[str, str]]:
    """Yield `key: value` pairs. Text between them that is no pair is passed over, to the next comma or line."""
    place = 0
    for _ in range(MAX_FIELDS):
        if place >= len(text):
            return
        key = _KEY.match(text, place)
        if key is None:
            place = _plain_end(text, place) + 1
            continue
        value, place = _value(text, key.end())
        yield key[1], value
        end = _END.match(text, place)
        place = end.end() if end else _plain_end(text, place) + 1


def _value(text: str, start: int) -> tuple[str, int]:
    """Return the value that starts there, and where it ends."""
    if text.startswith('"', start) and (string := _STRING.match(text, start)) and _END.match(text, string.end()):
        return _unquoted(string[0]), string.end()
    if text.startswith(("{", "["), start):
        try:
            _, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
        else:
            return text[start:end], end
    end = _plain_end(text, start)
    return text[start:end].strip(), end


_DECODER = json.JSONDecoder(strict=False)


def _plain_end(text: str, start: int) -> int:
    match = _PLAIN.match(text, start)
    return match.end() if match else len(text)


def quote(value: str) -> str:
    """Quote a value as A1111 does, if it has to be."""
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def _unquoted(value: str) -> str:
    try:
        return str(_DECODER.decode(value))
    except ValueError:
        return value


def user_comment(comment: bytes) -> str:
    """Decode an EXIF UserComment: the first eight bytes are its encoding (Exif 2.32, §4.6.5), without a byte order.

    UNICODE is UTF-16: with a byte order mark, or big-endian as A1111 writes it, or little-endian if only that gives
    A1111's fields. Some tools write UTF-8 there.
    """
    encoding, text = comment[:8], comment[8:]
    if encoding == b"UNICODE\0":
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            return text.decode("utf-16", "replace").strip("\0")
        return _utf16_or_8(text).strip("\0")
    if encoding in (b"ASCII\0\0\0", bytes(8)):
        return text.decode("utf-8-sig", "replace").strip("\0")
    return comment.decode("utf-8-sig", "replace").strip("\0")


def _utf16_or_8(text: bytes) -> str:
    guesses = [text.decode(each, "replace") for each in ("utf-16-be", "utf-16-le", "utf-8")]
    known = next((guess for guess in guesses if "Steps: " in guess), None)
    if known is not None:
        return known
    if b"\0" in text:  # ASCII in UTF-16: the zeros come first in big-endian
        return guesses[0] if text.startswith(b"\0") else guesses[1]
    return guesses[0] if "\ufffd" in guesses[2] else guesses[2]
