"""`sdcli replay`: make pictures again from their metadata, and compare them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from sdcli import config
from sdcli.commands import completion, groups, options
from sdcli.errors import PictureDiffers, UsageError
from sdcli.files import outputs
from sdcli.files.inputs import NO_INPUTS
from sdcli.making import deliver, warm
from sdcli.making.picture import Picture
from sdcli.making.request import Request
from sdcli.planning.warnings import RecipeWarning
from sdcli.terminal import streams

if TYPE_CHECKING:
    from sdcli.planning.replay import Recorded

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=completion.model,
        help="Use this model instead of the recorded one.",
        show_default="the picture's",
    ),
]


@groups.expand
def replay(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Pictures with a recipe in their metadata; - reads stdin.")
    ],
    *,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the pixels. Writes no picture unless -o is given.", show_default=False),
    ] = False,
    model: Model = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Where an input of the pictures is now: an image, mask, map, control image or latents, which is "
            "recognised by its sha256. Can be repeated.",
        ),
    ] = None,
    handover: options.Handover,
    machine: options.Decoding,
    dry_run: options.DryRun = False,
    debug: options.Debug = False,
) -> None:
    """Make pictures again from their metadata.

    Reads the recipes that sdcli writes, and the metadata of AUTOMATIC1111's web UI, stable-diffusion.cpp and InvokeAI
    as far as it can be reproduced; settings that cannot be reproduced are warnings.

    With --verify, prints the path of each picture whose pixels are identical. If a picture differs, the exit status is
    9, and the error says how it differs and what the possible causes are.

        sdcli generate "arctic fox" | xargs sdcli replay --verify
    """
    from sdcli.planning import replay
    from sdcli.planning.resolve import inputs_of

    execution = groups.given(machine)
    output = handover.path if verify else config.output(handover.path)
    shared = {key: getattr(handover, key) for key in ("force", "json", "quiet", "strict")}
    jobs = []
    for path in images:
        source = replay.read_recorded(path, model, images=given or (), **execution)
        request = Request(
            model=source.model,
            weights=source.weights,
            inputs=NO_INPUTS,  # read when each is made: those of many pictures may not fit into memory
            recipes=source.recipes,
            output=output,
            warnings=(*source.warnings, *replay.other_weights(source)),
            **shared,
        )
        jobs.append((source, request))
    if dry_run:
        _forecast(jobs, output, verify)
        return
    destinations = _plan(jobs, output, verify)
    for _, request in jobs:
        deliver.announce(request)
    deliver.prepare_libraries()
    differing: list[PictureDiffers] = []
    with streams.results() as out:
        maker = deliver.maker()
        for (source, asked), destination in zip(jobs, destinations, strict=True):
            recipe, facts = source.recipe, source.model.facts
            inputs = inputs_of(recipe, facts, source.weights, files=source.files)
            request = _fit_to_machine(replace(asked, inputs=inputs))
            picture = list(deliver.pictures(request, out, maker))[source.index]
            if verify:
                differing += _verify(source, request, out, picture, destination)
            else:
                deliver.save(request, out, picture, destination)
    for error in differing[:-1]:
        streams.complain(error.message, error.hint)
    if differing:
        raise differing[-1]


def _forecast(jobs: Sequence[tuple[Recorded, Request]], output: str | None, verify: bool) -> None:
    """Print what would be made, for each picture."""
    if verify:
        raise UsageError("--verify compares pixels, and --dry-run makes none", "omit one of them")
    if output != "-":
        outputs.foresee(output, [source.recipe for source, _ in jobs], force=jobs[0][1].force)
    for index, (source, request) in enumerate(jobs):
        if index and not request.json:
            streams.say()
        deliver.forecast(replace(request, recipes=(source.recipe,)))


def _plan(
    jobs: Sequence[tuple[Recorded, Request]], output: str | None, verify: bool
) -> Sequence[outputs.Destination | None]:
    """Return the destination of each picture: None for --verify alone, and for `-o -`."""
    recipes = [source.recipe for source, _ in jobs]
    if output == "-":
        if verify:
            raise UsageError("-o - and --verify both write to stdout", "give -o a file, or omit it")
        deliver.check_stdout(replace(jobs[0][1], recipes=recipes))
    if output == "-" or (verify and output is None):
        return [None] * len(jobs)
    return outputs.plan(output, recipes, force=jobs[0][1].force)


def _fit_to_machine(request: Request) -> Request:
    """Replace a recorded device that this machine does not have, with a warning, or an error if strict."""
    recorded = request.recipes[0].execution
    warning = None
    if warm.socket_path() and recorded.device in ("auto", "cpu"):
        return request  # this needs no torch, and the warm process sets the number of threads
    from sdcli.diffusion import device

    if recorded.device not in ("auto", *device.devices()):
        warning = RecipeWarning(
            f"there is no {recorded.device} device on this machine; the picture is made on {device.devices()[0]}",
            "choose another with --device",
            "device",
        )
        request = replace(request, recipes=[recipe.replace(device="auto") for recipe in request.recipes])
    else:
        threads = device.resolve_execution(request.recipes[0]).execution.threads
        if recorded.threads not in (0, threads):
            hint = "choose another number with --threads"
            warning = RecipeWarning(
                f"{recorded.threads} threads are not available; {threads} are used", hint, "threads"
            )
    if warning is None:
        return request
    deliver.announce(replace(request, warnings=(warning,)))
    return replace(request, warnings=(*request.warnings, warning))


def _verify(
    source: Recorded, request: Request, out: BinaryIO, picture: Picture, destination: outputs.Destination | None
) -> list[PictureDiffers]:
    """Compare a picture with its replay, print the result, and return the error if they differ."""
    from PIL import Image

    from sdcli.files import upscaled
    from sdcli.files.reading import decoding
    from sdcli.planning import difference, replay

    if destination is not None:
        outputs.write(destination, picture.png)
    made = picture.image
    replayed, before = picture.pixels_sha256, upscaled.pixels_before(source.found.chunk)
    if before is None:
        with decoding(source.path), Image.open(BytesIO(source.data)) as image:
            found = difference.between(image, made)
        differs = found is not None
    else:
        found, differs = None, before != replayed
    error, why = None, []
    if differs:
        why = replay.reasons(source, picture.recipe, replayed)
        what = f"in {found}" if before is None else "of the picture before it was enlarged"
        error = PictureDiffers(f"{source.path} differs from its replay {what}", "; ".join(why))
    if request.json:
        line = {
            "status": "differs" if error else "identical",
            "path": source.path,
            "seed": picture.recipe.seed,
            "width": made.width,
            "height": made.height,
            "model": picture.recipe.model,
            "sha256": hashlib.sha256(source.data).hexdigest(),
            "pixels_sha256": replayed,
            "seconds": round(picture.seconds, 3),
            "warnings": [*(each.message for each in request.warnings), *picture.warnings],
            "error": error.message if error else None,
            "difference": asdict(found) if found else None,
            "reasons": why,
        }
        streams.write_line(out, streams.to_json(deliver.with_recipe(line, picture.recipe, request.json)))
    elif error is None:
        streams.write_line(out, f"{source.path}: identical" if out.isatty() else source.path)
    return [error] if error else []
