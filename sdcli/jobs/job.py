"""A job and a fault: what the lines of a file of jobs become. Knows nothing of formats and of models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import InvalidRecipe, SdcliError
from sdcli.recipe import other_tools, recipe
from sdcli.terminal.spelling import did_you_mean

KEYS = (*recipe.keys(), "id", "output", "num_images")
NAMES = (*KEYS, *other_tools.ALIASES, "size")
"""Keys, and the names that other tools have for them."""
MAX_REASON, MAX_QUOTE = 400, 120  # characters
MAX_IMAGES = 10_000
"""Pictures of one job."""
_OWN: Mapping[str, tuple[tuple[type, ...], str]] = {
    "id": ((str, int), "text or a whole number"),
    "output": ((str,), "text"),
    "num_images": ((int,), "a whole number"),
}
"""The keys that are not a recipe's: their types, and these in words."""


@dataclass(frozen=True)
class Job:
    """One job: `values` by the flat keys of a recipe, and the column of each in its line."""

    line: int
    values: Mapping[str, Any]
    id: str | int | None = None
    output: str | None = None
    columns: Mapping[str, int] = field(default_factory=dict)
    num_images: int | None = None
    """How many pictures it makes; None if it does not say."""
    varies: tuple[str, ...] = ()
    """The keys that a matrix sets."""


@dataclass(frozen=True)
class Fault:
    """An invalid job. Lines and columns count from 1; a column is a character, or a field in CSV."""

    line: int
    reason: str
    column: int | None = None
    field: str | None = None
    id: str | int | None = None

    @property
    def message(self) -> str:
        """The position and the reason: `line 3, column 18, steps: …`."""
        place = [f"line {self.line}"]
        if self.column is not None:
            place.append(f"column {self.column}")
        if self.field is not None:
            place.append(self.field)
        return f"{', '.join(place)}: {shorten(self.reason)}"


class Wrong(ValueError):
    """A fault whose line is not known yet."""

    def __init__(self, reason: str, column: int | None, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column, self.field = reason, column, field


def job_of(line: int, values: Mapping[str, Any], columns: Mapping[str, int], supplied: Collection[str] = ()) -> Job:
    """Make a job of `values`, each of which is checked; None means not given. Raises Wrong.

    `supplied` are keys that the job gets later, from `--matrix`.
    """
    given: dict[str, Any] = {}
    columns = dict(columns)
    for written, value in values.items():
        if value is not None:
            for key, each in _checked(written, value, columns.get(written)).items():
                if key in given:
                    raise Wrong(f"{written} also sets {key}, which is set twice", columns.get(written), written)
                given[key] = each
                columns.setdefault(key, columns.get(written, 1))
    if not {"prompt", "label"} & {*given, *supplied}:
        raise Wrong("prompt is missing", 1, "prompt")
    job_id, output, count = (given.pop(key, None) for key in ("id", "output", "num_images"))
    return Job(line, given, job_id, output, columns, count)


def _checked(written: str, value: Any, column: int | None) -> dict[str, Any]:
    """One member of a job in the terms of a recipe, checked. Raises Wrong."""
    if written not in NAMES:
        hint = did_you_mean(written, NAMES, f"the keys are {', '.join(KEYS)}")
        raise Wrong(f"unknown key {shorten(repr(written), MAX_QUOTE)} ({hint})", column, written)
    if isinstance(value, str) and not is_unicode(value):
        raise Wrong("the text is not valid Unicode", column, written)
    if written in _OWN:
        accepted, words = _OWN[written]
        if type(value) not in accepted:
            raise Wrong(f"{written} is {shorten(repr(value), MAX_QUOTE)} (it must be {words})", column, written)
        if written == "num_images" and not 1 <= value <= MAX_IMAGES:
            raise Wrong(f"num_images is {value} (it must be between 1 and {MAX_IMAGES})", column, written)
        return {written: value}
    try:
        found = other_tools.translate(written, value)
        return {key: each if is_random(key, each) else recipe.check_value(key, each) for key, each in found.items()}
    except InvalidRecipe as error:
        raise Wrong(explain(error), column, written) from error


def is_random(key: str, value: Any) -> bool:
    """Whether this is the seed that asks for a random one."""
    return key == "seed" and type(value) is int and value == other_tools.RANDOM_SEED


def fault_of(line: int, wrong: Wrong, values: Mapping[str, Any]) -> Fault:
    """Make a fault of `wrong`, with the job's id if that could be read."""
    job_id = values.get("id")
    known = type(job_id) is int or (isinstance(job_id, str) and is_unicode(job_id))
    at = None if wrong.field is None else shorten(wrong.field, MAX_QUOTE)
    return Fault(line, wrong.reason, wrong.column, at, job_id if known else None)


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which represent bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, most: int = MAX_REASON) -> str:
    """Return `text` on one line, at most `most` characters long, without lone surrogates."""
    flat = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def explain(error: SdcliError) -> str:
    """Return message and hint of `error` on one line; a long message is shortened, the hint is not."""
    return f"{shorten(error.message, MAX_QUOTE)} ({error.hint})"
