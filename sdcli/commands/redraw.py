"""`sdcli upscale --redraw`: enlarge pictures and redraw them, each by the recipe in its metadata or a given prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sdcli.commands import completion, options, pictures
from sdcli.errors import InputError, UsageError
from sdcli.files import names, outputs
from sdcli.files.reading import file_bytes, is_stream_name

SHARED = (
    *("prompt", "prompt_2", "negative_prompt", "label", "clip_skip", "prompt_weights", "lora", "strict_lora"),
    *("embedding", "steps", "guidance_scale", "guidance_rescale", "scheduler", "sigmas", "shift", "true_cfg_scale"),
)
"""The keys of a picture's recipe that redraw it."""
_FROM_OTHERS = ("prompt", "negative_prompt")
"""The keys from the metadata of other tools, whose other settings belong to their model."""


@dataclass(frozen=True)
class Redraw:
    """Options of redrawing."""

    redraw: Annotated[
        float | None,
        typer.Option(
            "--redraw", metavar="0…1", rich_help_panel=options.PICTURE, show_default="off",
            help="Redraw the enlarged picture in tiles, with this strength, such as 0.3.",
        ),
    ] = None  # fmt: skip
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", rich_help_panel=options.PICTURE, show_default="that of the picture",
            help="What to draw in each tile, with --redraw.",
        ),
    ] = None  # fmt: skip
    redraw_model: Annotated[
        str | None,
        typer.Option(
            "--redraw-model", metavar="MODEL", rich_help_panel=options.PICTURE, show_default="that of the picture",
            autocompletion=completion.model, help="The model that draws, with --redraw.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", "-s", metavar="INTEGER", rich_help_panel=options.PICTURE, show_default="random",
            help="Seed of the noise, with --redraw.",
        ),
    ] = None  # fmt: skip
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", rich_help_panel=options.SAMPLING, show_default="those of the picture",
            help="Number of denoising steps, of which --redraw runs a share.",
        ),
    ] = None  # fmt: skip
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", "--cfg-scale", metavar="SCALE", rich_help_panel=options.SAMPLING,
            show_default="that of the picture",
            help="How closely to follow the prompt in each tile; 1 or less disables guidance.",
        ),
    ] = None  # fmt: skip

    def check(self) -> None:
        """Raise UsageError for options that only redrawing has."""
        idle = [key for key, value in vars(self).items() if value is not None]
        if self.redraw is None and idle:
            option = idle[0].replace("_", "-")
            raise UsageError(f"--{option} has no effect without --redraw", "give --redraw 0.3, or omit it")


def one(
    image: str, place: outputs.Destination | None, asked: Mapping[str, Any], redraw: Redraw, output: options.Handover
) -> None:
    """Enlarge and redraw a picture, write it to its place, or to stdout, and print the path."""
    given = {key: value for key, value in vars(redraw).items() if value is not None}
    strength, model = given.pop("redraw"), given.pop("redraw_model", None)
    found = {} if {"prompt"} & given.keys() and model else _recorded(image, needed="prompt" not in given)
    if model is not None:
        found["model"] = model
    if "prompt" in given:
        found.pop("label", None)
    path = "-" if place is None else _free(place)
    handover = {key: getattr(output, key) for key in ("force", "json", "quiet", "strict")}
    pictures.make(
        {**found, **given, **asked, "image": image, "strength": strength}, options.Output(path=path, **handover)
    )


def _free(place: outputs.Destination) -> str:
    """Return the path of a picture, without fields."""
    path = place.path
    if place.unique:
        path = next(each for each in names.numbered(path, place.kind.suffix) if not os.path.lexists(each))
    return path.replace("{", "{{").replace("}", "}}")


def _recorded(image: str, *, needed: bool) -> dict[str, Any]:
    """Return what redraws a picture from its metadata. Raises InputError if it has no prompt and one is `needed`."""
    if is_stream_name(image):
        if needed:
            raise InputError("a picture from stdin is redrawn by a given prompt", "give one with --prompt")
        return {}
    from sdcli.files import foreign, metadata

    info = metadata.read(image, file_bytes(image))
    if info.recipe is not None:
        found = {key: info.recipe[key] for key in (*SHARED, "model") if key in info.recipe}
    else:
        translated = foreign.translate(info)
        recipe = {} if translated is None else translated.recipe
        found = {key: recipe[key] for key in _FROM_OTHERS if key in recipe}
    if needed and not {"prompt", "label"} & found.keys():
        raise InputError(f"{image} has no prompt in its metadata", 'give one with --prompt, such as --prompt ""')
    return found
