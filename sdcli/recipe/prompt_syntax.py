r"""Finds syntax of other tools in a prompt, which is taken as words here. Knows nothing of tokens.

Automatic1111's web UI knows schedules (`[fox:cat:0.5]`, `[fox:5]`), alternation (`[fox|cat]`), several prompts
(`AND`) and tags of networks (`<lora:name:0.8>`); its extension Dynamic Prompts has wildcards (`{fox|cat}`,
`{2$$fox|cat|owl}`). A backslash makes the bracket after it a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SCHEDULE, ALTERNATION, AND, WILDCARD, TAG = "a schedule", "alternation", "several prompts", "a wildcard", "a network"
IN_BRACKETS = (SCHEDULE, ALTERNATION, AND)
"""What Automatic1111 itself interprets, besides the weights that sdcli knows too."""

_FOUND = re.compile(
    r"""
      \\.
    | (?P<schedule> \[ (?: [^\[\]\\] | \\. )*? : \s* [0-9]+ (?: \.[0-9]* )? \s* \] )
    | (?P<alternation> \[ (?: [^\[\]\\|] | \\. )* \| (?: [^\[\]\\] | \\. )* \] )
    | (?P<and> \b AND \b )
    | (?P<wildcard> \{ [^{}|]* \| [^{}]* \} | \b [0-9]+ \$\$ )
    | (?P<tag> < (?: lora | lyco | hypernet ) : [^<>]* > )
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMES = {"schedule": SCHEDULE, "alternation": ALTERNATION, "and": AND, "wildcard": WILDCARD, "tag": TAG}
_BRACKET = re.compile(r"\\.|[()\[\]]", re.DOTALL)


class Syntax(NamedTuple):
    """A part of a prompt, and what it means in another tool."""

    text: str
    meaning: str


def find(prompt: str) -> Iterator[Syntax]:
    """Yield the syntax of other tools in `prompt`."""
    for match in _FOUND.finditer(prompt):
        if match.lastgroup is not None:
            yield Syntax(match[0], _NAMES[match.lastgroup])


def unbalanced(prompt: str) -> str | None:
    """Return the first kind of bracket that is opened and not closed, or closed and not opened; None if all match."""
    opened = {"(": 0, "[": 0}
    for match in _BRACKET.finditer(prompt):
        bracket = match[0]
        if bracket in opened:
            opened[bracket] += 1
        elif bracket in (")", "]"):
            kind = "(" if bracket == ")" else "["
            if not opened[kind]:
                return bracket
            opened[kind] -= 1
    return next((bracket for bracket, count in opened.items() if count), None)
