"""Estimates the cost of a run by timing a few steps in a temporary folder."""

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sdcli.terminal.display import format_clock, format_size
from sdcli.training import stages
from sdcli.training.diffusion import DiffusionRun
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import DiffusionTraining
from sdcli.training.team import Team

TIMED_STEPS = 3


def measure(config: RunConfig, team: Team) -> dict[str, Any]:
    """Return the parameters, samples, seconds per step and per picture, wall time and memory of a new run.

    Steps are timed at the run's batch size, after one warm-up step. At most one batch of pictures is encoded, of a
    LoRA all, and the model makes none.
    """
    settings, start = config.settings, config.begin
    if start.class_prompts and start.class_data is None:
        start = replace(start, class_data=start.data)  # pictures of the class take the time of others in a step
    encoded = 0
    if isinstance(settings, DiffusionTraining):
        encoded = min(settings.most_scenes, settings.scenes + settings.fresh * settings.steps)
        few = min(settings.scenes, settings.batch)
        settings = replace(settings, scenes=few, fresh=0)
    with TemporaryDirectory() as nowhere:
        run = stages.begin(replace(config, out=Path(nowhere), settings=settings, begin=start), team)
        began = time.monotonic()
        for _ in run.prepare():
            pass
        encoding = time.monotonic() - began
        run.train_step()
        began = time.monotonic()
        for _ in range(TIMED_STEPS):
            run.train_step()
        seconds = (time.monotonic() - began) / TIMED_STEPS
    facts: dict[str, Any] = {
        "parameters_trained": sum(p.numel() for p in run.optimizer.parameters()),
        "samples": settings.batch * settings.steps,
        "seconds_per_step": round(seconds, 3),
    }
    wall = seconds * settings.steps
    if isinstance(run, DiffusionRun):
        pictures, limit = len(run.pool), run.pool.source.size
        encoded = encoded if limit is None else min(encoded, limit)
        kept = sum(row.nbytes for rows in run.pool.kept.values() for row in rows) // pictures
        facts |= {"pictures_encoded": encoded, "seconds_per_picture": round(encoding / pictures, 4)}
        facts |= {"memory_of_pictures": format_size(kept * encoded)}
        wall += encoding / pictures * encoded
    return facts | {"memory": format_size(_peak(team)), "wall_time": format_clock(wall), "device": str(team.device)}


def _peak(team: Team) -> int:
    """Return the peak memory in bytes: of the GPU if there is one, otherwise of this process."""
    if team.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
