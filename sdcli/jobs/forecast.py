"""Dry runs of batches, without torch and without writing anything: existing and missing pictures, memory and time.

Has the same information per job as `sdcli generate --dry-run`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli.errors import OutputExists, SdcliError
from sdcli.files import names, outputs
from sdcli.jobs import ledger
from sdcli.jobs.job import Fault, explain
from sdcli.jobs.ledger import Ledger
from sdcli.jobs.lines import failed_line_of, line_of, path_in
from sdcli.jobs.making import Batch, chunks_of, flatness_fault, groups_of
from sdcli.jobs.plan import Planned
from sdcli.making import deliver
from sdcli.models.source import Source
from sdcli.planning import dry_run
from sdcli.planning.dry_run import Parts
from sdcli.recipe.recipe import Recipe


@dataclass
class _Plan:
    """State of the dry run: the lines of the jobs, the models by location, and the planned names."""

    batch: Batch
    book: Ledger
    lines: list[dict[str, Any]] = field(default_factory=list)
    models: dict[Source, dict[str, Any]] = field(default_factory=dict)
    costs: dict[Any, dict[str, Any]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def forecast(batch: Batch) -> dict[str, Any]:
    """Describe what `making.deliver` would do, as JSON: `jobs`, their lines in order, with estimated `seconds`,
    `tokens` and `memory`; the `models` of missing pictures; the numbers of `planned`, `cached` and `failed` jobs; the
    `memory` of the largest call; and the total `seconds`, None if those of one picture are unknown.

    Raises OutputError if the directory cannot be read or written.
    """
    plan = _Plan(batch, ledger.peek(Path(batch.directory)))
    outputs.check_directory(Path(batch.directory), make=True)
    missing = []
    for job in batch.jobs:
        if isinstance(job, Fault):
            plan.lines.append(failed_line_of(job, job.message, batch.json))
    for job in batch.jobs:
        found = None if isinstance(job, Fault) else ledger.finished(plan.book, job.key)
        if isinstance(job, Planned) and found is None:
            missing.append(job)
        elif isinstance(job, Planned) and found is not None:
            plan.lines.append(_cached(plan, job, *found))
    for group in groups_of(missing):
        parts: Parts | SdcliError
        try:
            parts = dry_run.find_parts(group[0].weights)
            plan.models[group[0].model.source] = dry_run.model_of(group[0].model.entry.name, parts)
        except SdcliError as error:
            parts = error
        for chunk in chunks_of(group):
            plan.lines += (_planned(plan, job, parts, len(chunk)) for job in chunk)
    return _summary(plan)


def _cached(plan: _Plan, job: Planned, name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    fault = flatness_fault(line) if plan.batch.strict else None
    if fault is not None:
        return failed_line_of(job, explain(fault), plan.batch.json)
    recorded = {**line, "status": "cached", "path": path_in(plan.batch.directory, name)}
    return line_of(job, recorded, plan.batch.json)


def _planned(plan: _Plan, job: Planned, parts: Parts | SdcliError, size: int) -> dict[str, Any]:
    same = job.recipe.execution.batch_size == size
    recipe = job.recipe if same else job.recipe.replace(batch_size=size)
    try:
        if isinstance(parts, SdcliError):
            raise parts
        cost = _cost(plan, parts, recipe)
        name = _name(plan, job)
    except SdcliError as error:
        return failed_line_of(job, explain(error), plan.batch.json)
    recorded = deliver.failed_line(recipe, "") | {
        "status": "planned",
        "path": path_in(plan.batch.directory, name),
        "seconds": cost["seconds"],
        "warnings": [each.message for each in job.warnings],
        "error": None,
    }
    return line_of(job, recorded) | {"tokens": cost["tokens"], "memory": cost["memory"], "recipe": recipe.to_dict()}


def _cost(plan: _Plan, parts: Parts, recipe: Recipe) -> dict[str, Any]:
    """What `dry_run.cost_of` returns; only the number of tokens depends on the words and the seed."""
    condition = replace(recipe.condition, prompt="", negative_prompt="")
    alike = parts.weights, replace(recipe, condition=condition, seed=0)
    if alike not in plan.costs:
        plan.costs[alike] = dry_run.cost_of(parts, recipe)
        return plan.costs[alike]
    is_text = recipe.condition.label is None
    return {**plan.costs[alike], "tokens": dry_run.count_tokens(parts.weights, recipe) if is_text else None}


def _name(plan: _Plan, job: Planned) -> str:
    """Return the name that the picture will get, unless another process writes it first. Raises OutputExists."""
    directory = plan.book.directory
    if job.name is not None:
        if os.path.lexists(directory / job.name) and not plan.batch.force:
            path = path_in(plan.batch.directory, job.name)
            raise OutputExists(f"{path} already exists", "choose another output, or use --force")
        return job.name
    free = names.numbered(names.default_name(job.recipe, ".png", job.varies), ".png")
    name = next(each for each in free if each not in plan.names and not os.path.lexists(directory / each))
    plan.names.add(name)
    return name


def _summary(plan: _Plan) -> dict[str, Any]:
    planned = [line for line in plan.lines if line["status"] == "planned"]
    counts = {
        status: sum(line["status"] == status for line in plan.lines) for status in ("planned", "cached", "failed")
    }
    seconds = [line["seconds"] for line in planned]
    peak = max((line["memory"] for line in planned), key=lambda memory: int(memory["peak"]), default=None)
    return {
        "status": "planned",
        "directory": plan.batch.directory,
        **counts,
        "memory": peak,
        "seconds": None if None in seconds else round(sum(seconds), 3),
        "models": list(plan.models.values()),
        "jobs": plan.lines,
        "error": None,
    }


def lines(recorded: Mapping[str, Any]) -> Iterable[str]:
    """Format a forecast: one line per job, then the totals."""
    for job in recorded["jobs"]:
        what = job["error"] if job["status"] == "failed" else job["path"]
        yield f"{job['status']:<9}{what}"
        yield from (f"{'':9}warning: {warning}" for warning in job["warnings"])
    unknown = sum(job["status"] == "planned" and job["seconds"] is None for job in recorded["jobs"])
    known = sum(job["seconds"] or 0 for job in recorded["jobs"] if job["status"] == "planned")
    seconds = dry_run.seconds_in_words(known) if known or not unknown else "unknown: no similar pictures were measured"
    if known and unknown:
        seconds += f", without the {unknown} without a measured time"
    yield f"jobs:     {recorded['planned']} to make, {recorded['cached']} cached, {recorded['failed']} failed"
    for model in recorded["models"]:
        size = dry_run.gib(sum(file["bytes"] for file in model["files"]))
        yield f"model:    {model['name']} ({model['path']}), {size}, sha256 {model['digest']}"
    if recorded["memory"]:
        yield f"memory:   {dry_run.memory_in_words(recorded['memory'])}"
        yield f"seconds:  {seconds}"
