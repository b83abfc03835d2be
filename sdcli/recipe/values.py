"""Values of flat keys: parts of a recipe are dataclasses, whose annotations and metadata say what a key can be.

Knows nothing of which parts there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from operator import is_
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from sdcli.errors import InvalidRecipe
from sdcli.terminal.printable import shown
from sdcli.terminal.spelling import did_you_mean

_USUAL = {
    ("device", "gpu"): "use cuda, or mps on a Mac;",
    ("device", "nvidia"): "use cuda;",
    ("device", "metal"): "use mps;",
    ("dtype", "fp16"): "use float16;",
    ("dtype", "half"): "use float16;",
    ("dtype", "bf16"): "use bfloat16;",
    ("dtype", "fp32"): "use float32;",
}
"""What other tools call values, with the hint."""


@cache
def typed_fields(part: type) -> tuple[tuple[dataclasses.Field[Any], Any, bool], ...]:
    """The fields of `part`, their types, and whether these are parts themselves.

    Parsing annotations is slow, and a batch has thousands of recipes.
    """
    hints = get_type_hints(part)
    return tuple((each, hints[each.name], is_dataclass(hints[each.name])) for each in fields(part))


def rules(part: type) -> Iterable[tuple[dataclasses.Field[Any], type]]:
    """Yield the field and the type of each flat key."""
    for each, kind, is_part in typed_fields(part):
        if is_part:
            yield from rules(kind)
        else:
            yield each, kind


def build(part: Any, flat: Mapping[str, Any]) -> Any:
    """Make a `part`, and the parts in it, of flat keys. Raises InvalidRecipe.

    All that have nothing but defaults are one object, `default(part)`.
    """
    known = defaults_of(part)
    if known and all(map(is_, map(flat.get, known, known.values()), known.values())):  # which is usual, and fast
        return default(part)
    values = {}
    for each, kind, is_part in typed_fields(part):
        if is_part:
            values[each.name] = build(kind, flat)
        elif each.name in flat:
            values[each.name] = checked(each, kind, flat[each.name])
        elif each.default is dataclasses.MISSING:
            raise InvalidRecipe(f"{each.name} is missing", f"give {each.name}", each.name)
    return part(**values)


@cache
def default(part: Any) -> Any:
    """The part that has all defaults."""
    return part()


@cache
def defaults_of(part: Any) -> Mapping[str, Any]:
    """The defaults of the fields of a part by their names; none for one with a field without default, or with parts."""
    known = typed_fields(part)
    if any(is_part or each.default is dataclasses.MISSING for each, _, is_part in known):
        return {}
    return {each.name: each.default for each, _, _ in known}


def checked(each: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    """Validate `value` as `kind` and within the field's range; the only conversion is from int to float."""
    name, rule = each.name, each.metadata
    kind, many, optional = _form(kind)
    if many:
        return _checked_texts(each, value)
    if optional and value is None:
        return None
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise InvalidRecipe(f"{name} is {shown(value)}", f"{name} must be {words[kind]}", name)
    if "choices" in rule and value not in rule["choices"]:
        choices = f"{name} is one of {', '.join(rule['choices'])}"
        near = _USUAL.get((name, str(value).lower())) or did_you_mean(str(value), rule["choices"], "")
        hint = f"{near} {choices}" if near else choices
        raise InvalidRecipe(f"unknown {name} {shown(value)}", hint, name)
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        low, high, unit = rule["low"], rule["high"], rule["unit"]
        raise InvalidRecipe(f"{name} is {shown(value)}", f"{name} must be between {low} and {high}{unit}", name)
    return value


@cache
def _form(kind: Any) -> tuple[type, bool, bool]:
    """Return `kind` without None, whether it is a tuple of texts, and whether it can be None."""
    given = get_args(kind)
    optional = NoneType in given
    return given[0] if optional else kind, get_origin(kind) is tuple, optional


def _checked_texts(each: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """Validate a list of texts, or a single text, and convert them to the field's canonical form."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(type(text) is str for text in texts):
        hint = f"{each.name} must be text, or a list of texts"
        raise InvalidRecipe(f"{each.name} is {shown(value)}", hint, each.name)
    return tuple(map(each.metadata.get("each", str), texts))
