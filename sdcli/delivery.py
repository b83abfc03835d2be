"""From recipes to pictures on disk and lines on stdout; what every command that makes pictures ends with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli import display, outputs, remote, streams
from sdcli.errors import SdcliError, UsageError
from sdcli.recipe import Recipe
from sdcli.registry import ModelEntry, locate

if TYPE_CHECKING:
    from sdcli.model import LatentDiffusionModel
    from sdcli.pipeline import Result


@dataclass(frozen=True)
class Order:
    """Pictures to make with one model, and where and how to hand them over."""

    entry: ModelEntry
    recipes: Sequence[Recipe]
    output: str | None
    force: bool
    json: bool
    quiet: bool

    @property
    def to_stdout(self) -> bool:
        """Whether the PNG itself is the result."""
        return self.output == "-"


def deliver(order: Order) -> None:
    """Make the pictures of `order`, one line (or, for `-o -`, one PNG) on stdout as each is safely on disk.

    What can be refused is refused before torch is imported. Raises whatever kept a picture from being made or
    written; those finished before it stay.
    """
    _check_stdout(order)
    destinations = () if order.to_stdout else outputs.plan(order.output, order.recipes, force=order.force)
    show_picture = not (order.quiet or order.json or order.to_stdout) and sys.stdout.isatty() and sys.stderr.isatty()
    _quieten_libraries()
    with streams.results() as out:
        for index, result in enumerate(_results(order, out)):
            data = png_bytes(result)
            if order.to_stdout:
                streams.write_bytes(out, data)
                continue
            path = outputs.write(destinations[index], data)
            _report(out, order, result, path, data)
            if show_picture:
                display.preview(result.image)


def _results(order: Order, out: BinaryIO) -> Iterator[Result | remote.Picture]:
    """Each finished picture, in order. A failure is one more line where lines are JSON, and is raised."""
    socket_path = remote.socket_path()
    make = remote.maker(socket_path, order.entry) if socket_path else _maker(order)
    count, size = len(order.recipes), order.recipes[0].execution.batch_size
    for start in range(0, count, size):
        chunk = order.recipes[start : start + size]
        steps = chunk[0].sampling.steps
        with display.progress(steps, count, picture=start + 1, batch_size=size, quiet=order.quiet) as on_step:
            try:
                results = make([recipe.replace(batch_size=len(chunk)) for recipe in chunk], on_step)
            except SdcliError as error:
                if order.json:
                    streams.write_line(out, json.dumps(failed_line(chunk[0], error.message), ensure_ascii=False))
                raise
        yield from results


def _maker(order: Order) -> remote.Make:
    """What makes pictures in this process, and loads the model for the first."""
    model: LatentDiffusionModel | None = None
    execution: dict[str, Any] = {}

    def make(recipes: Sequence[Recipe], on_step: Callable[[Any], None]) -> Sequence[Result]:
        nonlocal model, execution
        from sdcli import pipeline  # torch and all that follows: seconds, under the bar

        if model is None:
            model, execution = _load(order)
        return pipeline.run(model, [recipe.replace(**execution) for recipe in recipes], on_step)

    return make


def _load(order: Order) -> tuple[LatentDiffusionModel, dict[str, Any]]:
    """The model, and how it is executed: the resolved device, dtype and number of threads."""
    from sdcli import pipeline

    entry = order.entry
    resolved = pipeline.resolve_execution(order.recipes[0])
    model = pipeline.load(locate(entry), resolved, variant=entry.variant, family=entry.family)
    return model, {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}


def png_bytes(result: Result | remote.Picture) -> bytes:
    """The PNG of a finished picture, with its recipe in it."""
    if isinstance(result, remote.Picture):
        return result.png
    from sdcli.metadata import png_bytes

    return png_bytes(result.image, result.recipe)


def _pixels_sha256(result: Result | remote.Picture) -> str:
    if isinstance(result, remote.Picture):
        return result.pixels_sha256
    from sdcli.images import pixels_sha256

    return pixels_sha256(result.image)


def _report(out: BinaryIO, order: Order, result: Result | remote.Picture, path: str, data: bytes) -> None:
    for warning in result.warnings:
        streams.warn(warning)
    line = json.dumps(done_line(result, path, data), ensure_ascii=False) if order.json else path
    streams.write_line(out, line)


def done_line(result: Result | remote.Picture, path: str, data: bytes) -> dict[str, Any]:
    """What a line of JSON says of a picture that is safely on disk at `path`, as the bytes `data`."""
    return {
        "status": "done",
        "path": path,
        "seed": result.recipe.seed,
        "width": result.recipe.width,
        "height": result.recipe.height,
        "model": result.recipe.model,
        "sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": _pixels_sha256(result),
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
        "error": None,
    }


def failed_line(recipe: Recipe | None, message: str) -> dict[str, Any]:
    """What a line of JSON says of a picture that could not be made: the same keys, null where nothing is known."""
    return {
        "status": "failed",
        "path": None,
        "seed": recipe and recipe.seed,
        "width": recipe and recipe.width,
        "height": recipe and recipe.height,
        "model": recipe and recipe.model,
        "sha256": None,
        "pixels_sha256": None,
        "seconds": None,
        "warnings": [],
        "error": message,
    }


def _check_stdout(order: Order) -> None:
    if not order.to_stdout:
        return
    if len(order.recipes) > 1:
        raise UsageError("-o - takes one picture, and -n asks for more", "give -o a directory, or leave -n away")
    if order.json:
        raise UsageError("-o - and --json both want stdout", "give -o a file, or leave --json away")
    if sys.stdout.isatty():
        raise UsageError("-o - would write a PNG to the terminal", "redirect or pipe stdout, or give -o a file")


def _quieten_libraries() -> None:
    """Keep the hub libraries from the network and from talking, unless the user asks them to."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
