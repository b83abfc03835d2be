"""What a batch says of each job: the same keys in the same order, whatever becomes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sdcli.jobs.plan import Planned
from sdcli.jobs.read import Fault, shorten
from sdcli.making import deliver


def line_of(job: Planned | Fault, said: Mapping[str, Any]) -> dict[str, Any]:
    """The job's line: its id, what `said` has of the keys of a picture's line, and where the job stands."""
    line = {"id": job.id, **{key: said.get(key) for key in deliver.failed_line(None, "")}, "line": job.line}
    return line | ({"column": job.column, "field": job.field} if isinstance(job, Fault) else {})


def failed_line_of(job: Planned | Fault, message: str) -> dict[str, Any]:
    """The line of a job that has failed, its error with the place of the job before it."""
    if isinstance(job, Fault):
        return line_of(job, deliver.failed_line(None, shorten(message)))
    return line_of(job, deliver.failed_line(job.recipe, f"line {job.line}: {shorten(message)}"))


def path_in(directory: str, name: str) -> str:
    """The path of a picture in the batch's directory, as the user wrote that."""
    return os.path.normpath(name) if directory == "." else os.path.join(directory, name)  # noqa: PTH118
