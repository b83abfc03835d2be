"""The options that commands share, under the names the field uses; None stands for "not given".

Related options are the fields of one frozen dataclass, a group. A command that is decorated with `expand` takes a
group as one parameter, and its command line has an option for each field:

    @options.expand
    def img2img(image: options.Image, prompt: options.Prompt = None, *, strength: options.Strength = None,
                picture: options.Edited, output: options.Output, execution: options.Execution) -> None:
        '''The help.'''
        asked = options.given(picture, execution, image=image, prompt=prompt, strength=strength)
        orders.carry_out(asked, output)

To add an option for a key of the recipe: a field of that name in `sdcli/recipe/recipe.py`, and a field of the same
name in the group of the commands that are to have it (`Picture`, `Execution`; `Output` for what is no part of a
recipe), or a parameter where one command alone has it. To add a command: a file like `commands/img2img.py`, and a line
in `cli.py`. An option's place in the help is its panel, and within the panel its place here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from sdcli.config import DEFAULT_MODEL
from sdcli.models import registry
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import DEVICES, DTYPES, MAX_SEED


def _completer(choices: Callable[[], tuple[str, ...]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices() if choice.startswith(incomplete)]

    return complete


controlnets = _completer(lambda: registry.names(registry.CONTROLNET))
"""Completes the names of ControlNets."""

PICTURE, SAMPLING, OUTPUT, EXECUTION = "The picture", "Sampling", "Output", "Execution"

Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.", show_default=False)
]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="The picture to start from: PNG, JPEG, WebP ….")]


def model_option(default: str) -> Any:
    """-m, whose help names the model that is taken where nobody says which."""
    return typer.Option(
        "--model", "-m", metavar="MODEL", rich_help_panel=PICTURE, show_default=default,
        autocompletion=_completer(registry.names),
        help="A name from `sdcli models list`, a diffusers folder, a .safetensors file, "
        "or OWNER/NAME in the hub cache.",
    )  # fmt: skip


Model = Annotated[str | None, model_option(DEFAULT_MODEL)]
Label = Annotated[
    str | None,
    typer.Option(
        "--label", metavar="CLASS", rich_help_panel=PICTURE,
        help="What to draw, by name or number, for a model of classes (see sdcli models labels).",
    ),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="0…1", rich_help_panel=PICTURE, show_default="img2img 0.6, else 1",
        help="The share of the steps to take; 1 starts from pure noise, less keeps more of the image.",
    ),
]  # fmt: skip
InitLatents = Annotated[
    str | None,
    typer.Option(
        "--init-latents", metavar="FILE", rich_help_panel=PICTURE, show_default=False,
        help="Start from the latents in FILE, of `sdcli encode` or --save-latents, noised up to --strength.",
    ),
]  # fmt: skip
MaskBlur = Annotated[
    float | None,
    typer.Option(
        "--mask-blur", metavar="PIXELS", rich_help_panel=PICTURE, show_default="4",
        help="How softly the mask's edge fades into the image; 0 is hard.",
    ),
]  # fmt: skip
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace a named file that exists.", show_default=False)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="No progress, no preview.", show_default=False)
]
Strict = Annotated[
    bool,
    typer.Option("--strict", rich_help_panel=OUTPUT, help="Make every warning an error.", show_default=False),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=OUTPUT, show_default=False,
        help="Say what would be made, of what files and where to, and make nothing.",
    ),
]  # fmt: skip
Debug = Annotated[
    bool, typer.Option("--debug", rich_help_panel=OUTPUT, help="Tracebacks with errors.", show_default=False)
]


@dataclass(frozen=True)
class Picture:
    """What is drawn and how it is sampled: keys of a recipe."""

    model: Model = None
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt", "-N", metavar="TEXT", rich_help_panel=PICTURE, help="What to steer away from."
        ),
    ] = None
    width: Annotated[
        int | None,
        typer.Option("--width", "-W", metavar="PIXELS", rich_help_panel=PICTURE, show_default="the model's"),
    ] = None
    height: Annotated[
        int | None,
        typer.Option("--height", "-H", metavar="PIXELS", rich_help_panel=PICTURE, show_default="the model's"),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME=IMAGE", rich_help_panel=PICTURE, show_default=False,
            autocompletion=controlnets,
            help="Follow IMAGE by the ControlNet NAME; IMAGE:0.8:0-0.5 with that scale, in that share of the steps. "
            "May be given again.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            metavar="INTEGER",
            rich_help_panel=PICTURE,
            help=f"0 … {MAX_SEED}.",
            show_default="drawn",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", rich_help_panel=SAMPLING, help="Denoising steps.", show_default="the model's"
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", "--cfg-scale", metavar="SCALE", rich_help_panel=SAMPLING,
            show_default="the model's",
            help="How strongly the prompt pulls; 1 or less switches guidance off.",
        ),
    ] = None  # fmt: skip
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            "--guidance-rescale",
            metavar="0…1",
            rich_help_panel=SAMPLING,
            help="Tame overexposure of high guidance scales.",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", metavar="NAME", rich_help_panel=SAMPLING,
            autocompletion=_completer(lambda: schedulers.NAMES),
            help=f"{', '.join(schedulers.NAMES)}.", show_default="the model's",
        ),
    ] = None  # fmt: skip
    sigmas: Annotated[
        str | None,
        typer.Option(
            "--sigmas", metavar="NAME", rich_help_panel=SAMPLING,
            autocompletion=_completer(lambda: schedulers.SIGMAS),
            help=f"Spacing of noise levels: {', '.join(schedulers.SIGMAS)}.",
        ),
    ] = None  # fmt: skip
    eta: Annotated[
        float | None,
        typer.Option(
            "--eta", metavar="0…1", rich_help_panel=SAMPLING, help="DDIM's share of fresh noise in each step."
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        typer.Option(
            "--clip-skip", metavar="N", rich_help_panel=SAMPLING, help="Text layer from the end; 1 skips none."
        ),
    ] = None
    prompt_weights: Annotated[
        bool | None,
        typer.Option(
            "--prompt-weights/--no-prompt-weights", rich_help_panel=SAMPLING, show_default="read",
            help="Read (word:1.3), (word), \\[word] and BREAK in prompts, or take them as letters.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Edited(Picture):
    """A picture that is made of another, which comes back at its own size."""

    width: Annotated[
        int | None,
        typer.Option(
            "--width", "-W", metavar="PIXELS", rich_help_panel=PICTURE, show_default="a good one near the image's",
            help="The size to work at; the picture comes back at the image's own.",
        ),
    ] = None  # fmt: skip
    height: Annotated[
        int | None,
        typer.Option(
            "--height", "-H", metavar="PIXELS", rich_help_panel=PICTURE, show_default="a good one near the image's"
        ),
    ] = None


@dataclass(frozen=True)
class Machine:
    """What makes a picture: keys of a recipe."""

    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="NAME", rich_help_panel=EXECUTION, help=f"{', '.join(DEVICES)}.", show_default="auto"
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="NAME", rich_help_panel=EXECUTION, help=f"{', '.join(DTYPES)}.", show_default="auto"
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", rich_help_panel=EXECUTION, help="CPU threads.", show_default="torch's choice"
        ),
    ] = None


@dataclass(frozen=True)
class Execution(Machine):
    """What makes pictures, and how many at once."""

    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", rich_help_panel=EXECUTION,
            help="Pictures in one U-Net call; faster on GPUs, but pixels then depend on it.", show_default="1",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Handover:
    """Where pictures go, and what is said of them."""

    path: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel=OUTPUT,
            help="A file.png, a directory, a template with {seed} {index} {prompt} {model}, or - for PNG on stdout.",
            show_default="PROMPT-SEED.png here",
        ),
    ] = None  # fmt: skip
    force: Force = False
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT,
            help="One JSON object a picture on stdout, not its path.",
            show_default=False,
        ),
    ] = False
    quiet: Quiet = False
    strict: Strict = False


@dataclass(frozen=True)
class Output(Handover):
    """Pictures to hand over, or to say beforehand what they would be."""

    save_latents: Annotated[
        str | None,
        typer.Option(
            "--save-latents", metavar="PATH", rich_help_panel=OUTPUT, show_default=False,
            help="Write z too, before it is decoded: to a file.safetensors, a directory or a template as for -o.",
        ),
    ] = None  # fmt: skip
    dry_run: DryRun = False
    debug: Debug = False
    num_images: Annotated[
        int,
        typer.Option(
            "--num-images", "-n", metavar="N", min=1, rich_help_panel=PICTURE, help="Picture i has seed SEED+i."
        ),
    ] = 1


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each parameter that is annotated with a group replaced by the group's options.

    Typer reads the signature that comes of it, and the command is called with the groups made of what was said.
    """
    groups: dict[str, tuple[type, tuple[str, ...]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            options = list(_options(group))
            groups[parameter.name] = group, tuple(option.name for option in options)
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**said: Any) -> None:
        made = {name: group(**{key: said.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        command(**said, **made)

    signature = inspect.Signature(parameters)
    annotations = {each.name: each.annotation for each in parameters}
    expanded.__dict__.update(__signature__=signature)
    expanded.__annotations__ = annotations
    return expanded


def _options(group: type) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters, in order."""
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(each.name, kind, default=default, annotation=hints[each.name])


def given(*groups: Any, **others: Any) -> dict[str, Any]:
    """The options in `groups` and `others` that were given, flat."""
    said = {each.name: getattr(group, each.name) for group in groups for each in fields(group)} | others
    return {key: value for key, value in said.items() if value not in (None, [])}
