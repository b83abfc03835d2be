"""The options that commands share, under the names that diffusers uses; None means "not given".

Related options are the fields of one frozen dataclass, a group. A command that is decorated with `expand` takes a
group as one parameter, and its command line has an option for each field:

    @options.expand
    def img2img(image: options.Image, prompt: options.Prompt = None, *, strength: options.Strength = None,
                picture: options.Edited, output: options.Output, execution: options.Execution) -> None:
        '''The help.'''
        given = options.given(picture, execution, image=image, prompt=prompt, strength=strength)
        pictures.make(given, output)

To add an option for a key of the recipe: add a field of that name to `sdcli/recipe/recipe.py`, and a field of the same
name to the group of the commands that need it (`Picture`, `Execution`, or `Output` if it is not part of a recipe), or a
parameter if only one command has it. To add a command: add a file like `commands/img2img.py`, and a line to `cli.py`.
The help lists options by `rich_help_panel`, in the order of this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from sdcli.commands import completion
from sdcli.config import DEFAULT_MODEL
from sdcli.recipe import other_tools, schedulers
from sdcli.recipe.recipe import DEVICES, DTYPES, MAX_SEED, UPSCALERS

PICTURE, SAMPLING, OUTPUT, EXECUTION = "Picture options", "Sampling options", "Output options", "Execution options"

Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads stdin.", show_default=False)
]
Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="The image to start from: PNG, JPEG, WebP and others; - reads stdin.")
]


def model_option(default: str) -> Any:
    """The option -m, whose help shows the default model."""
    return typer.Option(
        "--model", "-m", metavar="MODEL", rich_help_panel=PICTURE, show_default=default,
        autocompletion=completion.model,
        help="A name from `sdcli models list`, a diffusers folder, a .safetensors file, "
        "or OWNER/NAME in the hub cache.",
    )  # fmt: skip


Model = Annotated[str | None, model_option(DEFAULT_MODEL)]
Label = Annotated[
    str | None,
    typer.Option(
        "--label", metavar="CLASS", rich_help_panel=PICTURE,
        help="The class to draw, by name or number, with a class-conditional model; see `sdcli models labels`.",
    ),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="0…1", rich_help_panel=PICTURE, show_default="0.6 for img2img, 1 otherwise",
        help="The share of the steps to run. 1 starts from pure noise; a lower value keeps more of the image.",
    ),
]  # fmt: skip
InitLatents = Annotated[
    str | None,
    typer.Option(
        "--init-latents", metavar="FILE", rich_help_panel=PICTURE, show_default=False,
        help="Start from latents written by `sdcli encode` or --save-latents.",
    ),
]  # fmt: skip
MaskBlur = Annotated[
    float | None,
    typer.Option(
        "--mask-blur", metavar="PIXELS", rich_help_panel=PICTURE, show_default="4",
        help="Blur the edge of the mask by this many pixels; 0 keeps it sharp.",
    ),
]  # fmt: skip
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Overwrite an existing file.", show_default=False)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Show no progress and no preview.", show_default=False),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", rich_help_panel=OUTPUT, help="Treat warnings as errors.", show_default=False),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=OUTPUT, show_default=False,
        help="Show what would be made, from which files and where, and exit.",
    ),
]  # fmt: skip
Debug = Annotated[
    bool, typer.Option("--debug", rich_help_panel=OUTPUT, help="Print the traceback of an error.", show_default=False)
]


@dataclass(frozen=True)
class Picture:
    """Options of the picture and of sampling; all are keys of a recipe."""

    model: Model = None
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt", "-N", metavar="TEXT", rich_help_panel=PICTURE, help="What the picture should not show."
        ),
    ] = None
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            "-W",
            metavar="PIXELS",
            rich_help_panel=PICTURE,
            help="Width of the picture.",
            show_default="the model's",
        ),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            "-H",
            metavar="PIXELS",
            rich_help_panel=PICTURE,
            help="Height of the picture.",
            show_default="the model's",
        ),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME=IMAGE", rich_help_panel=PICTURE, show_default=False,
            autocompletion=completion.control,
            help="Guide the picture by a ControlNet and IMAGE. IMAGE:0.8:0-0.5 sets the scale and the part of the "
            "steps. Can be repeated.",
        ),
    ] = None  # fmt: skip
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", metavar="NAME[:SCALE]", rich_help_panel=PICTURE, show_default=False,
            autocompletion=completion.lora_name,
            help="Merge a LoRA into the model: a name, a .safetensors file or OWNER/NAME. NAME:0.8,te=0.5 sets another "
            "scale for the text encoder. Can be repeated.",
        ),
    ] = None  # fmt: skip
    strict_lora: Annotated[
        bool | None,
        typer.Option(
            "--strict-lora/--no-strict-lora", rich_help_panel=PICTURE, show_default="on",
            help="Refuse LoRAs with tensors that do not fit the model.",
        ),
    ] = None  # fmt: skip
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding", metavar="NAME", rich_help_panel=PICTURE, show_default=False,
            autocompletion=completion.embedding_name,
            help="Use an embedding (textual inversion) where its name is in a prompt: a name or a .safetensors file. "
            "Can be repeated.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            metavar="INTEGER",
            rich_help_panel=PICTURE,
            help=f"Seed of the noise, from 0 to {MAX_SEED}; -1 draws one.",
            show_default="random",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Number of denoising steps.",
            show_default="the model's",
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", "--cfg-scale", metavar="SCALE", rich_help_panel=SAMPLING,
            show_default="the model's",
            help="How closely to follow the prompt; 1 or less disables guidance.",
        ),
    ] = None  # fmt: skip
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            "--guidance-rescale",
            metavar="0…1",
            rich_help_panel=SAMPLING,
            help="Reduce the overexposure of high guidance scales.",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", "--sampler", metavar="NAME", rich_help_panel=SAMPLING,
            autocompletion=completion.scheduler,
            help=f"One of {', '.join(schedulers.NAMES)}; or a name of A1111, such as 'DPM++ 2M Karras'.",
            show_default="the model's",
        ),
    ] = None  # fmt: skip
    sigmas: Annotated[
        str | None,
        typer.Option(
            "--sigmas", metavar="NAME", rich_help_panel=SAMPLING,
            autocompletion=completion.sigmas,
            help=f"Spacing of the noise levels: {', '.join(schedulers.SIGMAS)}.",
        ),
    ] = None  # fmt: skip
    eta: Annotated[
        float | None,
        typer.Option(
            "--eta", metavar="0…1", rich_help_panel=SAMPLING, help="Noise that DDIM adds in each step; 0 adds none."
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        typer.Option(
            "--clip-skip",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Layer of the text encoder to use, counted from the end; 1 is the last.",
        ),
    ] = None
    prompt_weights: Annotated[
        bool | None,
        typer.Option(
            "--prompt-weights/--no-prompt-weights", rich_help_panel=SAMPLING, show_default="on",
            help="Interpret (word:1.3), (word), [word] and BREAK in prompts.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Hires:
    """Options of a second, larger pass; all are keys of a recipe."""

    hires: Annotated[
        str | None,
        typer.Option(
            "--hires", metavar="FACTOR|WxH", rich_help_panel=PICTURE, show_default=False,
            help="Enlarge the picture by this factor or to this size, and denoise it again in a second pass.",
        ),
    ] = None  # fmt: skip
    hires_upscaler: Annotated[
        str | None,
        typer.Option(
            "--hires-upscaler", metavar="NAME", rich_help_panel=PICTURE, show_default="latent",
            autocompletion=completion.of(*UPSCALERS), help=f"How to enlarge it: {' or '.join(UPSCALERS)}.",
        ),
    ] = None  # fmt: skip
    hires_strength: Annotated[
        float | None,
        typer.Option(
            "--hires-strength", metavar="0…1", rich_help_panel=PICTURE, show_default="0.6",
            help="The share of the second pass's steps to run. A lower value changes less.",
        ),
    ] = None  # fmt: skip
    hires_steps: Annotated[
        int | None,
        typer.Option(
            "--hires-steps", metavar="N", rich_help_panel=PICTURE, show_default="as --steps",
            help="Number of steps of the second pass.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Edited(Picture):
    """Options of a picture that is made from an image; the result has the size of the image."""

    width: Annotated[
        int | None,
        typer.Option(
            "--width", "-W", metavar="PIXELS", rich_help_panel=PICTURE, show_default="near the image's",
            help="Width to work at; the result has the size of IMAGE.",
        ),
    ] = None  # fmt: skip
    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            "-H",
            metavar="PIXELS",
            rich_help_panel=PICTURE,
            show_default="near the image's",
            help="Height to work at.",
        ),
    ] = None


@dataclass(frozen=True)
class Machine:
    """Options of the device; all are keys of a recipe."""

    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            rich_help_panel=EXECUTION,
            autocompletion=completion.device,
            help=f"One of {', '.join(DEVICES)}.",
            show_default="auto",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            rich_help_panel=EXECUTION,
            autocompletion=completion.dtype,
            help=f"One of {', '.join(DTYPES)}.",
            show_default="auto",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            rich_help_panel=EXECUTION,
            help="Number of CPU threads.",
            show_default="chosen by PyTorch",
        ),
    ] = None


@dataclass(frozen=True)
class Execution(Machine):
    """Options of the device, and how many pictures are made at once."""

    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", rich_help_panel=EXECUTION,
            help="Pictures per U-Net call. More is faster on a GPU, but changes the pixels.", show_default="1",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Handover:
    """Options of the files to write and of what is printed."""

    path: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel=OUTPUT,
            help="A file.png, a directory, a template with {index} and any key, as in {prompt}-{seed}-{steps}, or - "
            "for stdout.",
            show_default="PROMPT-SEED.png in this directory",
        ),
    ] = None  # fmt: skip
    force: Force = False
    json: Annotated[
        int,
        typer.Option(
            "--json", count=True, metavar="[=full]", rich_help_panel=OUTPUT, show_default=False,
            help="Print one JSON object per picture instead of its path; with =full, it has the whole recipe.",
        ),
    ] = 0  # fmt: skip
    quiet: Quiet = False
    strict: Strict = False


@dataclass(frozen=True)
class Output(Handover):
    """The same, with options for latents, dry runs and several pictures."""

    prompt_option: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", rich_help_panel=PICTURE, help="Same as PROMPT."),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH", rich_help_panel=PICTURE, help="Width and height together, such as 512x768."
        ),
    ] = None
    save_latents: Annotated[
        str | None,
        typer.Option(
            "--save-latents", metavar="PATH", rich_help_panel=OUTPUT, show_default=False,
            help="Also write the latents before decoding, to a file.safetensors, a directory or a template as for -o.",
        ),
    ] = None  # fmt: skip
    dry_run: DryRun = False
    debug: Debug = False
    num_images: Annotated[
        int,
        typer.Option(
            "--num-images",
            "-n",
            metavar="N",
            min=1,
            rich_help_panel=PICTURE,
            help="Number of pictures; picture i has the seed SEED+i.",
        ),
    ] = 1


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of `command` that is annotated with a group by the group's options.

    Typer reads the resulting signature; `command` is called with groups made from the given options.
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
    def expanded(**values: Any) -> None:
        made = {name: group(**{key: values.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        command(**values, **made)

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
    values = {each.name: getattr(group, each.name) for group in groups for each in fields(group)} | others
    found = {key: value for key, value in values.items() if value not in (None, [])}
    if "scheduler" in found:
        found = {**other_tools.translate("scheduler", found.pop("scheduler")), **found}
    return found
