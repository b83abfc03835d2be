"""Groups of options: a dataclass whose fields are options, which a command takes as one parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

from sdcli.recipe import other_tools


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of `command` that is annotated with a group by the group's options.

    Typer reads the resulting signature; `command` is called with groups made from the given options.
    """
    groups: dict[str, tuple[type, tuple[str, ...]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            options = list(_options(group))
            groups[parameter.name] = group, tuple(option.name for option in options)
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**values: Any) -> None:
        made = {name: group(**{key: values.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        command(**values, **made)

    signature = inspect.Signature(parameters)
    annotations = {each.name: each.annotation for each in parameters}
    expanded.__dict__.update(__signature__=signature)
    expanded.__annotations__ = annotations
    return expanded


def _options(group: type) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters, in order."""
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(each.name, kind, default=default, annotation=hints[each.name])


def given(*groups: Any, **others: Any) -> dict[str, Any]:
    """The options in `groups` and `others` that were given, as flat keys of a recipe."""
    values = {each.name: getattr(group, each.name) for group in groups for each in fields(group)} | others
    found = {key: value for key, value in values.items() if value not in (None, [])}
    for key in ("scheduler", "quantize"):
        if key in found:
            found = {**other_tools.translate(key, found.pop(key)), **found}
    if "vae" in found and "vae" not in others:  # of a picture; an autoencoder to train with is no part
        found["part"] = [*found.get("part", []), f"vae={found.pop('vae')}"]
    return found
