"""Products of cases: a part of each is run by default, all of it with `-m ''`."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def product(*axes: Sequence[Any], every: int) -> list[Any]:
    """The parameters of each combination of one value an axis; `every`th runs by default, and the rest is slow.

    It runs where the places of its values add up to a multiple of `every`. So each value of each axis is there, with
    changing company, where the other axes have at least `every` values; and of three axes, each pair of values.
    """
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        name = "-".join(map(_name, values, places))
        cases.append(pytest.param(*values, id=name, marks=[pytest.mark.slow] if sum(places) % every else []))
    return cases


def _name(value: Any, place: int) -> str:
    match value:
        case str() | int() | float():
            return str(value)
        case tuple() if all(isinstance(each, str) for each in value):
            return "-".join(value)
    return str(getattr(value, "__name__", place))
