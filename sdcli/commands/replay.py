"""`sdcli replay`: make pictures again from their metadata, and compare them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from sdcli import config
from sdcli.commands import options
from sdcli.errors import PictureDiffers, UsageError
from sdcli.files import outputs
from sdcli.making import delivery, remote
from sdcli.models import registry
from sdcli.planning.remarks import Remark
from sdcli.terminal import streams

if TYPE_CHECKING:
    from sdcli.diffusion.pipeline import Result
    from sdcli.planning.proof import Source

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Use this model instead of the recorded one.",
        show_default="the picture's",
    ),
]


@options.expand
def replay(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Pictures with a recipe in their metadata.")],
    *,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the pixels. Writes no picture unless -o is given.", show_default=False),
    ] = False,
    model: Model = None,
    handover: options.Handover,
    machine: options.Machine,
    debug: options.Debug = False,
) -> None:
    """Make pictures again from their metadata.

    Reads the recipes that sdcli writes, and the metadata of AUTOMATIC1111's web UI, stable-diffusion.cpp and InvokeAI
    as far as it can be reproduced; settings that cannot be reproduced are warnings.

    With --verify, prints the path of each picture whose pixels are identical. If a picture differs, the exit status is
    9, and the error says how it differs and what the possible causes are.

        sdcli generate "arctic fox" | xargs sdcli replay --verify
    """
    from sdcli.planning import proof

    execution = options.given(machine)
    output = handover.path if verify else config.output(handover.path)
    shared = {key: getattr(handover, key) for key in ("force", "json", "quiet", "strict")}
    jobs = []
    for path in images:
        source = proof.source(path, model, **execution)
        remarks = (*source.remarks, *proof.other_weights(source))
        order = delivery.Order(entry=source.entry, recipes=source.recipes, output=output, remarks=remarks, **shared)
        jobs.append((source, order))
    destinations = _plan(jobs, output, verify)
    for _, order in jobs:
        delivery.announce(order)
    delivery.prepare_libraries()
    differing: list[PictureDiffers] = []
    with streams.results() as out:
        load = _keeping_the_last()
        for number, ((source, order), destination) in enumerate(zip(jobs, destinations, strict=True)):
            order = _fit_to_machine(order)
            make = delivery.maker(order, load, under_way=number > 0)
            result = list(delivery.pictures(order, out, make))[source.index]
            if verify:
                differing += _verify(source, order, out, result, destination)
            else:
                delivery.hand_over(order, out, result, destination)
    for error in differing[:-1]:
        streams.complain(error.message, error.hint)
    if differing:
        raise differing[-1]


def _plan(
    jobs: Sequence[tuple[Source, delivery.Order]], output: str | None, verify: bool
) -> Sequence[outputs.Destination | None]:
    """Where each picture goes; nowhere with --verify alone, and to stdout itself with `-o -`."""
    recipes = [source.recipe for source, _ in jobs]
    if output == "-":
        if verify:
            raise UsageError("-o - and --verify both write to stdout", "give -o a file, or omit it")
        delivery.check_stdout(replace(jobs[0][1], recipes=recipes))
    if output == "-" or (verify and output is None):
        return [None] * len(jobs)
    return outputs.plan(output, recipes, force=jobs[0][1].force)


def _keeping_the_last() -> Callable[[delivery.Order], delivery.Loaded]:
    """A `load` for `delivery.maker` that loads anew only where the model, its ControlNets or its execution change."""
    kept: dict[Any, delivery.Loaded] = {}

    def load(order: delivery.Order) -> delivery.Loaded:
        execution = replace(order.recipes[0].execution, batch_size=1)
        key = (registry.locate(order.entry), order.recipes[0].layout.nets, execution)
        if key not in kept:
            kept.clear()  # before the next is loaded: there may be no room for two
            kept[key] = delivery.load_model(order)
        return kept[key]

    return load


def _fit_to_machine(order: delivery.Order) -> delivery.Order:
    """The order, but on the device that is here where the recorded one is not; that is said, or refused if strict."""
    recorded = order.recipes[0].execution
    remark = None
    if remote.socket_path() and recorded.device in ("auto", "cpu"):
        return order  # which needs no torch to be told, and the warm process takes as many threads as it is told
    from sdcli.diffusion import device

    if recorded.device not in ("auto", *device.devices()):
        remark = Remark(
            f"there is no {recorded.device} device here; the picture is made on {device.devices()[0]}",
            "choose another with --device",
            "device",
        )
        order = replace(order, recipes=[recipe.replace(device="auto") for recipe in order.recipes])
    else:
        threads = device.resolve_execution(order.recipes[0]).execution.threads
        if recorded.threads not in (0, threads):
            hint = "choose another number with --threads"
            remark = Remark(f"{recorded.threads} threads cannot be had here; {threads} are used", hint, "threads")
    if remark is None:
        return order
    delivery.announce(replace(order, remarks=(remark,)))
    return replace(order, remarks=(*order.remarks, remark))


def _verify(
    source: Source, order: delivery.Order, out: BinaryIO, result: Result, destination: outputs.Destination | None
) -> list[PictureDiffers]:
    """Compare a picture with its replay, and say so on stdout; the error, if they differ."""
    from PIL import Image

    from sdcli.files.images import pixels_sha256
    from sdcli.planning import proof

    if destination is not None:
        outputs.write(destination, delivery.png_bytes(result, delivery.digest_of(registry.locate(order.entry))))
    with Image.open(source.path) as image:
        difference = proof.difference(image, result.image)
    replayed = pixels_sha256(result.image)
    error, why = None, []
    if difference is not None:
        why = proof.reasons(source, result.recipe, delivery.digest_of(registry.locate(order.entry)), replayed)
        error = PictureDiffers(f"{source.path} differs from its replay in {difference}", "; ".join(why))
    if order.json:
        line = {
            "status": "differs" if error else "identical",
            "path": source.path,
            "seed": result.recipe.seed,
            "width": result.image.width,
            "height": result.image.height,
            "model": result.recipe.model,
            "sha256": hashlib.sha256(Path(source.path).read_bytes()).hexdigest(),
            "pixels_sha256": replayed,
            "seconds": round(result.seconds, 3),
            "warnings": [*(remark.message for remark in order.remarks), *result.warnings],
            "error": error.message if error else None,
            "difference": asdict(difference) if difference else None,
            "reasons": why,
        }
        streams.write_line(out, streams.to_json(line))
    elif error is None:
        streams.write_line(out, source.path)
    return [error] if error else []
