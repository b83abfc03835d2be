"""From jobs to recipes, each with an identity. Reads models' configs and digests; imports no torch.

A job's identity depends on its values and not on its position: a file can be sorted, shortened or extended without
changing the identity of its jobs. Nothing is random: another run gives the same seeds and choices.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from sdcli import NUMERICS_VERSION
from sdcli.errors import InvalidRecipe, SdcliError, UsageError
from sdcli.files import names, outputs
from sdcli.files.reading import is_stream
from sdcli.jobs.expand import Draw, UnclosedBrace, choose, drawing, parse_template
from sdcli.jobs.job import Fault, Job, explain, is_random
from sdcli.models import addons, located, registry
from sdcli.models.addons import embedding
from sdcli.models.located import LocatedModel
from sdcli.models.weights import Weights
from sdcli.planning import resolve, warnings
from sdcli.planning.warnings import RecipeWarning
from sdcli.recipe.paths import paths_of
from sdcli.recipe.recipe import MAX_SEED, Recipe, loading_of
from sdcli.recipe.recipe import keys as recipe_keys

MAX_NAME_BYTES = 255
RESERVED = ".sdcli-"
IN_LINES = ("model", "width", "height", "seed")
"""Keys of a recipe that each job's line has."""
_TEMPLATES = ("prompt", "label", "negative_prompt")


@dataclass(frozen=True)
class Planned:
    """A valid job. `key` is its identity, and `name` its requested output, relative to the directory.

    It has no inputs, because those of thousands of jobs may not fit into memory. They are read again when it is made,
    and must have the sha256 in its recipe.
    """

    line: int
    id: str | int
    key: str
    model: LocatedModel
    weights: Weights
    recipe: Recipe
    name: str | None = None
    warnings: tuple[RecipeWarning, ...] = ()
    varies: tuple[str, ...] = ()
    """The keys of `--matrix`, which the generated name tells."""
    differing: tuple[str, ...] = ()
    """The keys that differ in the batch, which the job's line tells."""


@dataclass
class _Seen:
    """Identities and names of the jobs before this one."""

    asked: Counter[str] = field(default_factory=Counter)
    content: Counter[str] = field(default_factory=Counter)
    ids: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    find: Callable[..., LocatedModel] = field(default_factory=lambda: cache(_find))
    """Locates each model once, so that a later change of its name has no effect."""
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    find_addon: addons.Find = field(default_factory=lambda: cache(addons.find_addon))
    embeddings: tuple[str, ...] = field(default_factory=embedding.NAMES.all)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seed in the user's settings for the model `name`, or nothing."""
        if name not in self.seeds:
            found = resolve.settings(self.find(name).entry, {}, None)
            self.seeds[name] = (int(found["seed"].value),) if "seed" in found else ()
        return self.seeds[name]


def plan(
    items: Iterable[Job | Fault], defaults: Mapping[str, Any], *, strict: bool = False, num_images: int = 1
) -> list[Planned | Fault]:
    """Plan each of `items` in order; `defaults` are flat keys, including the model, for values that a job does not
    have, and `num_images` is the number of pictures of a job that does not say it. Picture i has the seed + i, and
    draws its own choices; its id is `id-1`, `id-2` and so on.

    Options without effect are warnings of a job, or its fault if `strict`.

    Unless it is given, a job's seed is drawn from a hash of its own values and of the number of equal jobs before it,
    and so are the choices of its wildcards. What a matrix sets, except seeds, is not part of that hash, so that its
    pictures can be compared. Its identity is a hash of its recipe (without the model's name), the
    digests of the model and its add-ons, the version of sdcli's numerics, its output's name, and the number of equal
    jobs before it.
    """
    seen = _Seen()
    planned: list[Planned | Fault] = []
    for item in items:
        if isinstance(item, Fault):
            planned.append(item)
            continue
        count = item.num_images or num_images
        asked = _canonical({"output": item.output, **item.values})
        seen.asked[asked] += 1
        key = f"{_hash(_canonical(_compared(item)) if item.varies else asked)} {seen.asked[asked]}"
        for number in range(count):
            job = item if count == 1 or item.id is None else replace(item, id=f"{item.id}-{number + 1}")
            place = _Place(len(planned) + 1, number, count, key)
            planned.append(_planned(job, place, defaults, seen, strict))
    return _with_differing(planned)


def _compared(item: Job) -> Mapping[str, Any]:
    """What a job has in common with those that a matrix compares it with: all but what the matrix sets, or its seed."""
    common = {key: value for key, value in item.values.items() if key == "seed" or key not in item.varies}
    return {"output": item.output, **common}


def _with_differing(planned: list[Planned | Fault]) -> list[Planned | Fault]:
    flats = (each.recipe.to_dict() for each in planned if isinstance(each, Planned))
    first, differing = next(flats, {}), set[str]()
    alike = dict(first)
    for flat in flats:
        if not alike.items() <= flat.items() or not flat.keys() <= first.keys() | differing:
            differing |= {key for key in {**first, **flat} if flat.get(key) != first.get(key)}
            alike = {key: value for key, value in first.items() if key not in differing}
    keys = tuple(key for key in recipe_keys() if key in differing and key not in IN_LINES)
    return [each if isinstance(each, Fault) else replace(each, differing=keys) for each in planned]


