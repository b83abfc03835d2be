"""`sdcli upscale`: enlarge pictures by a network or by a filter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, BinaryIO

import typer

from sdcli import config
from sdcli.commands import completion, groups, options, redraw
from sdcli.errors import InputError, JobsFailed, SdcliError, UsageError
from sdcli.files import outputs
from sdcli.files.reading import file_bytes, is_stream_name
from sdcli.making import deliver, upscaling
from sdcli.making.upscaling import Enlarger, Target
from sdcli.recipe import other_tools
from sdcli.recipe.recipe import check_value
from sdcli.terminal import display, streams

DEFAULT_TILE = 256
MIN_TILE, MAX_TILE = 64, 16384


@dataclass(frozen=True)
class Enlarging:
    """Options of enlarging."""

    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", metavar="FACTOR", rich_help_panel=options.PICTURE,
            show_default="that of MODEL; 2 for lanczos, and with --redraw",
            help="How many times as wide and high the result is.",
        ),
    ] = None  # fmt: skip
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH", rich_help_panel=options.PICTURE, show_default=False,
            help="The size of the result, such as 2048x1536, in place of --scale; the picture is cropped to its aspect "
            "ratio.",
        ),
    ] = None  # fmt: skip
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", rich_help_panel=options.PICTURE, show_default="lanczos",
            autocompletion=completion.upscaler_name,
            help="The upscaler: a name, a .safetensors file, a file in upscaler_dir, or lanczos, a filter that adds no "
            "detail.",
        ),
    ] = None  # fmt: skip
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile", metavar="PIXELS", rich_help_panel=options.EXECUTION, show_default=str(DEFAULT_TILE),
            help="Side of the tiles that MODEL enlarges one by one; smaller ones take less memory. 0 is the whole "
            "picture at once. With --redraw, the side of the tiles that are redrawn.",
        ),
    ] = None  # fmt: skip

    def target(self) -> Target:
        """Return the factor or size. Raises UsageError."""
        sides = None if self.size is None else other_tools.size_of(self.size)
        target = Target(self.scale, None if sides is None else (sides["width"], sides["height"]))
        target.check()
        return target

    def checked_tile(self) -> int:
        """Return the side of a tile. Raises UsageError."""
        tile = DEFAULT_TILE if self.tile is None else self.tile
        if tile != 0 and not MIN_TILE <= tile <= MAX_TILE:
            raise UsageError(f"--tile is {tile}", f"it must be 0 or between {MIN_TILE} and {MAX_TILE}")
        return tile


@dataclass(frozen=True)
class Written(options.Handover):
    """Options of the files to write."""

    path: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel=options.OUTPUT,
            help="A file.png, a directory, a template with {name} and {index}, or - for stdout.",
            show_default="NAME-upscaled.png in this directory",
        ),
    ] = None  # fmt: skip


@groups.expand
def upscale(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP and other files; - reads stdin.", show_default=False),
    ],
    *,
    enlarging: Enlarging,
    redrawing: redraw.Redraw,
    output: Written,
    machine: options.Machine,
    debug: options.Debug = False,
) -> None:
    """Enlarge pictures.

    An upscaler is a network such as Real-ESRGAN, which makes a picture 2 or 4 times as large; it is used as often as
    needed, and the result is reduced to what was asked. Without MODEL, pictures are enlarged by Lanczos's filter.
    Transparency and 16 bits per channel are kept, and so is the recipe in the picture's metadata.

    With --redraw the enlarged picture is redrawn by a model that makes pictures, in tiles that overlap, as `sdcli
    img2img --enlarge` does. It gets a recipe of its own.

        sdcli upscale photo.jpg --scale 2
        sdcli upscale *.png -m 4x-UltraSharp.safetensors --size 2048x2048 -o large/
        sdcli upscale castle.png --scale 3 --redraw 0.3
    """
    tile, target = enlarging.checked_tile(), enlarging.target()
    redrawing.check()
    settings = {key: check_value(key, value) for key, value in groups.given(machine).items()}
    path = config.output(output.path)
    _check(images, output, to_stdout=path == "-")
    stems = ["stdin" if is_stream_name(each) else PurePath(each).stem for each in images]
    places: Sequence[outputs.Destination | None] = [None]
    if path != "-":
        places = outputs.plan_enlarged(path, stems, "-upscaled", force=output.force)
    if redrawing.redraw is not None:
        asked = {**_recipe_keys(enlarging), **settings}
        failed = _each(images, lambda image, place: redraw.one(image, place, asked, redrawing, output), places)
    else:
        failed = _enlarge_all(images, places, enlarging, target, tile, settings, output)
    if failed and len(images) == 1:
        raise failed[0]
    if failed:
        raise JobsFailed(f"{len(failed)} of {len(images)} pictures were not enlarged", "see the errors above")


def _recipe_keys(enlarging: Enlarging) -> dict[str, Any]:
    """Return the keys of a recipe that enlarge an image and redraw it."""
    factor = upscaling.DEFAULT_FACTOR if enlarging.scale is None else enlarging.scale
    found: dict[str, Any] = {"enlarge": f"{factor:g}" if enlarging.size is None else enlarging.size}
    if enlarging.model is not None:
        found["upscaler"] = enlarging.model
    return found if enlarging.tile is None else {**found, "tile": enlarging.tile}


def _enlarge_all(
    images: Sequence[str],
    places: Sequence[outputs.Destination | None],
    enlarging: Enlarging,
    target: Target,
    tile: int,
    settings: dict[str, Any],
    output: Written,
) -> list[SdcliError]:
    """Enlarge each picture and write it, and return the errors."""
    deliver.prepare_libraries()
    with streams.results() as out:
        execution = {"device": "auto", "dtype": "auto", "threads": 0, **settings}
        enlarger = upscaling.load(enlarging.model, tile=tile, **execution)
        if enlarger.network is None:
            _check_idle(enlarging, settings)
            if enlarging.model is None and not output.quiet:
                streams.note("enlarged by Lanczos's filter, which adds no detail; -m MODEL is for a network")
        which = {image: (index, len(images)) for index, image in enumerate(images, start=1)}

        def enlarge(image: str, place: outputs.Destination | None) -> None:
            try:
                _one(image, place, enlarger, target, output, out, which[image])
            except SdcliError as error:
                if output.json:
                    streams.write_line(out, streams.to_json(_line(image, enlarger, error=error.message)))
                    error.reported = True
                raise

        return _each(images, enlarge, places)


def _check(images: Sequence[str], output: Written, *, to_stdout: bool) -> None:
    """Raise UsageError if the results cannot be written to stdout, or stdin is read twice."""
    if sum(is_stream_name(each) for each in images) > 1:
        raise UsageError("stdin is given more than once", "give - once")
    if to_stdout and len(images) > 1:
        raise UsageError("-o - writes one picture, and there are more", "give -o a directory")
    if to_stdout:
        outputs.check_stdout(json=bool(output.json))


def _check_idle(enlarging: Enlarging, settings: dict[str, Any]) -> None:
    """Warn about options that only a network has."""
    given = [*(["tile"] if enlarging.tile is not None else []), *settings]
    for key in given:
        streams.warn(f"{key} has no effect without a network: give one with -m")


def _each(
    images: Sequence[str],
    work: Callable[[str, outputs.Destination | None], None],
    places: Sequence[outputs.Destination | None],
) -> list[SdcliError]:
    """Do `work` with each picture, and return the errors; with several pictures they are printed."""
    failed: list[SdcliError] = []
    for image, place in zip(images, places, strict=True):
        try:
            work(image, place)
        except SdcliError as error:
            failed.append(error)
            if len(images) > 1:
                streams.complain(error.message, error.hint)
    return failed


def _one(
    image: str,
    place: outputs.Destination | None,
    enlarger: Enlarger,
    target: Target,
    output: Written,
    out: BinaryIO,
    which: tuple[int, int],
) -> None:
    data = file_bytes(image)
    quiet = output.quiet or enlarger.network is None
    with display.tiles(*which, quiet=quiet) as on_tile:
        made = upscaling.enlarge(data, image, enlarger, target, on_tile)
    for warning in made.warnings:
        if output.strict:
            raise InputError(warning, "save the picture again with another tool; or omit --strict")
        streams.warn(warning)
    for note in () if output.quiet else made.notes:
        streams.note(note)
    if place is None:
        streams.write_bytes(out, made.png)
        return
    path = outputs.write(place, made.png)
    line = _line(image, enlarger, path=path, made=made)
    streams.write_line(out, streams.to_json(line) if output.json else path)


def _line(
    image: str,
    enlarger: Enlarger,
    *,
    path: str | None = None,
    made: upscaling.Enlarged | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """Return the JSON line of a picture."""
    return {
        "status": "failed" if made is None else "done",
        "image": image,
        "path": path,
        "width": made and made.size[0],
        "height": made and made.size[1],
        "upscaler": enlarger.name,
        "sha256": made and hashlib.sha256(made.png).hexdigest(),
        "pixels_sha256": made and made.pixels_sha256,
        "seconds": made and round(made.seconds, 3),
        "warnings": list(made.warnings) if made else [],
        "error": error,
    }
