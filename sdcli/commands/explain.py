"""`sdcli explain`: make a page about how a picture came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sdcli import config
from sdcli.commands import groups, options, picture_options, pictures
from sdcli.errors import UsageError
from sdcli.files import outputs
from sdcli.making import deliver
from sdcli.making.maker import Task
from sdcli.models import located, registry
from sdcli.planning import command_line, resolve, warnings
from sdcli.planning.resolve import Resolved
from sdcli.recipe import other_tools
from sdcli.recipe.recipe import draw_seed
from sdcli.terminal import display, streams

OTHER = "a red house"
_WATCHED = {"engine": "torch", "compile": False}
"""The layers of the network are looked into, whatever the user's settings are."""


@dataclass(frozen=True)
class Explained(picture_options.Picture):
    """Options of the picture, and of the images that it is made from."""

    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="IMAGE", rich_help_panel=options.PICTURE, show_default=False,
            help="Start from this image, as `sdcli img2img` does.",
        ),
    ] = None  # fmt: skip
    mask_image: Annotated[
        str | None,
        typer.Option(
            "--mask", metavar="MASK", rich_help_panel=options.PICTURE, show_default=False,
            help="Repaint the white part of MASK in IMAGE, as `sdcli inpaint` does.",
        ),
    ] = None  # fmt: skip
    segmentation_map: Annotated[
        str | None,
        typer.Option(
            "--map", metavar="MAP", rich_help_panel=options.PICTURE, show_default=False,
            help="Follow a segmentation map, as `sdcli synthesize` does.",
        ),
    ] = None  # fmt: skip
    strength: options.Strength = None


@groups.expand
def explain(
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    another: Annotated[
        str | None,
        typer.Option(
            "--another", metavar="TEXT", rich_help_panel=options.PICTURE, show_default=OTHER,
            help="The text of a second picture, or its label, that starts from the same noise.",
        ),
    ] = None,
    picture: Explained,
    path: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE.html", rich_help_panel=options.OUTPUT,
            help="The page to write, or - for stdout.",
        ),
    ] = "explain.html",
    force: options.Force = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
    debug: options.Debug = False,
    execution: options.Decoding,
) -> None:  # fmt: skip
    """Explain how a picture is made, as a page to look at.

    Makes the picture that `sdcli generate` makes, and writes an HTML page about it: each step, the latents, where the
    network looked for each word, the prediction with and without the text, and the schedule. The page needs no other
    file and no connection. Prints its path.

        sdcli explain "an arctic fox" -o fox.html
        sdcli explain "a red door" --image photo.png --mask door.png -m kit-inpaint
        sdcli explain "a fox in the snow" --map map.png
    """
    asked = groups.given(picture, execution, prompt=prompt, label=label)
    if not {"prompt", "label"} & asked.keys():
        raise UsageError("PROMPT or --label is missing", "give a PROMPT, or --label for a class-conditional model")
    if picture.mask_image is not None and picture.image is None:
        raise UsageError("--mask is given without --image", "give the image too: --image IMAGE")
    if asked.get("tile") is not None:
        raise UsageError("sdcli explain shows what the network sees at once", "omit --tile")
    pictures.check_stdin(asked)
    to_stdout = path == "-"
    if not to_stdout:
        outputs.check(path, force=force)
    resolved = _resolved(asked)
    found = warnings.find(resolved.model, resolved.recipe, resolved.inputs)
    if strict:
        warnings.raise_first(found)
    for each in found:
        streams.warn(each.message)
    html = _page(resolved, another, quiet=quiet).encode()
    with streams.results() as out:
        if to_stdout:
            streams.write_bytes(out, html)
            return
        streams.write_line(out, outputs.write(outputs.Destination(path, force=force), html))


def _resolved(asked: dict[str, Any]) -> Resolved:
    usual = registry.for_maps() if "segmentation_map" in asked else config.DEFAULT_MODEL
    model = str(config.general("model", asked.get("model"), usual).value)
    known = {**asked, "model": model, **pictures.prompt_of(asked.get("prompt")), **_WATCHED}
    if known.get("seed") == other_tools.RANDOM_SEED:
        known["seed"] = draw_seed()
    return resolve.resolve(located.find(model, known), known)


def _page(resolved: Resolved, another: str | None, *, quiet: bool) -> str:
    from sdcli.making.explaining import page
    from sdcli.making.explaining.record import explain as record

    recipe = resolved.recipe
    deliver.prepare_libraries()
    with streams.results():  # output of libraries goes to stderr
        if recipe.condition.label is None:
            other = recipe.replace(prompt=OTHER if another is None else another)
        else:
            labels = resolved.model.facts.labels
            assert labels is not None
            other = recipe.replace(label=labels.name(0) if another is None else another)
        tasks = [Task(resolved.weights, [each], resolved.inputs) for each in (recipe, other)]
        with display.progress(recipe.sampling.steps, quiet=quiet) as on_step:
            explained = record(tasks[0], tasks[1], on_step)
    for each in explained.picture.warnings:
        streams.warn(each)
    return page.page(explained, command_line.command_of(resolved.model, [recipe]))
