"""What `sdcli encode` and `sdcli decode` share: options, a model for its autoencoder alone, and one file to write."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli import config, delivery, options, outputs, registry, streams
from sdcli.recipe import Recipe

if TYPE_CHECKING:
    from sdcli.model import LatentDiffusionModel

Work = Callable[["LatentDiffusionModel", str], tuple[bytes, tuple[int, int], tuple[int, ...]]]
"""From a model and its digest to a file's bytes, the picture's width and height, and the latents' shape."""


@dataclass(frozen=True)
class Output:
    """One file to hand over, and what is said of it."""

    path: str | None = None
    force: options.Force = False
    json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=options.OUTPUT, help="One JSON object, not the path.", show_default=False
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", rich_help_panel=options.OUTPUT, help="No word on sizes.", show_default=False),
    ] = False
    debug: options.Debug = False


def carry_out(work: Work, asked: Mapping[str, Any], output: Output) -> None:
    """Do `work` with the model of `asked` (flat keys), write what comes of it to the output's path, and print that.

    Says on stderr, unless quiet, what became how much smaller or larger. Raises OutputError before the model is loaded
    where nothing can be written there.
    """
    path = str(output.path)
    name = config.model(asked.get("model"))
    entry = registry.find(name)
    known = registry.settings(entry, {**asked, "model": name}, registry.facts_of(entry))
    recipe = Recipe.from_dict({"seed": 0, "prompt": "", **{key: each.value for key, each in known.items()}})
    outputs.check(path, force=output.force)
    delivery.prepare_libraries()
    from sdcli import pipeline

    source = registry.locate(entry)
    with streams.results():  # whatever libraries print goes to stderr
        model = pipeline.load(source, pipeline.resolve_execution(recipe))
        started = time.perf_counter()
        data, (width, height), shape = work(model, delivery.digest_of(source))
        seconds = time.perf_counter() - started
    outputs.write(outputs.Destination(path, force=output.force), data)
    ratio = 3 * width * height / (shape[1] * shape[2] * shape[3])
    if not output.quiet:
        z = f"{shape[3]}×{shape[2]}×{shape[1]}"
        streams.note(f"{width}×{height}×3 numbers of the picture, {z} of the latents: {ratio:g} times fewer")
    line = {
        "status": "done",
        "path": path,
        "width": width,
        "height": height,
        "shape": list(shape),
        "ratio": round(ratio, 3),
        "model": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "seconds": round(seconds, 3),
        "warnings": [],
        "error": None,
    }
    print(streams.to_json(line) if output.json else path)
