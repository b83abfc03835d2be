"""`sdcli bench`: measure how fast this machine makes pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli import config
from sdcli.commands import completion, groups, options, picture_options
from sdcli.errors import UsageError
from sdcli.recipe import other_tools
from sdcli.recipe.parts import ENGINES
from sdcli.terminal import display, streams

RIVALS = ("diffusers", "diffusers-channels-last", "diffusers-float32")


@groups.expand
def bench(
    *,
    model: options.Model = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family", metavar="NAME", rich_help_panel=options.PICTURE, show_default=False,
            help="Measure the shape of a family, such as sd15 or sdxl, with random weights instead of a model.",
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", metavar="N", min=1, max=1024, rich_help_panel=options.PICTURE, show_default="all",
                     help="With --family: cut a transformer to N layers of each kind, if the whole is too large."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH", rich_help_panel=options.PICTURE, show_default="the model's",
                     help="Size of the picture, such as 512x768."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", rich_help_panel=options.PICTURE, show_default="the model's",
                     help="Steps of the picture; if there is no time for all, the others are extrapolated."),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", metavar="SCALE", rich_help_panel=options.PICTURE, show_default="the model's",
                     help="Guidance scale; with 1 or less there is no unconditional half."),
    ] = None,
    vae: picture_options.Vae = None,
    guidance_interval: picture_options.GuidanceInterval = None,
    cache: picture_options.Cache = None,
    token_merging: picture_options.TokenMerging = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", rich_help_panel=options.EXECUTION, show_default="torch",
                                 autocompletion=completion.of(*ENGINES),
                                 help="What runs the network of sdcli: torch, or openvino, converted in the warm-up."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", rich_help_panel=options.EXECUTION, show_default=False,
                           help="Compile the network of sdcli, during the warm-up."),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="NAME", rich_help_panel=options.PICTURE, show_default=False,
                     autocompletion=completion.of(*RIVALS),
                     help=f"Take turns with {', '.join(RIVALS[:-1])} or {RIVALS[-1]}. Can be repeated."),
    ] = None,
    turns: Annotated[
        int, typer.Option("--turns", metavar="N", min=1, max=100, rich_help_panel=options.OUTPUT,
                          help="Turns of each, after a warm-up; the medians are printed."),
    ] = 3,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", min=1, rich_help_panel=options.OUTPUT,
                            help="Take about this long; one turn is always run."),
    ] = 200,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=options.OUTPUT, show_default=False,
                           help="Print one JSON object instead of a table.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=options.OUTPUT, show_default=False,
                           help="Show no progress.")
    ] = False,
    machine: options.Machine,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Measure how fast this machine makes pictures.

    Measures a model, or the shape of a family with random weights, which needs no download. Prints the seconds of
    loading, encoding the prompt, a step, decoding and the whole picture, and the peak memory. No picture is written.

        sdcli bench -m sdxl --size 768x768
        sdcli bench --family sd15 --against diffusers
        sdcli bench --family sd15 --cache deepcache:3 --vae taesd --against diffusers-float32
        sdcli bench --family z-image --layers 2 --size 512x512 --against diffusers
    """
    from sdcli.bench import measure, subject, table
    from sdcli.making import deliver

    _check(model, family, against or [])
    if layers is not None and family is None:
        raise UsageError("--layers has no effect without --family", "give --family too, or omit it")
    sides = {} if size is None else other_tools.size_of(size)
    shortcuts = {"guidance_interval": guidance_interval, "cache": cache, "token_merging": token_merging}
    asked = {
        **groups.given(machine, steps=steps, guidance_scale=guidance_scale, engine=engine, **shortcuts),
        **sides,
        "compile": compile,
        **({} if vae is None else {"part": [f"vae={vae}"]}),
    }
    measured = subject.of_family(family, asked, layers) if family else subject.of_model(config.model(model), asked)
    deliver.prepare_libraries()
    with streams.results() as out, display.training(quiet=quiet) as show:

        def on_activity(activity: str, done: int, total: int) -> None:
            show(activity, done, total, None)

        found = measure.measure(measured, against or [], turns=turns, seconds=seconds, on_activity=on_activity)
        for line in [streams.to_json(found)] if json else table.lines(found):
            streams.write_line(out, line)


def _check(model: str | None, family: str | None, against: list[str]) -> None:
    if model is not None and family is not None:
        raise UsageError("--model and --family cannot be combined", "give one of them")
    for each in against:
        if each not in RIVALS:
            raise UsageError(f"--against {each} is unknown", f"choose {', '.join(RIVALS)}")
    if len(set(against)) < len(against):
        raise UsageError("--against has the same name twice", "give each once")
