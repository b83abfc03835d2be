"""`sdcli info`: print the recipe in a picture's metadata."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli.errors import SdcliError
from sdcli.terminal import streams
from sdcli.terminal.printable import printable

if TYPE_CHECKING:
    from sdcli.files.metadata import PictureInfo


def info(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP files; - reads stdin.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.", show_default=False)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)
    ] = False,
) -> None:
    """Print the recipe in a picture's metadata.

    Reads the metadata of sdcli, AUTOMATIC1111's web UI, similar tools and InvokeAI in PNG, JPEG and WebP files. The
    last line is the command that makes the picture, if its model is on this machine. A picture without metadata is
    not an error.

        sdcli info arctic-fox-7.png
        sdcli info *.png --json | jq -r '[.path, .recipe.seed] | @tsv'
    """
    failed: list[SdcliError] = []
    for index, image in enumerate(images):
        if index and not json:
            typer.echo()
        try:
            _print(image, json=json)
        except SdcliError as error:  # the others are read all the same
            failed.append(error)
            if len(images) > 1:
                streams.complain(error.message, error.hint)
    if failed and len(images) == 1:
        raise failed[0]
    if failed:
        raise typer.Exit(failed[-1].exit_status)


def _print(image: str, *, json: bool) -> None:
    from sdcli.files import metadata, reading
    from sdcli.planning import replay

    data = reading.file_bytes(image)
    found = metadata.read(image, data)
    told = [*found.skipped, *(each.message for each in replay.unknown_keys(found))]
    for warning in told:
        streams.warn(warning)
    recorded = {**_as_dict(image, found), "command": replay.command_of_picture(image, data, found), "warnings": told}
    if json:
        print(streams.to_json(recorded))
    else:
        typer.echo("\n".join(_lines(image, found, recorded["command"])))


def _as_dict(path: str, found: PictureInfo) -> dict[str, Any]:
    return {
        "path": path,
        "format": found.format,
        "width": found.width,
        "height": found.height,
        "pixels_sha256": found.pixels_sha256,
        "intact": found.intact,
        "writer": found.writer,
        "recipe": found.recipe,
        "software": dict(found.software),
        "model_digest": found.chunk.get("model_digest"),
        "addons": found.chunk.get("addons", []),
        "upscaled": found.chunk.get("upscaled", []),
        "postprocessing": found.postprocessing,
        "parameters": found.parameters,
        "fields": dict(found.fields),
    }


def _lines(path: str, found: PictureInfo, command: str | None) -> Iterator[str]:
    """Aligned `key: value` lines; the recipe of sdcli's own chunk if there is one, else A1111's fields."""
    from sdcli.files import upscaled

    pairs: dict[str, Any] = {
        "file": path,
        "format": found.format,
        "size": f"{found.width}x{found.height}",
        "writer": found.writer,
    }
    content = found.fields if found.recipe is None else found.recipe
    # what a picture contains never replaces a line of this command
    pairs |= {f"metadata {key}" if key in _OWN else key: value for key, value in content.items() if value != ""}
    if found.recipe is not None:
        pairs |= _digests(found)
        pairs["software"] = ", ".join(f"{name} {number}" for name, number in found.software.items())
    for each in upscaled.described(found.chunk):
        pairs["enlarged"] = each if "enlarged" not in pairs else f"{pairs['enlarged']}, {each}"
    if found.postprocessing is not None:
        pairs["postprocessing"] = found.postprocessing
    if found.intact is False:
        pairs["pixels"] = "changed since they were written"
    if all(each is None for each in (found.recipe, found.parameters, found.invokeai, found.postprocessing)):
        of_another = found.writer != "other"
        pairs["metadata"] = f"{found.writer}'s, read in part" if of_another else "none about how it was made"
    if command is not None:
        pairs["command"] = command
    margin = max(len(printable(key)) for key in pairs) + 2
    for key, value in pairs.items():
        text = printable(
            (value if isinstance(value, str) else json_format.dumps(value)).replace("\r\n", "\n"), keep="\n"
        )
        yield f"{printable(key) + ':':<{margin}}{text.replace(chr(10), chr(10) + ' ' * margin)}"


_OWN = ("file", "format", "size", "writer", "software", "enlarged", "postprocessing", "pixels", "metadata", "command")


def _digests(found: PictureInfo) -> dict[str, Any]:
    """The digests of the model and of each add-on, where they are recorded."""
    addons = found.chunk.get("addons")
    named = [each for each in addons if isinstance(each, dict)] if isinstance(addons, list) else []
    digests = {f"{each.get('kind')} {each.get('name')}": f"sha256 {each.get('sha256')}" for each in named}
    model = found.chunk.get("model_digest")
    return {**({} if model is None else {"model_digest": model}), **digests}
