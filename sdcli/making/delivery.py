"""From recipes to pictures on disk and lines on stdout; what every command that makes pictures ends with."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli.errors import InvalidPicture, SdcliError, UsageError
from sdcli.files import outputs
from sdcli.making import remote
from sdcli.models.digest import model_digest
from sdcli.models.registry import ModelEntry, locate
from sdcli.models.source import Source
from sdcli.planning import dry_run, remarks, timings
from sdcli.planning.remarks import Remark
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import display, streams

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.diffusion.pipeline import Result


@dataclass(frozen=True)
class Order:
    """Pictures to make with one model, and where and how to hand them over."""

    entry: ModelEntry
    recipes: Sequence[Recipe]
    output: str | None
    force: bool
    json: bool
    quiet: bool
    strict: bool = False
    remarks: tuple[Remark, ...] = ()
    """What is known to deserve a word before a picture is made; an error at once where `strict`."""
    save_latents: str | None = None
    """Where the pictures' latents go, a file, directory or template; None keeps none."""

    @property
    def to_stdout(self) -> bool:
        """Whether the PNG itself is the result."""
        return self.output == "-"


def deliver(order: Order) -> None:
    """Make the pictures of `order`, one line (or, for `-o -`, one PNG) on stdout as each is safely on disk.

    What can be refused is refused before torch is imported. Raises whatever kept a picture from being made or
    written; those finished before it stay.
    """
    check_stdout(order)
    announce(order)
    destinations = () if order.to_stdout else outputs.plan(order.output, order.recipes, force=order.force)
    beside = plan_latents(order)
    _check_apart(destinations, beside)
    show_picture = not (order.quiet or order.json or order.to_stdout) and sys.stdout.isatty() and sys.stderr.isatty()
    prepare_libraries()
    with streams.results() as out:
        for index, result in enumerate(pictures(order, out, maker(order))):
            place = None if order.to_stdout else destinations[index]
            hand_over(order, out, result, place, beside[index] if beside else None)
            if show_picture:
                display.preview(result.image)


def plan_latents(order: Order) -> tuple[outputs.Destination, ...]:
    """Where the latents of each picture go; nowhere, unless that was asked. Raises what `outputs.plan` raises."""
    if order.save_latents is None:
        return ()
    return outputs.plan(order.save_latents, order.recipes, force=order.force, kind=outputs.LATENTS)


def _check_apart(pictures: Sequence[outputs.Destination], latents: Sequence[outputs.Destination]) -> None:
    taken = {each.final.absolute() for each in pictures}
    for each in latents:
        if each.final.absolute() in taken:
            raise UsageError(f"-o and --save-latents both name {each.path}", "give each a name of its own")


def announce(order: Order) -> None:
    """Say what is known to deserve a word, one line of warning each; raise it instead where the order is strict."""
    if order.strict:
        remarks.insist(order.remarks)
    for each in order.remarks:
        streams.warn(each.message)


def forecast(order: Order) -> None:
    """Say what `deliver` would do, or raise what it would, without torch and without writing anything."""
    check_stdout(order)
    announce(order)
    plan = dry_run.plan(order.entry, order.recipes, order.output, force=order.force, save_latents=order.save_latents)
    if order.json:
        warnings = [remark.message for remark in order.remarks]
        print(streams.to_json({**plan, "warnings": warnings, "error": None}))
    else:
        print("\n".join(dry_run.lines(plan)))


def hand_over(
    order: Order,
    out: BinaryIO,
    result: Result | remote.Picture,
    destination: outputs.Destination | None,
    latents: outputs.Destination | None = None,
) -> None:
    """Write one picture and its line, or its bytes alone to `out` where it has no destination; first its latents.

    Raises InvalidPicture, with nothing written, for a flat picture where the order is strict.
    """
    if order.strict and result.flat:
        error = InvalidPicture(result.flat, "try another --seed, prompt or scheduler; or leave --strict away")
        if order.json:
            streams.write_line(out, streams.to_json(failed_line(result.recipe, error.message)))
        raise error
    digest = digest_of(locate(order.entry))
    timings.record(result.recipe, digest, result.seconds)
    data = png_bytes(result, digest)
    kept = None if latents is None else outputs.write(latents, latents_bytes(result, digest))
    if destination is None:
        for warning in result.warnings:
            streams.warn(warning)
        streams.write_bytes(out, data)
        return
    _report(out, order, result, outputs.write(destination, data), data, kept)


def pictures(order: Order, out: BinaryIO, make: remote.Make) -> Iterator[Any]:
    """Each finished picture, in order, as `make` gives them. A failure is one more line of JSON, and is raised."""
    count, size = len(order.recipes), order.recipes[0].execution.batch_size
    for start in range(0, count, size):
        chunk = order.recipes[start : start + size]
        steps = chunk[0].sampling.steps
        with display.progress(steps, count, picture=start + 1, batch_size=size, quiet=order.quiet) as on_step:
            try:
                results = make([recipe.replace(batch_size=len(chunk)) for recipe in chunk], on_step)
            except SdcliError as error:
                if order.json:
                    streams.write_line(out, streams.to_json(failed_line(chunk[0], error.message)))
                raise
        yield from results


