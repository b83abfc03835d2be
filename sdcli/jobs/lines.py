"""The JSON line of a job: always the same keys in the same order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sdcli.jobs.job import Fault, shorten
from sdcli.jobs.plan import Planned
from sdcli.making import deliver
from sdcli.making.request import FULL


def line_of(job: Planned | Fault, recorded: Mapping[str, Any], json: int = 0) -> dict[str, Any]:
    """Return a job's line: its id, the keys of a picture's line, its position, and what differs in the batch.

    With the `json` FULL it has the recipe too: the recorded one, or the planned one.
    """
    line = {"id": job.id, **{key: recorded.get(key) for key in deliver.failed_line(None, "")}, "line": job.line}
    if isinstance(job, Planned):
        flat = job.recipe.to_dict() if job.differing else {}
        line["options"] = {key: flat.get(key) for key in job.differing}
    else:
        line["options"] = {}
    if json >= FULL:
        line["recipe"] = recorded.get("recipe") or (job.recipe.to_dict() if isinstance(job, Planned) else None)
    return line | ({"column": job.column, "field": job.field} if isinstance(job, Fault) else {})


def failed_line_of(job: Planned | Fault, message: str, json: int = 0) -> dict[str, Any]:
    """Return the line of a failed job; its error starts with the position of the job."""
    if isinstance(job, Fault):
        return line_of(job, deliver.failed_line(None, shorten(message)), json)
    return line_of(job, deliver.failed_line(job.recipe, f"line {job.line}: {shorten(message)}"), json)


def path_in(directory: str, name: str) -> str:
    """Return the path of a picture in the batch's directory as the user wrote it."""
    return os.path.normpath(name) if directory == "." else os.path.join(directory, name)  # noqa: PTH118
