"""From requests to pictures on disk and lines on stdout, for every command that makes pictures."""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO

from sdcli.diffusion import converted
from sdcli.errors import InvalidPicture, NotDecoded, SdcliError, UsageError
from sdcli.files import outputs
from sdcli.making import warm
from sdcli.making.maker import LocalMaker, Maker, Task
from sdcli.making.picture import Picture
from sdcli.making.request import FULL, Request
from sdcli.making.warm import WarmMaker
from sdcli.planning import dry_run, warnings
from sdcli.planning.warnings import RecipeWarning
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import display, streams


def deliver(request: Request) -> None:
    """Make the pictures of `request`, and print a line when each is safely on disk (or write the PNG, for `-o -`).

    Everything that can be checked is checked before torch is imported. Raises the error of a picture that cannot be
    made or written; pictures finished before it are kept.
    """
    check_stdout(request)
    announce(request)
    destinations = () if request.to_stdout else outputs.plan(request.output, request.recipes, force=request.force)
    beside = plan_latents(request)
    _check_apart(destinations, beside)
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    show_picture = on_terminal and not (request.quiet or request.json or request.to_stdout)
    prepare_libraries()
    with streams.results() as out:
        kept = 0
        try:
            for index, picture in enumerate(pictures(request, out, maker())):
                place = None if request.to_stdout else destinations[index]
                save(request, out, picture, place, beside[index] if beside else None)
                kept += 1
                if show_picture:
                    display.preview(picture.image)
        except KeyboardInterrupt:
            if kept:
                streams.note(f"{kept} of {len(request.recipes)} pictures were made")
            raise


def plan_latents(request: Request) -> tuple[outputs.Destination, ...]:
    """Return the destinations of the latents, empty unless requested. Raises what `outputs.plan` raises."""
    if request.save_latents is None:
        return ()
    return outputs.plan(request.save_latents, request.recipes, force=request.force, kind=outputs.LATENTS)


def _check_apart(pictures: Sequence[outputs.Destination], latents: Sequence[outputs.Destination]) -> None:
    taken = {each.final.absolute() for each in pictures}
    for each in latents:
        if each.final.absolute() in taken:
            raise UsageError(f"-o and --save-latents have the same name {each.path}", "give them different names")


CONVERTING = "the first picture of this model converts it for OpenVINO, which can take minutes; later ones do not"
COMPILING = "the first step compiles the network, which can take minutes; later runs use the compiled code"


def announce(request: Request) -> None:
    """Print the warnings of `request` on stderr, or raise the first one if it is strict."""
    if request.strict:
        warnings.raise_first(request.warnings)
    for each in request.warnings:
        streams.warn(each.message)
    execution = request.recipes[0].execution
    if execution.compile:
        streams.note(COMPILING)
    if execution.engine == "openvino" and not converted.is_kept(request.weights.identity, execution.dtype):
        streams.note(CONVERTING)


def forecast(request: Request, *, any_seed: bool = False) -> None:
    """Print what `deliver` would do, or raise its error, without torch and without writing anything.

    With `any_seed` the run draws a seed, so that names have the field instead.
    """
    check_stdout(request)
    announce(request)
    plan = dry_run.plan(
        request.model.entry.name,
        request.weights,
        request.recipes,
        request.output,
        force=request.force,
        save_latents=request.save_latents,
    )
    if any_seed:
        plan = dry_run.with_any_seed(plan)
    if request.json:
        warnings = [each.message for each in request.warnings]
        streams.say(streams.to_json({**plan, "warnings": warnings, "error": None}))
    else:
        for line in dry_run.lines(plan):
            streams.say(line)


def save(
    request: Request,
    out: BinaryIO,
    picture: Picture,
    destination: outputs.Destination | None,
    latents: outputs.Destination | None = None,
) -> None:
    """Write one picture and print its line, or write the PNG to `out` if there is no destination. Writes latents first.

    Raises InvalidPicture, and writes nothing, for a flat picture if the request is strict.
    """
    if request.strict and picture.flat:
        error = InvalidPicture(picture.flat, "try another --seed, prompt or scheduler, or omit --strict")
        if request.json:
            line = with_recipe(failed_line(picture.recipe, error.message), picture.recipe, request.json)
            streams.write_line(out, streams.to_json(line))
            error.reported = True
        raise error
    kept = None if latents is None else outputs.write(latents, picture.latents)
    path = None if destination is None else outputs.write(destination, picture.png)
    for warning in picture.warnings:
        streams.warn(warning)
    if path is None:
        streams.write_bytes(out, picture.png)
    elif request.json:
        line = with_recipe(done_line(picture, path, request.warnings), picture.recipe, request.json)
        streams.write_line(out, streams.to_json(line if kept is None else {**line, "latents": kept}))
    else:
        streams.write_line(out, path)


