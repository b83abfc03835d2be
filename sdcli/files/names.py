"""Names of files: from a prompt, or from a template. Knows nothing of directories, and writes nothing."""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from sdcli.errors import UsageError
from sdcli.recipe.parts import INPUT_KEYS
from sdcli.recipe.recipe import Recipe
from sdcli.recipe.recipe import keys as recipe_keys
from sdcli.terminal.spelling import did_you_mean

MAX_SLUG_BYTES = 80
MAX_VALUE_BYTES, MAX_VARIED_BYTES = 40, 120
FALLBACK_SLUG = "picture"
_FIRST = ("seed", "index", "prompt", "model")
FIELDS = (*_FIRST, *(key for key in recipe_keys() if key not in _FIRST))
_IN_NAMES = ("prompt", "label", "seed")
"""Keys that names have anyway."""
_TEMPLATE_HINT = "the fields are {index} and the keys of a recipe, such as {seed} {prompt} {model} {steps} {scheduler}"
_BRACES = "write {{ and }} for braces"


def slug(text: str, most: int = MAX_SLUG_BYTES) -> str:
    """Return the words of `text` in lower case, joined by `-`: a file name that needs no quotes in a shell.

    Accents of Latin letters are removed; letters of other scripts are kept with their marks. The result has at most
    `most` bytes of UTF-8, cut between words if possible, and only letters, digits and single hyphens. It is
    FALLBACK_SLUG if `text` has no letters or digits.
    """
    words = "".join(_plain(unicodedata.normalize("NFKC", text).lower())).split() or [FALLBACK_SLUG]
    kept = words[0].encode()[:most].decode(errors="ignore")
    for word in words[1:]:
        if len(f"{kept}-{word}".encode()) > most:
            break
        kept = f"{kept}-{word}"
    return kept


def default_name(recipe: Recipe, suffix: str, varies: Collection[str] = ()) -> str:
    """Return the generated name of a picture or of its latents: its words, the keys that vary, and its seed."""
    flat = recipe.to_dict() if varies else {}
    told = [_told(key, flat.get(key)) for key in varies if key not in _IN_NAMES]
    varied = "-".join(told).encode()[:MAX_VARIED_BYTES].decode(errors="ignore").rstrip("-")
    return "-".join(filter(None, [slug(recipe.condition.words), varied, str(recipe.seed)])) + suffix


def _told(key: str, value: Any) -> str:
    """A value in a name: a text by itself, and a number with its key."""
    return _text(key, value) if isinstance(value, str) else f"{slug(key)}-{_text(key, value)}"


def _text(key: str, value: Any) -> str:
    """A value without spaces and slashes. Of a path, only the name counts."""
    if key == "model":
        return slug(PurePath(value).name.removesuffix(".safetensors"))
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return slug(" ".join(map(str, value)), MAX_VALUE_BYTES)
    if isinstance(value, float):
        return f"{value:g}"
    return slug(PurePath(value).stem if key in INPUT_KEYS else str(value), MAX_VALUE_BYTES)


def fill(template: str, recipe: Recipe, index: int, option: str = "-o") -> str:
    """Fill in the fields of `template`, which are `index` and the keys of a recipe.

    Numbers can have a width, as in `{index:03}`. Raises UsageError, with `option`, for an invalid template.
    """
    if "{" not in template and "}" not in template:
        return template
    flat = {**dict.fromkeys(FIELDS), **recipe.to_dict(), "index": index, "prompt": recipe.condition.words}
    return fill_fields(template, flat, option, _TEMPLATE_HINT)


def fill_fields(
    template: str, flat: Mapping[str, Any], option: str = "-o", hint: str = "the fields are {name} and {index}"
) -> str:
    """Fill in the fields of `template`, the keys of `flat`. Raises UsageError, with `hint`, for an invalid template."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"{option} {template}: {str(error).lower()}", f"{hint}; {_BRACES}") from error
    filled = []
    for literal, name, width, conversion in parts:
        filled.append(literal)
        if name is None:
            continue
        if name not in flat:
            near = did_you_mean(name, tuple(flat), hint) if name else hint
            raise UsageError(f"{option} {template}: unknown field {{{name}}}", near)
        value = flat[name]
        is_whole = type(value) is int
        if conversion or (width and not (is_whole and re.fullmatch(r"0?[0-9]{1,2}", width))):
            raise UsageError(
                f"{option} {template}: {{{name}}} has an invalid format",
                "only whole numbers can have a width, such as {index:03}",
            )
        text = value if name == "name" else slug(value) if name == "prompt" else _text(name, value)
        filled.append(format(value, width or "") if is_whole else text)
    return "".join(filled)


def numbered(path: str, suffix: str) -> Iterator[str]:
    """Yield `path`, which may end in `suffix`, and then the same with -2, -3 … before the suffix, without end."""
    yield path
    stem = path.removesuffix(suffix)
    yield from (f"{stem}-{number}{suffix}" for number in itertools.count(2))


def _plain(text: str) -> Iterator[str]:
    """Yield `text` letter by letter: ASCII for Latin letters, and a space for anything but letters and digits."""
    takes_marks = False
    for letter in text:
        base = _ascii(letter)
        if base.isalnum():
            takes_marks = False
            yield base
        elif letter.isalnum():
            takes_marks = True
            yield letter
        elif unicodedata.category(letter) in ("Mn", "Mc"):
            if takes_marks:  # otherwise it is an accent of an ASCII letter
                yield letter
        elif letter not in "'’":  # fox's is one word
            takes_marks = False
            yield " "


@lru_cache(maxsize=4096)
def _ascii(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
