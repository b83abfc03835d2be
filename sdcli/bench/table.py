"""A measurement as lines for a person. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ROWS = {"encode": "encode the prompt", "step": "a step", "decode": "decode", "picture": "the picture"}

_LEAST_BUSY = 0.75


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a measurement: what was measured, where, and a table of seconds."""
    results = found["results"]
    guided = "with guidance" if found["guided"] else "without guidance"
    yield f"{found['model']}, {found['width']}×{found['height']}, {guided}, {found['dtype']}; {_where(found)}"
    yield f"weights: {'random numbers' if found['weights'] == 'random' else 'those of the model'}"
    if found["shortcuts"]:
        asked = (f"--{key.replace('_', '-')} {value}" for key, value in found["shortcuts"].items())
        yield f"sdcli with {' '.join(asked)}{', the others without' if len(results) > 1 else ''}"
    yield _runs(found)
    yield ""
    header = ["", results[0]["name"]]
    for each in results[1:]:
        header += [each["name"], "ratio"]
    rows = [header, ["import", _seconds(found["import"])], ["load", _seconds(found["load"])]]
    titles = _ROWS | ({"step": "a step, on average"} if found["shortcuts"] else {})
    rows += [[title, *_cells(key, results)] for key, title in titles.items()]
    rows.append(["peak memory", _gib(found["memory"]["peak"])])
    yield from _aligned(rows)
    yield ""
    yield from _notes(found)


def _where(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    if machine["gpu"]:
        return str(machine["gpu"])
    count = found["threads"]
    return f"{count} thread{'s' * (count > 1)} of {machine['processor']}"


def _runs(found: Mapping[str, Any]) -> str:
    steps, run = f"{found['steps']} steps of {found['scheduler']}", found["steps_run"]
    turns = "1 turn" if found["turns"] == 1 else f"each of {found['turns']} turns"
    others = len(found["results"][-1]["steps"][0])
    counted = f"{run}" if others == run else f"{run} by sdcli, and {others} by the others,"
    return f"{steps}, of which {counted} {'was' if run == others == 1 else 'were'} run in {turns}, after a warm-up"


def _cells(key: str, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in results:
        yield _seconds(each[key])
        if "ratios" in each:
            yield f"{each['ratios'][key]:.2f}" if key in each["ratios"] else ""


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if found["extrapolated"]:
        whose = "picture" if found["steps_run"] < found["steps"] else "others' picture"
        yield f"The {whose} is extrapolated: {found['steps']} times the step, the prompt and decoding."
    if len(found["results"]) > 1:
        yield "A ratio is sdcli's time divided by the other's: below 1, sdcli is faster."
        known = [each for each in found["results"][1:] if each["difference"] is not None]
        if known:
            apart = ", ".join(f"{each['difference']:g} from {each['name']}" for each in known)
            yield f"The greatest difference of sdcli's latents, in standard deviations: {apart}."
    busy = min(each["busy"] for each in found["results"])
    if found["device"] == "cpu" and busy < _LEAST_BUSY * found["threads"]:
        yield (
            f"Other programs used the processors: {busy:g} of {found['threads']} threads computed on average, so these "
            "times are longer than on an idle machine."
        )
    memory = found["memory"]
    of_weights = f"{memory['peak'] / memory['weights']:.2f} times the {_gib(memory['weights'])} of the weights"
    before = f"; {_gib(memory['before'])} of the process before loading are not included" if memory["before"] else ""
    yield f"The peak memory is {of_weights}{before}."


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    columns = max(map(len, rows))
    filled = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[place]) for row in filled) for place in range(columns)]
    for row in filled:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "   ".join(cells).rstrip()


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
