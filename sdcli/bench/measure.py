"""Runs the turns of a measurement, and returns what it found as a dictionary for JSON. Imports torch when it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.bench.subject import Subject
from sdcli.planning import timings
from sdcli.recipe import schedulers

if TYPE_CHECKING:
    from sdcli.bench.contenders import Contender, Turn
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.recipe.recipe import Recipe

TURNS, SECONDS = 3, 200.0
_LEAST_STEPS = 2  # that the turns run
_LATER_STEP = 0.6  # of the time of the first step, which prepares kernels

OnActivity = Callable[[str, int, int], None]
"""Called with what is done next, and how many of all turns are done."""


def measure(
    subject: Subject,
    against: Sequence[str] = (),
    *,
    turns: int = TURNS,
    seconds: float = SECONDS,
    on_activity: OnActivity = lambda activity, done, total: None,
) -> dict[str, Any]:
    """Measure the picture of `subject`, in turns with the rivals `against`, for about `seconds` seconds.

    Each turn of each runs the same number of steps, as many as there is time for; the time of the whole picture is
    extrapolated from them. With shortcuts, whose steps differ, sdcli runs all of them. Raises
    what loading raises, and UsageError for a rival that cannot make the picture.
    """
    started = time.perf_counter()
    on_activity("importing", 0, 1)
    from sdcli.bench import contenders, loaded, machine
    from sdcli.diffusion import device

    imported = time.perf_counter() - started
    recipe = device.resolve_execution(subject.recipe)
    memory = machine.Memory(recipe.execution.device)
    on_activity("loading", 0, 1)
    begun = time.perf_counter()
    model = loaded.load(subject, recipe)
    load = time.perf_counter() - begun
    ours = contenders.Ours(model, recipe)
    on_activity("warming up sdcli", 0, 1)
    few = schedulers.least_steps(recipe.sampling.scheduler, model.scheduler_config)
    warm = {ours.name: ours.turn(few)}
    found = memory.found(model)
    rivals: list[Contender] = []
    theirs = _in_torch(subject, recipe, model) if against else model
    vae = loaded.own_vae(subject, recipe, theirs) if against else None
    for name in against:
        on_activity(f"warming up {name}", 0, 1)
        rivals.append(contenders.rival(name, theirs, recipe, vae))
        warm[name] = rivals[-1].turn(few)
    left, whole = seconds - (time.perf_counter() - started), bool(subject.shortcuts)
    steps, turns = _plan(list(warm.values()), recipe.sampling.steps, turns, left, whole=whole)
    counts = {ours.name: recipe.sampling.steps if whole else steps, **dict.fromkeys(against, steps)}
    taken = _take_turns([ours, *rivals], counts, turns, started + seconds, on_activity)
    results = [_result(name, each, recipe.sampling.steps, whole=whole) for name, each in taken.items()]
    for result in results[1:]:
        result |= _compared(results[0], result, taken[ours.name][-1], taken[result["name"]][-1])
    if not subject.is_random:
        timings.record(recipe, subject.weights, results[0]["picture"])
    return {
        **_described(subject, recipe, model),
        "machine": machine.describe(recipe.execution.device),
        "shortcuts": subject.shortcuts,
        "turns": len(taken[ours.name]),
        "steps_run": counts[ours.name],
        "extrapolated": min(counts.values()) < recipe.sampling.steps,
        "import": round(imported, 3),
        "load": round(load, 3),
        "memory": found,
        "results": results,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _in_torch(subject: Subject, recipe: Recipe, model: LatentDiffusionModel) -> LatentDiffusionModel:
    """Return a model with the same weights in torch: `model`, or another one if an engine has replaced its weights."""
    from sdcli.bench import loaded

    return model if recipe.execution.engine == "torch" else loaded.load(subject, recipe.replace(engine="torch"))


def _take_turns(
    contenders: Sequence[Contender], counts: Mapping[str, int], turns: int, end: float, on_activity: OnActivity
) -> dict[str, list[Turn]]:
    """Return the turns of each contender, with its number of steps; the last ones are left out after `end`."""
    taken: dict[str, list[Turn]] = {each.name: [] for each in contenders}
    for done in range(turns):
        begun = time.perf_counter()
        for place, each in enumerate(contenders):
            on_activity(f"measuring {each.name}", done * len(taken) + place, turns * len(taken))
            taken[each.name].append(each.turn(counts[each.name]))
        now = time.perf_counter()
        if now + (now - begun) > end:
            break
    return taken


def _plan(warm: Sequence[Turn], most: int, turns: int, left: float, *, whole: bool = False) -> tuple[int, int]:
    """Return how many steps each turn runs, of the `most` of the picture, and how many turns, to take `left` seconds.

    Each turn runs a few steps, and the first one, which encodes and decodes too, is always run. With `whole`, the
    first contender runs all steps of the picture in each turn, and the number is that of the others.
    """
    later = [_LATER_STEP * each.steps[0] for each in warm]
    once = sum((each.encode or 0) + each.decode for each in warm) + (most * later.pop(0) if whole else 0)
    step = sum(later)
    least = min(_LEAST_STEPS, most)
    turns = max(1, min(turns, int(left // (once + least * step))))
    steps = int((left / turns - once) // step) if step else most
    return max(least, min(steps, most)), turns


def _result(name: str, taken: Sequence[Turn], steps: int, *, whole: bool = False) -> dict[str, Any]:
    """Return the medians of the turns of one contender, in seconds; `picture` is for all `steps`.

    With `whole`, the steps differ on purpose, and `step` is their mean.
    """
    encode = statistics.median(each.encode or 0 for each in taken)
    average = statistics.mean if whole else statistics.median
    step = average([one for each in taken for one in each.steps])
    decode = statistics.median(each.decode for each in taken)
    pictures = [(each.encode or 0) + statistics.mean(each.steps) * steps + each.decode for each in taken]
    return {
        "name": name,
        "encode": None if taken[0].encode is None else round(encode, 4),
        "step": round(step, 4),
        "decode": round(decode, 4),
        "picture": round(statistics.median(pictures), 3),
        "busy": round(statistics.median(each.busy for each in taken), 2),
        "steps": [[round(one, 4) for one in each.steps] for each in taken],
        "decodes": [round(each.decode, 4) for each in taken],
    }


def _compared(ours: dict[str, Any], theirs: dict[str, Any], turn: Turn, other: Turn) -> dict[str, Any]:
    """Return the ratios of sdcli's seconds to another's, and how far their latents are apart after as many steps."""
    ratios = {key: round(ours[key] / theirs[key], 3) for key in ("step", "decode", "picture")}
    if len(turn.steps) != len(other.steps):
        return {"ratios": ratios, "difference": None}
    apart = (turn.latents - other.latents).abs().max() / other.latents.std()
    return {"ratios": ratios, "difference": round(float(apart), 5)}


def _described(subject: Subject, recipe: Recipe, model: LatentDiffusionModel) -> dict[str, Any]:
    sampling, execution = recipe.sampling, recipe.execution
    return {
        "model": recipe.model,
        "weights": "random" if subject.is_random else "files",
        "width": recipe.width,
        "height": recipe.height,
        "steps": sampling.steps,
        "guided": model.facts.is_guided(sampling.guidance_scale),
        "scheduler": sampling.scheduler,
        "device": execution.device,
        "dtype": execution.dtype,
        "threads": execution.threads,
    }