Loaded = tuple["LatentDiffusionModel", dict[str, Any]]
"""A model, and how it is executed: the resolved device, dtype and number of threads."""


def maker(order: Order, load: Callable[[Order], Loaded] | None = None, *, under_way: bool = False) -> remote.Make:
    """What makes the pictures of `order`: the warm process that the environment names, else this one.

    `load` takes the place of `load_model`, for who keeps models from one order to the next; `under_way` says that the
    warm process has made pictures of this command before.
    """
    socket_path = remote.socket_path()
    if socket_path:
        return remote.maker(socket_path, order.entry, under_way=under_way)
    return _maker_here(order, load or load_model)


def _maker_here(order: Order, load: Callable[[Order], Loaded]) -> remote.Make:
    """What makes pictures in this process, and loads the model for the first."""
    loaded: Loaded | None = None

    def make(recipes: Sequence[Recipe], on_step: Callable[[Any], None]) -> Sequence[Result]:
        nonlocal loaded
        from sdcli.diffusion import pipeline  # torch and all that follows: seconds, under the bar

        if loaded is None:
            loaded = load(order)
        model, execution = loaded
        return pipeline.run(model, [recipe.replace(**execution) for recipe in recipes], on_step)

    return make


def load_model(order: Order) -> Loaded:
    """The model of an order, for the execution that its first recipe asks for."""
    from sdcli.diffusion import device
    from sdcli.models import assemble

    resolved = device.resolve_execution(order.recipes[0])
    model = assemble.load(locate(order.entry), resolved)
    return model, {key: getattr(resolved.execution, key) for key in ("device", "dtype", "threads")}


def png_bytes(result: Result | remote.Picture, digest: str) -> bytes:
    """The PNG of a finished picture, with all in it that makes it again and proves it; `digest` is its model's."""
    if isinstance(result, remote.Picture):
        return result.png
    from sdcli.files import metadata

    control_digests = [digest_of(each) for each in result.controls]
    extra = {"model_digest": digest, "control_digests": control_digests, "batch": result.batch}
    return metadata.png_bytes(result.image, result.recipe, extra={key: value for key, value in extra.items() if value})


def latents_bytes(result: Result | remote.Picture, digest: str) -> bytes:
    """The file of a finished picture's latents, with its recipe; `digest` is its model's."""
    if isinstance(result, remote.Picture):
        return result.latents
    from sdcli.files import latent_files

    recipe, scaling = result.recipe, result.scaling_factor
    return latent_files.file_of(result.latents, digest, model=recipe.model, scaling_factor=scaling, recipe=recipe)


@cache
def digest_of(source: Source) -> str:
    """The digest of a model, as it is when first asked for by this process."""
    return model_digest(source)


def _pixels_sha256(result: Result | remote.Picture) -> str:
    if isinstance(result, remote.Picture):
        return result.pixels_sha256
    from sdcli.files.images import pixels_sha256

    return pixels_sha256(result.image)


def _report(
    out: BinaryIO, order: Order, result: Result | remote.Picture, path: str, data: bytes, latents: str | None
) -> None:
    for warning in result.warnings:
        streams.warn(warning)
    if order.json:
        said = done_line(result, path, data, order.remarks)
        path = streams.to_json(said if latents is None else {**said, "latents": latents})
    streams.write_line(out, path)


def done_line(result: Result | remote.Picture, path: str, data: bytes, found: Sequence[Remark] = ()) -> dict[str, Any]:
    """What a line of JSON says of a picture that is safely on disk at `path`, as the bytes `data`.

    `found` are the remarks made before it was begun; they stand among its warnings.
    """
    width, height = struct.unpack(">II", data[16:24])  # as the PNG's header says; the recipe's are those worked at
    return {
        "status": "done",
        "path": path,
        "seed": result.recipe.seed,
        "width": width,
        "height": height,
        "model": result.recipe.model,
        "sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": _pixels_sha256(result),
        "seconds": round(result.seconds, 3),
        "warnings": [*(remark.message for remark in found), *result.warnings],
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


def check_stdout(order: Order) -> None:
    """Raise UsageError where the PNG itself is to go to stdout and cannot."""
    if not order.to_stdout:
        return
    if len(order.recipes) > 1:
        raise UsageError("-o - takes one picture, and -n asks for more", "give -o a directory, or leave -n away")
    if order.json:
        raise UsageError("-o - and --json both want stdout", "give -o a file, or leave --json away")
    if sys.stdout.isatty():
        raise UsageError("-o - would write a PNG to the terminal", "redirect or pipe stdout, or give -o a file")


def prepare_libraries() -> None:
    """Say to the libraries what they read when they are imported; what the user says already stays.

    The hub's keep from the network and from talking. OpenMP's threads sleep while they wait for each other: where
    other programs want the cores too, threads that spin instead keep them from the one they wait for, and a picture
    of 2 seconds has taken 30.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
