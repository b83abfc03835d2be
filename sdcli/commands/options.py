"""The options that commands share, under the names that diffusers uses; None means "not given".

Related options are the fields of one frozen dataclass, a group, which a command takes as one parameter (groups.py):

    @groups.expand
    def img2img(image: options.Image, prompt: options.Prompt = None, *, strength: options.Strength = None,
                picture: picture_options.Edited, output: options.Output, execution: options.Execution) -> None:
        '''The help.'''
        given = groups.given(picture, execution, image=image, prompt=prompt, strength=strength)
        pictures.make(given, output)

To add an option for a key of the recipe: add a field of that name to `sdcli/recipe/parts.py`, and a field of the same
name to the group of the commands that need it (`Picture`, `Execution`, or `Output` if it is not part of a recipe), or a
parameter if only one command has it. To add a command: add a file like `commands/img2img.py`, and a line to `cli.py`.
The help lists options by `rich_help_panel`, in the order of the groups' fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sdcli.commands import completion
from sdcli.config import DEFAULT_MODEL
from sdcli.recipe.parts import DEVICES, DTYPES, ENGINES, MEMORY, TILING

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
        help="A name from `sdcli models list`, a diffusers folder, a .safetensors or .gguf file, "
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
class Decoding(Machine):
    """Options of the device and of memory."""

    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="NAME", rich_help_panel=EXECUTION, autocompletion=completion.of(*MEMORY),
            help="How much memory to use: auto (what is free), low (slower, and decodes in tiles) or high.",
            show_default="auto",
        ),
    ] = None  # fmt: skip
    tiling: Annotated[
        str | None,
        typer.Option(
            "--tiling", metavar="NAME", rich_help_panel=EXECUTION, autocompletion=completion.of(*TILING),
            help="How to decode: off, slices (pictures of a batch one at a time) or tiles, which need less memory and "
            "change pixels slightly.",
            show_default="off, unless memory is short",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Execution(Decoding):
    """Options of the device, and how many pictures are made at once."""

    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="NAME", rich_help_panel=EXECUTION, show_default="torch",
            autocompletion=completion.of(*ENGINES),
            help="What runs the network: torch, or openvino on a CPU, an Intel GPU (--device xpu) or an NPU. The first "
            "picture of a model converts it, which takes minutes; the result is kept.",
        ),
    ] = None  # fmt: skip
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", rich_help_panel=EXECUTION, show_default="off",
            help="Compile the network for the size of the picture. The first picture takes minutes longer; the "
            "compiled code is kept for later ones.",
        ),
    ] = None  # fmt: skip
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