@dataclass(frozen=True)
class _Place:
    """Where a picture stands: its index in the batch from 1, and which of its job's pictures it is, from 0.

    `key` is what its job's seed and choices are drawn from.
    """

    index: int
    number: int
    count: int
    key: str


def _planned(job: Job, place: _Place, defaults: Mapping[str, Any], seen: _Seen, strict: bool) -> Planned | Fault:
    try:
        if job.id is not None and str(job.id) in seen.ids:
            raise InvalidRecipe(
                f"the job of line {seen.ids[str(job.id)]} has the same id", "give each job its own id", "id"
            )
        options = _options(job, place, defaults, seen)
        _check_files(options)
        model = seen.find(options["model"], loading_of(options).part)
        resolved = resolve.resolve(model, options, find_addon=seen.find_addon, embeddings=seen.embeddings)
        recipe = resolved.recipe
        # the number of jobs per call is not known yet, so no batch size is too large
        found = warnings.find(model, recipe, resolved.inputs, count=recipe.execution.batch_size)
        if strict:
            warnings.raise_first(found)
        name = None if job.output is None else _name(job.output, recipe, place.index, seen)
        key = _identity(recipe, resolved.weights, job.output, seen)
    except SdcliError as error:
        at = getattr(error, "field", None)
        return Fault(job.line, explain(error), job.columns.get(at) if at else None, at, job.id)
    if job.id is not None:
        seen.ids[str(job.id)] = job.line
    if name is not None:
        seen.names[name] = job.line
    job_id = key[:16] if job.id is None else job.id
    return Planned(job.line, job_id, key, model, resolved.weights, recipe, name, found, job.varies)


def _options(job: Job, place: _Place, defaults: Mapping[str, Any], seen: _Seen) -> dict[str, Any]:
    """The flat keys of a picture: those of its job, with its choices and its seed."""
    draw = drawing(place.key)
    drawn = min(draw(MAX_SEED + 1), MAX_SEED + 1 - place.count)
    if place.number:
        draw = drawing(f"{place.key} picture {place.number}")
    options = {**defaults, **job.values, **_choices(job, draw)}
    if is_random("seed", options.get("seed")) or ("seed" not in options and not seen.seeds_of(options["model"])):
        options["seed"] = drawn
    if place.number:
        base = options["seed"] if "seed" in options else seen.seeds_of(options["model"])[0]
        options["seed"] = base + place.number
    return options


def _check_files(options: Mapping[str, Any]) -> None:
    """Raise InvalidRecipe for a pipe: files are read when jobs are planned, and again when they are made."""
    for key, path, _ in paths_of(options):
        if is_stream(path):
            raise InvalidRecipe(f"{path} can be read only once, and a job's files are read twice", "use a file", key)


def _choices(job: Job, draw: Draw) -> dict[str, str]:
    chosen = {}
    for key in _TEMPLATES:
        if key in job.values:
            try:
                chosen[key] = choose(parse_template(job.values[key]), draw)
            except UnclosedBrace as error:
                raise InvalidRecipe(
                    f"character {error.index + 1} of it: {error}", "a wildcard is {red|blue}", key
                ) from error
    return chosen


def _find(model: str, part: tuple[str, ...] = ()) -> LocatedModel:
    try:
        entry = registry.find(model)
    except SdcliError as error:
        raise InvalidRecipe(error.message, error.hint, "model") from error
    return located.locate(registry.with_parts(entry, loading_of({"part": part}).places))


def _name(output: str, recipe: Recipe, index: int, seen: _Seen) -> str:
    """Fill in the template of `output`; the name must be inside the directory."""
    try:
        name = names.fill(output, recipe, index, "output")
        outputs.check_suffix(output, name, "output")
    except UsageError as error:
        raise InvalidRecipe(error.message, error.hint, "output") from error
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name.endswith("/") or not path.name or "\0" in name:
        raise InvalidRecipe(
            f"output {output!r} is not a name inside the directory", "give a name such as fox.png", "output"
        )
    if path.name.startswith(RESERVED) or len(name.encode()) > MAX_NAME_BYTES:
        hint = f"use at most {MAX_NAME_BYTES} bytes, and no name that starts with {RESERVED}"
        raise InvalidRecipe(f"output {output!r} cannot be used as a name", hint, "output")
    if str(path) in seen.names:
        hint = "add {seed} or {index} to the name"
        raise InvalidRecipe(f"{name} is also the name of line {seen.names[str(path)]}'s picture", hint, "output")
    return str(path)


def _identity(recipe: Recipe, weights: Weights, output: str | None, seen: _Seen) -> str:
    recorded = recipe.to_dict()
    del recorded["model"]
    source = weights.model
    model: dict[str, Any] = {"digest": source.sha256, "variant": source.variant, "family": source.family}
    if weights.addons:
        model["addons"] = [each.describe() for each in weights.addons]
    content = _canonical({"recipe": recorded, "model": model, "numerics": NUMERICS_VERSION, "output": output})
    seen.content[content] += 1
    return _hash(f"{content} {seen.content[content]}")


def _canonical(value: Mapping[str, Any]) -> str:
    """Return canonical JSON for a hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
