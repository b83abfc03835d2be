"""Times of pictures on this machine, for dry runs: one line per picture in the user's cache.

Times are never extrapolated from another size or scheduler; those of `sdcli bench` can be, from fewer steps.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli.diffusion.guidance import Guidance
from sdcli.files import atomic
from sdcli.files.user_files import cache_folder
from sdcli.models.weights import Weights
from sdcli.recipe.parts import Enlarging
from sdcli.recipe.recipe import Recipe

WORTH_RECORDING = 0.1  # seconds
MAX_LINES, MAX_BYTES = 1000, 512 * 1024
_KEYS = ("steps", "scheduler", "width", "height", "device", "dtype", "threads", "batch_size")
_UNSAID = ("auto", 0)


def record(recipe: Recipe, weights: Weights, seconds: float) -> None:
    """Record the time of a picture, if it is long enough. A failure is ignored."""
    if seconds < WORTH_RECORDING:
        return
    file = cache_folder() / "timings.jsonl"
    line = json.dumps(_key(recipe, weights) | {"seconds": round(seconds, 3)})
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as timings:
            timings.write(line + "\n")
        if file.stat().st_size > MAX_BYTES:
            _shorten(file)


def _shorten(file: Path) -> None:
    """Keep the latest lines. A line that another process writes at the same time can be lost."""
    kept = file.read_bytes().splitlines(keepends=True)[-MAX_LINES:]
    atomic.replace(file, b"".join(kept))


def recall(recipe: Recipe, weights: Weights) -> float | None:
    """Return the time of the latest picture similar to `recipe`, or None.

    A similar picture has the same model and add-ons, size, steps, scheduler, guidance and execution; `auto` and 0
    threads match any value.
    """
    whole = _key(recipe, weights).items()
    key = {name: value for name, value in whole if value not in _UNSAID or name == "guided"}
    latest = None
    with suppress(OSError, UnicodeDecodeError):
        lines = (cache_folder() / "timings.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[-MAX_LINES:]:
            recorded = _read(line)
            if all(recorded.get(name) == value for name, value in key.items()):
                latest = recorded.get("seconds", latest)
    return float(latest) if isinstance(latest, int | float) else None


def _key(recipe: Recipe, weights: Weights) -> dict[str, Any]:
    flat = recipe.to_dict()
    return {
        "model": weights.model.sha256,
        "addons": [each.sha256 for each in weights.sources[1:]] or None,
        "guided": Guidance.of(recipe).is_on,
        "compile": recipe.execution.compile or None,
        "engine": recipe.execution.engine if recipe.execution.engine != "torch" else None,
        "cache": recipe.shortcuts.cache,
        "token_merging": recipe.shortcuts.token_merging or None,
        "guidance_interval": recipe.sampling.guidance_interval,
        "skip_layer_guidance": recipe.flow.skip_layer_guidance,
        "strength": recipe.initial.strength,  # a fraction of the steps, None without an image
        **{name: flat[name] for name in _KEYS},
        **({} if recipe.hires.hires is None else vars(recipe.hires)),
        **({} if recipe.refiner.refiner is None else {"refiner_switch": recipe.refiner.refiner_switch}),
        **({} if recipe.enlarging == Enlarging() else vars(recipe.enlarging)),
    }


def _read(line: str) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {}  # an incomplete line
