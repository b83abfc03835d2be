"""From recipes to pictures on disk and lines on stdout; what every command that makes pictures ends with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli import display, outputs, streams
from sdcli.errors import OutputError, SdcliError, UsageError
from sdcli.recipe import Recipe
from sdcli.registry import ModelEntry, locate

if TYPE_CHECKING:
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
        for index, (result, data) in enumerate(_pictures(order, out)):
            if order.to_stdout:
                _write_bytes(out, data)
                continue
            path = outputs.write(destinations[index], data)
            _report(out, order, result, path, data)
            if show_picture:
                display.preview(result.image)


def _pictures(order: Order, out: BinaryIO) -> Iterator[tuple[Result, bytes]]:
    """Each finished picture and its PNG bytes, in order."""
    first, count = order.recipes[0], len(order.recipes)
    with display.progress(first.sampling.steps, count, quiet=order.quiet) as progress:
        from sdcli import metadata, pipeline  # torch and all that follows, needed from here on

        resolved = pipeline.resolve_execution(first)
        model = pipeline.load(locate(order.entry), resolved, variant=order.entry.variant, family=order.entry.family)
        execution = {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}
        size = first.execution.batch_size
        for start in range(0, count, size):
            chunk = order.recipes[start : start + size]
            batch = [recipe.replace(**execution, batch_size=len(chunk)) for recipe in chunk]
            try:
                results = pipeline.run(model, batch, progress)
            except SdcliError as error:
                if order.json:
                    streams.write_line(out, json.dumps(_failure(batch[0], error), ensure_ascii=False))
                raise
            for result in results:
                yield result, metadata.png_bytes(result.image, result.recipe)


def _report(out: BinaryIO, order: Order, result: Result, path: os.PathLike[str], data: bytes) -> None:
    for warning in result.warnings:
        streams.warn(warning)
    if not order.json:
        streams.write_line(out, os.fspath(path))
        return
    from sdcli.images import pixels_sha256

    line = {
        "status": "done",
        "path": os.fspath(path),
        "seed": result.recipe.seed,
        "width": result.image.width,
        "height": result.image.height,
        "model": result.recipe.model,
        "sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": pixels_sha256(result.image),
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
        "error": None,
    }
    streams.write_line(out, json.dumps(line, ensure_ascii=False))


def _failure(recipe: Recipe, error: SdcliError) -> dict[str, Any]:
    return {
        "status": "failed",
        "path": None,
        "seed": recipe.seed,
        "width": recipe.width,
        "height": recipe.height,
        "model": recipe.model,
        "sha256": None,
        "pixels_sha256": None,
        "seconds": None,
        "warnings": [],
        "error": error.message,
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


def _write_bytes(out: BinaryIO, data: bytes) -> None:
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror}", "is there space where stdout goes?") from error


def _quieten_libraries() -> None:
    """Keep the hub libraries from the network and from talking, unless the user asks them to."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
