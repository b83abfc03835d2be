"""Code that `sdcli encode` and `sdcli decode` share: options, loading a model, and writing a file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from sdcli import config
from sdcli.commands import options
from sdcli.files import outputs
from sdcli.making import deliver
from sdcli.making.maker import load_vae
from sdcli.models import located
from sdcli.models.registry import ModelFacts
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe
from sdcli.recipe.warning import RecipeWarning
from sdcli.terminal import streams

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

Given = TypeVar("Given")


@dataclass(frozen=True)
class Made:
    """A file's bytes, the picture's width and height, the latents' shape, and warnings."""

    data: bytes
    size: tuple[int, int]
    shape: tuple[int, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work(Generic[Given]):
    """The work of a command.

    `read` reads the input for a model with these facts, before the model is loaded, and returns it with warnings.
    `make` returns the file to write, from the loaded VAE, the model's digest, the resolved options and the input.
    """

    read: Callable[[ModelFacts], tuple[Given, Sequence[RecipeWarning]]]
    make: Callable[[LatentDiffusionModel, str, Recipe, Given], Made]


@dataclass(frozen=True)
class Output:
    """Options of the file to write."""

    path: str | None = None
    force: options.Force = False
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=options.OUTPUT,
            help="Print one JSON object instead of the path.",
            show_default=False,
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", rich_help_panel=options.OUTPUT, help="Do not print the sizes.", show_default=False
        ),
    ] = False
    debug: options.Debug = False


def run(work: Work[Given], asked: Mapping[str, Any], output: Output) -> None:
    """Do `work` with the model of `asked` (flat keys), write the result to the output's path, and print that.

    The path `-` is stdout, and nothing else is printed there.

    Prints the sizes on stderr, unless quiet. Raises OutputError if the path cannot be written, and errors of the input,
    before the model is loaded.
    """
    path = str(output.path)
    name = config.model(asked.get("model"))
    found = located.find(name)
    known = resolve.settings(found.entry, {**asked, "model": name}, found.facts)
    recipe = Recipe.from_dict({"seed": 0, "prompt": "", **{key: each.value for key, each in known.items()}})
    to_stdout = path == "-"
    if to_stdout:
        outputs.check_stdout(json=bool(output.json), what="a file")
    else:
        outputs.check(path, force=output.force)
    given, warnings = work.read(found.facts)
    for warning in warnings:
        streams.warn(warning.message)
    deliver.prepare_libraries()
    with streams.results() as out:  # output of libraries goes to stderr
        from sdcli.diffusion.device import memory_of

        model, recipe = load_vae(Weights(found.source), recipe)
        started = time.perf_counter()
        with memory_of(recipe):
            made = work.make(model, found.source.sha256, recipe, given)
        seconds = time.perf_counter() - started
        if to_stdout:
            streams.write_bytes(out, made.data)
    for each in made.warnings:
        streams.warn(each)
    if not to_stdout:
        outputs.write(outputs.Destination(path, force=output.force), made.data)
    (width, height), shape = made.size, made.shape
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
        "sha256": hashlib.sha256(made.data).hexdigest(),
        "seconds": round(seconds, 3),
        "warnings": [*(each.message for each in warnings), *made.warnings],
        "error": None,
    }
    if to_stdout:
        return
    if output.json:
        streams.say(streams.to_json(line))
    else:
        streams.say_path(path)
