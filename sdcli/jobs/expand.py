"""One job becomes many: `{a|b}` in prompts, and the products of `--matrix`. Knows nothing of files or models."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.jobs.read import KEYS, Fault, Job
from sdcli.recipe import recipe
from sdcli.terminal.spelling import did_you_mean

MAX_NESTING = 16
MATRIX_KEYS = tuple(key for key in KEYS if key not in ("prompt", "id", "output"))

Draw = Callable[[int], int]
"""`draw(n)` is a number below n."""

_TOKEN = re.compile(r"\\[{}|]|[{}|]|[^{}|\\]+|\\")


@dataclass(frozen=True)
class Choice:
    """A wildcard: one of `options` will stand in its place."""

    options: tuple[Template, ...]


Template = tuple[str | Choice, ...]


class UnclosedBrace(ValueError):
    """A brace without its other half, at `index` of the text."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def parse_template(text: str) -> Template:
    """The wildcards in `text`: `{a|b}`, which may hold others. Braces around no `|` stand for themselves, as do
    `\\{`, `\\}` and `\\|`. Raises UnclosedBrace, also for wildcards nested more than MAX_NESTING deep.
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
                raise UnclosedBrace(match.start(), "a } closes nothing; write \\} for the brace itself")
            open_groups.pop()
            open_groups[-1][1][-1] += _closed(options)
        elif token == "|" and len(open_groups) > 1:
            options.append([])
        else:
            options[-1].append(token[-1] if len(token) == 2 and token[0] == "\\" else token)
    if len(open_groups) > 1:
        raise UnclosedBrace(open_groups[-1][0], "a { is never closed; write \\{ for the brace itself")
    return tuple(open_groups[0][1][0])


def choose(template: Template, draw: Draw) -> str:
    """The text of `template` with one option drawn for each wildcard, from left to right, the outer one first."""
    return "".join(
        part if isinstance(part, str) else choose(part.options[draw(len(part.options))], draw) for part in template
    )


def drawing(key: str) -> Draw:
    """Draws that `key` determines, the same in every version of Python: the n-th is from SHA-256 of `key` and n."""
    numbers = itertools.count()

    def draw(below: int) -> int:
        digest = hashlib.sha256(f"{key} {next(numbers)}".encode()).digest()
        return int.from_bytes(digest[:16], "big") % below

    return draw


def parse_matrix(options: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """What `--matrix KEY=V1,V2` asks for: each key with its values, of the key's type, in the order given.

    A value that holds a comma stands in double quotes, as in CSV. Raises UsageError.
    """
    axes: dict[str, list[Any]] = {}
    for option in options:
        key, equals, listed = option.partition("=")
        said = f"--matrix {option}"
        if not equals:
            raise UsageError(f"{said} has no =", "write --matrix seed=1,2,3")
        if key not in MATRIX_KEYS:
            hint = did_you_mean(key, MATRIX_KEYS, f"the keys are {', '.join(MATRIX_KEYS)}")
            raise UsageError(f"{said}: unknown key {key!r}", hint)
        if key in axes:
            raise UsageError(f"--matrix {key} is given twice", f"put all values into one: --matrix {key}=…,…")
        try:
            (cells,) = csv.reader([listed], strict=True)
            axes[key] = [recipe.parse_value(key, cell) for cell in cells or [""]]
        except InvalidRecipe as error:
            raise UsageError(f"{said}: {error.message}", error.hint) from error
        except (csv.Error, ValueError) as error:
            raise UsageError(f"{said} cannot be read: {error}", f"write --matrix {key}=…,… on one line") from error
    return list(axes.items())


def multiply(items: Iterable[Job | Fault], axes: Sequence[tuple[str, list[Any]]]) -> Iterator[Job | Fault]:
    """Each job once for every combination of `axes`, the last varying fastest; `id` becomes `id-1`, `id-2` ….

    A job that itself says what an axis is to vary is a fault: either could be meant.
    """
    keys = [key for key, _ in axes]
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(each for _, each in axes))]
    for item in items:
        if isinstance(item, Fault) or not axes:
            yield item
            continue
        twice = next((key for key in keys if key in item.values), None)
        if twice is not None:
            reason = "the job and --matrix both set it; leave it out of one"
            yield Fault(item.line, reason, item.columns.get(twice), twice, item.id)
            continue
        for number, combination in enumerate(combinations, start=1):
            yield _combined(item, combination, number if len(combinations) > 1 else None)


def _combined(job: Job, combination: Mapping[str, Any], number: int | None) -> Job:
    job_id = job.id if job.id is None or number is None else f"{job.id}-{number}"
    return replace(job, values={**job.values, **combination}, id=job_id)


def _closed(options: list[list[str | Choice]]) -> list[str | Choice]:
    """What a finished group stands for: a choice, or, without a `|` in it, itself with its braces."""
    if len(options) > 1:
        return [Choice(tuple(map(tuple, options)))]
    return ["{", *options[0], "}"]