def pictures(request: Request, out: BinaryIO, maker: Maker) -> Iterator[Picture]:
    """Yield each finished picture in order. A failure is printed as a line with --json, and raised."""
    tasks, total = list(request.tasks()), len(request.recipes)
    done = 0
    for start in range(0, len(tasks), maker.capacity):
        at_once = tasks[start : start + maker.capacity]
        count, steps = sum(len(task.recipes) for task in at_once), at_once[0].recipes[0].sampling.steps
        with display.progress(steps, total, picture=done + 1, batch_size=count, quiet=request.quiet) as on_step:
            futures = [maker.submit(task, on_step) for task in at_once]
            made = [_result(request, out, task, future) for task, future in zip(at_once, futures, strict=True)]
        for each in made:
            yield from each
        done += count


def _result(request: Request, out: BinaryIO, task: Task, future: Future[list[Picture]]) -> list[Picture]:
    try:
        return future.result()
    except SdcliError as error:
        if isinstance(error, NotDecoded):
            place = request.save_latents or (None if request.to_stdout else request.output)
            keep_latents(error, task.recipes, outputs.directory_of(place))
        if request.json:
            first = task.recipes[0]
            line = with_recipe(failed_line(first, error.message), first, request.json)
            streams.write_line(out, streams.to_json(line))
            error.reported = True
        raise


def keep_latents(error: NotDecoded, recipes: Sequence[Recipe], directory: str) -> None:
    """Write the latents of pictures that could not be decoded to `directory`, and add their paths to the message."""
    places = outputs.plan(directory, recipes[: len(error.latents)], kind=outputs.LATENTS) if error.latents else ()
    paths = [outputs.write(*each) for each in zip(places, error.latents, strict=True)]
    if paths:
        error.message += f"; the latents are in {', '.join(paths)}"
        error.args = (error.message,)
        name = shlex.quote(recipes[0].model)
        error.hint = f"free some memory, or use --device cpu, and run: sdcli decode {shlex.quote(paths[0])} -m {name}"


def maker() -> Maker:
    """Return the maker for a command: the warm process of the environment, or this process."""
    socket_path = warm.socket_path()
    return WarmMaker(socket_path) if socket_path else LocalMaker()


def done_line(picture: Picture, path: str, found: Sequence[RecipeWarning] = ()) -> dict[str, Any]:
    """Return the JSON line of a picture that is safely on disk at `path`.

    `found` are the warnings from before it was made; they come first.
    """
    width, height = struct.unpack(">II", picture.png[16:24])  # from the header; the recipe has the working size
    return {
        "status": "done",
        "path": path,
        "seed": picture.recipe.seed,
        "width": width,
        "height": height,
        "model": picture.recipe.model,
        "sha256": hashlib.sha256(picture.png).hexdigest(),
        "pixels_sha256": picture.pixels_sha256,
        "seconds": round(picture.seconds, 3),
        "memory": picture.memory,
        "warnings": [*(each.message for each in found), *picture.warnings],
        "error": None,
    }


def failed_line(recipe: Recipe | None, message: str) -> dict[str, Any]:
    """Return the JSON line of a picture that could not be made: the same keys, with null if unknown."""
    return {
        "status": "failed",
        "path": None,
        "seed": recipe and recipe.seed,
        "width": recipe and recipe.size[0],
        "height": recipe and recipe.size[1],
        "model": recipe and recipe.model,
        "sha256": None,
        "pixels_sha256": None,
        "seconds": None,
        "memory": None,
        "warnings": [],
        "error": message,
    }


def with_recipe(line: Mapping[str, Any], recipe: Recipe | None, json: int) -> dict[str, Any]:
    """Return a JSON line, with the whole recipe if `json` asks for it."""
    return {**line, **({"recipe": recipe and recipe.to_dict()} if json >= FULL else {})}


def check_stdout(request: Request) -> None:
    """Raise UsageError if the PNG cannot be written to stdout."""
    if not request.to_stdout:
        return
    if len(request.recipes) > 1:
        raise UsageError("-o - writes one picture, and -n asks for more", "give -o a directory, or omit -n")
    outputs.check_stdout(json=bool(request.json))


def prepare_libraries() -> None:
    """Set environment variables that libraries read when they are imported; existing values are kept.

    The hub's library does not use the network and prints nothing. OpenMP's threads sleep while they wait: spinning
    threads are very slow on a shared machine, where a picture of 2 seconds has taken 30.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
