"""Expands jobs: wildcards `{a|b}` in prompts, and the combinations of `--matrix`. Knows nothing of files or models."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.jobs.job import KEYS, Fault, Job
from sdcli.recipe import other_tools, recipe
from sdcli.terminal.spelling import did_you_mean

MAX_NESTING = 16
MAX_VALUES = 100_000
"""Values of one `--matrix`."""
MAX_JOBS = 1_000_000
MATRIX_KEYS = (*(key for key in KEYS if key not in ("id", "output", "num_images")), *other_tools.ALIASES, "size")

Draw = Callable[[int], int]
"""`draw(n)` returns a number below n."""

_RANGE = re.compile(r"\s*(\d{1,10})\.\.(\d{1,10})(?:\.\.(\d{1,10}))?\s*", re.ASCII)
_TOKEN = re.compile(r"\\[{}|]|[{}|]|[^{}|\\]+|\\")


@dataclass(frozen=True)
class Choice:
    """A wildcard, which is replaced by one of `options`."""

    options: tuple[Template, ...]


Template = tuple[str | Choice, ...]


class UnclosedBrace(ValueError):
    """An unbalanced brace at `index` of the text."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def parse_template(text: str) -> Template:
    """Parse the wildcards in `text`: `{a|b}`, which can be nested.

    Braces without a `|` inside are literal, as are `\\{`, `\\}` and `\\|`. Raises UnclosedBrace, also for wildcards
    nested more than MAX_NESTING deep.
    """
    open_groups: list[tuple[int, list[list[str | Choice]]]] = [(0, [[]])]
    for match in _TOKEN.finditer(text):
        token, options = match[0], open_groups[-1][1]
        if token == "{":
            if len(open_groups) > MAX_NESTING:
                raise UnclosedBrace(match.start(), f"wildcards are nested more than {MAX_NESTING} deep")
            open_groups.append((match.start(), [[]]))
        elif token == "}":
            if len(open_groups) == 1:
                raise UnclosedBrace(match.start(), "a } has no opening brace; write \\} for a literal brace")
            open_groups.pop()
            open_groups[-1][1][-1] += _closed(options)
        elif token == "|" and len(open_groups) > 1:
            options.append([])
        else:
            options[-1].append(token[-1] if len(token) == 2 and token[0] == "\\" else token)
    if len(open_groups) > 1:
        raise UnclosedBrace(open_groups[-1][0], "a { is not closed; write \\{ for a literal brace")
    return tuple(open_groups[0][1][0])


def choose(template: Template, draw: Draw) -> str:
    """Return the text of `template` with one option drawn for each wildcard, left to right, outer ones first."""
    return "".join(
        part if isinstance(part, str) else choose(part.options[draw(len(part.options))], draw) for part in template
    )


def drawing(key: str) -> Draw:
    """Return a generator of draws from `key`, the same in every version of Python: SHA-256 of `key` and a counter."""
    numbers = itertools.count()

    def draw(below: int) -> int:
        digest = hashlib.sha256(f"{key} {next(numbers)}".encode()).digest()
        return int.from_bytes(digest[:16], "big") % below

    return draw


def parse_matrix(options: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Parse `--matrix KEY=V1,V2`: each key with its values, converted to the key's type, in order.

    A value that contains a comma must be in double quotes, as in CSV. `1..20` are the whole numbers from 1 to 20, and
    `0..100..25` every 25th. Raises UsageError.
    """
    axes: dict[str, list[Any]] = {}
    for option in options:
        key, equals, listed = option.partition("=")
        written = f"--matrix {option}"
        if not equals:
            raise UsageError(f"{written} has no =", "write --matrix seed=1,2,3")
        if key not in MATRIX_KEYS:
            hint = did_you_mean(key, MATRIX_KEYS, f"the keys are {', '.join(MATRIX_KEYS)}")
            raise UsageError(f"{written}: unknown key {key!r}", hint)
        if key in axes:
            raise UsageError(f"--matrix {key} is given twice", f"give all values at once: --matrix {key}=…,…")
        try:
            (values,) = csv.reader([listed], strict=True)
            axes[key] = [each for value in values or [""] for each in _values(key, value)]
        except InvalidRecipe as error:
            raise UsageError(f"{written}: {error.message}", error.hint) from error
        except (csv.Error, ValueError) as error:
            raise UsageError(f"{written} cannot be read: {error}", f"write --matrix {key}=…,… on one line") from error
    return list(axes.items())


def _values(key: str, text: str) -> Iterator[Any]:
    """The values in `text`: one, or those of a range. Raises InvalidRecipe and ValueError."""
    found = _RANGE.fullmatch(text) if recipe.is_whole(other_tools.ALIASES.get(key, key)) else None
    if found is not None:
        first, last, step = (int(each or 1) for each in found.groups())
        if last < first or not step:
            raise ValueError(f"{text} is empty; the first number must not be above the last")
        numbers = range(first, last + 1, step)
        if len(numbers) > MAX_VALUES:
            raise ValueError(f"{text} has {len(numbers):,} values; at most {MAX_VALUES:,} are allowed")
        yield from (recipe.check_value(key, each) for each in numbers)
        return
    if key == "seed" and text.strip() == str(other_tools.RANDOM_SEED):
        yield other_tools.RANDOM_SEED
        return
    written = other_tools.translate(key, text)
    parsed = {each: recipe.parse_value(each, str(value)) for each, value in written.items()}
    yield text if len(parsed) > 1 else next(iter(parsed.values()))


def check_number(jobs: int, axes: Sequence[tuple[str, list[Any]]]) -> None:
    """Raise UsageError if `jobs` and the combinations of `axes` are too many."""
    total = jobs * math.prod(len(values) for _, values in axes)
    if total > MAX_JOBS:
        raise UsageError(f"these are {total:,} jobs; at most {MAX_JOBS:,} are allowed", "divide them into batches")


def multiply(items: Iterable[Job | Fault], axes: Sequence[tuple[str, list[Any]]]) -> Iterator[Job | Fault]:
    """Yield each job once per combination of `axes`, the last varying fastest; `id` becomes `id-1`, `id-2` and so on.

    A job that sets the key of an axis is a fault.
    """
    named = [[other_tools.translate(key, value) for value in values] for key, values in axes]
    combinations = [dict(ChainMap(*reversed(each))) for each in itertools.product(*named)]
    keys = tuple(dict.fromkeys(key for each in combinations for key in each))
    varies = tuple(key for key in keys if len({repr(each.get(key)) for each in combinations}) > 1)
    for item in items:
        if isinstance(item, Fault) or not axes:
            yield item
            continue
        twice = next((key for key in keys if key in item.values), None)
        if twice is not None:
            reason = "it is set by the job and by --matrix; remove one of them"
            yield Fault(item.line, reason, item.columns.get(twice), twice, item.id)
            continue
        for number, combination in enumerate(combinations, start=1):
            many = len(combinations) > 1
            job_id = item.id if item.id is None or not many else f"{item.id}-{number}"
            yield replace(item, values={**item.values, **combination}, id=job_id, varies=varies)


def _closed(options: list[list[str | Choice]]) -> list[str | Choice]:
    """Return a finished group: a choice, or literal braces if it has no `|`."""
    if len(options) > 1:
        return [Choice(tuple(map(tuple, options)))]
    return ["{", *options[0], "}"]
