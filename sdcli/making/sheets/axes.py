"""Which keys differ between the recipes of pictures, and how they are arranged. Opens no files.

One key that differs is a row, two are the rows and columns of a grid, and further ones are headings of several grids.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sdcli.recipe.parts import INPUT_KEYS
from sdcli.recipe.recipe import keys

MAX_ROW = 12
"""Pictures of one row; more of them are a sheet without axes, with captions."""
MAX_IN_CELL = 8
_MAX_FOLLOWERS = 2
SIZE = "size"
_TEXTS = ("prompt", "label", "prompt_2", "negative_prompt", "model")
_PATHS = ("model", *INPUT_KEYS)
_DERIVED = ("width", "height", "match_reference", "batch_size", "threads")
"""Keys that are no axes: `size` replaces two of them, and the others are of little interest."""

Recipes = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Block:
    """A grid under a heading: the labels of its rows and columns, and the indices of the pictures in each cell."""

    heading: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[int, int], tuple[int, ...]]


@dataclass(frozen=True)
class Arrangement:
    """How pictures are arranged: in grids by the `axes`, or one after the other, if there are no `blocks`.

    `captions` says for each picture what is special about it, and `differing` has all keys whose values differ.
    """

    axes: tuple[str, ...]
    blocks: tuple[Block, ...]
    captions: tuple[str, ...]
    differing: tuple[str, ...]


def arrange(recipes: Recipes) -> Arrangement:
    """Arrange pictures with these flat keys, of which any can be missing."""
    shown = [_with_size(each) for each in recipes]
    ordered = [*_TEXTS, *(key for key in (*keys(), SIZE) if key not in _TEXTS)]
    ordered += dict.fromkeys(key for each in shown for key in each if key not in ordered)
    values = {key: [_hashable(each.get(key)) for each in shown] for key in ordered}
    differing = tuple(key for key in ordered if len(set(values[key])) > 1)
    candidates = [key for key in differing if key not in _DERIVED and not key.endswith("_sha256")]
    axes, followers = _leaders(_without_odd_seeds(candidates, values), values)
    words = {key: [_words(key, followers[key], each) for each in shown] for key in axes}
    captions = tuple(", ".join(words[key][index] for key in axes) for index in range(len(shown)))
    blocks = _blocks(axes, values, words)
    return Arrangement(tuple(axes), blocks, captions, tuple(key for key in differing if not key.endswith("_sha256")))


def label(key: str, value: Any) -> str:
    """Return a value in words: `steps 8`, `euler`, `no lora`."""
    name = key.replace("_", " ")
    if value is None or value == [] or value == "":
        return f"no {name}"
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    if isinstance(value, int | float):
        return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if key in ("seed", "steps"):  # of another tool, as text
        return f"{name} {value}"
    return PurePath(value).name if key in _PATHS and isinstance(value, str) else str(value)


def _with_size(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**flat, SIZE: f"{flat['width']}×{flat['height']}"} if {"width", "height"} <= flat.keys() else flat


def _hashable(value: Any) -> Hashable:
    return repr(value) if isinstance(value, list | tuple | dict) else value


def _groups(chosen: Iterable[str], values: Mapping[str, list[Hashable]]) -> list[tuple[Hashable, ...]]:
    """The values of the `chosen` keys of each picture."""
    columns = [values[key] for key in chosen]
    count = len(next(iter(values.values())))
    return [tuple(column[index] for column in columns) for index in range(count)]


def _without_odd_seeds(candidates: list[str], values: Mapping[str, list[Hashable]]) -> list[str]:
    """Omit the seed if it is no axis: each job of a batch has its own, unless it is given."""
    others = [key for key in candidates if key != "seed"]
    if "seed" not in candidates or not others:
        return candidates
    apart = len(set(_groups(others, values)))
    product = apart * len(set(values["seed"]))
    count = len(values["seed"])
    return others if apart == count or 2 * product > 3 * count else candidates


def _leaders(candidates: Sequence[str], values: Mapping[str, list[Hashable]]) -> tuple[list[str], dict[str, list[str]]]:
    """The keys that others follow from, and those that follow from each: a model can have its own steps."""
    leaders: dict[str, list[str]] = {}
    for key in candidates:
        for leader in leaders:
            if len(set(_groups([leader, key], values))) == len(set(values[leader])):
                leaders[leader].append(key)
                break
        else:
            leaders[key] = []
    return list(leaders), leaders


def _words(key: str, followers: Sequence[str], flat: Mapping[str, Any]) -> str:
    """The value of an axis, and those of the keys that change with it."""
    return ", ".join(label(each, flat.get(each)) for each in (key, *followers[:_MAX_FOLLOWERS]))


def _blocks(
    axes: Sequence[str], values: Mapping[str, list[Hashable]], words: Mapping[str, list[str]]
) -> tuple[Block, ...]:
    """One grid for each combination of the keys that are headings; none if the pictures are no product of the axes."""
    if not axes:
        return ()
    levels = {key: _in_order(values[key], words[key]) for key in axes}
    chosen = _groups(axes, values)
    cells = math.prod(len(each) for each in levels.values())
    filled = Counter(chosen)
    if 2 * len(filled) < cells or max(filled.values()) > MAX_IN_CELL:
        return ()
    if len(axes) == 1 and len(levels[axes[0]]) > MAX_ROW:
        return ()
    headings, row, column = _roles(axes, {key: len(each) for key, each in levels.items()})
    made: dict[tuple[Hashable, ...], dict[tuple[int, int], tuple[int, ...]]] = {}
    titles: dict[tuple[Hashable, ...], str] = {}
    places = {key: {value: place for place, (value, _) in enumerate(each)} for key, each in levels.items()}
    for index in sorted(range(len(chosen)), key=lambda each: _rank(values["seed"][each])):
        above = tuple(values[key][index] for key in headings)
        place = places[row][values[row][index]] if row else 0, places[column][values[column][index]]
        grid = made.setdefault(above, {})
        grid[place] = (*grid.get(place, ()), index)
        titles[above] = " · ".join(words[key][index] for key in headings)
    order = sorted(made, key=lambda above: [places[key][each] for key, each in zip(headings, above, strict=True)])
    rows = tuple(label for _, label in levels[row]) if row else ("",)
    columns = tuple(label for _, label in levels[column])
    return tuple(Block(titles[above], rows, columns, made[above]) for above in order)


def _roles(axes: Sequence[str], counts: Mapping[str, int]) -> tuple[list[str], str | None, str]:
    """The keys of the headings, the rows and the columns. Texts are headings or rows; screens are wide."""
    if len(axes) == 1:
        return [], None, axes[0]
    texts = [key for key in axes if key in _TEXTS]
    numbers = sorted((key for key in axes if key not in _TEXTS), key=lambda key: counts[key])
    *headings, row, column = [*texts, *numbers]
    if row not in _TEXTS and counts[row] == counts[column] and axes.index(row) > axes.index(column):
        row, column = column, row
    return headings, row, column


def _in_order(values: Sequence[Hashable], words: Sequence[str]) -> list[tuple[Hashable, str]]:
    """The distinct values with their words: numbers by size, after a missing one, and texts as they come."""
    found = dict(zip(reversed(values), reversed(words), strict=True))
    distinct = [(each, found[each]) for each in dict.fromkeys(values)]
    if all(each is None or isinstance(each, int | float) for each in found):
        return sorted(distinct, key=lambda pair: _rank(pair[0]))
    return distinct


def _rank(value: Hashable) -> float:
    return value if isinstance(value, int | float) else -math.inf
