r"""Text as a terminal can show it: what it would obey or hide is written as an escape, such as `\x1b`.

File names, prompts, metadata, configs and replies of a server can have escape sequences, characters that reverse the
direction of text, and invisible ones.
"""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SUSPECTS = re.compile(r"[^\x20-\x7e\xa0-\xac\xae-\u02ff]")
"""What can be hidden; a quick test for most of all text."""


def is_hidden(letter: str) -> bool:
    """Whether `letter` is a control or format character, a lone surrogate, or a separator of lines or paragraphs."""
    return unicodedata.category(letter) in _HIDDEN


def printable(text: str, keep: str = "") -> str:
    """Return `text` with hidden characters as escapes, except those in `keep`."""

    def shown(found: re.Match[str]) -> str:
        letter = found[0]
        return repr(letter)[1:-1] if is_hidden(letter) and letter not in keep else letter

    return _SUSPECTS.sub(shown, text)


def json_safe(text: str) -> str:
    """Return JSON with the hidden characters of its strings as JSON's escapes; the value is the same."""
    return _SUSPECTS.sub(lambda found: _json_escape(found[0]) if is_hidden(found[0]) else found[0], text)


def one_line(text: str) -> str:
    """Return `text` on one line, with blanks for all its white space."""
    return printable(" ".join(text.split()))


def shown(value: object, most: int = 80) -> str:
    """Return the repr of a value of any origin for an error, at most `most` characters long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format very large integers
        return "a very large number"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
