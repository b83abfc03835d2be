"""The options that commands share, under the names the field uses; None stands for "not given"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from sdcli import registry, schedulers
from sdcli.config import DEFAULT_MODEL
from sdcli.recipe import DEVICES, DTYPES, MAX_SEED


def _completer(choices: Callable[[], tuple[str, ...]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices() if choice.startswith(incomplete)]

    return complete


_PICTURE, _SAMPLING, _OUTPUT, _EXECUTION = "The picture", "Sampling", "Output", "Execution"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", rich_help_panel=_PICTURE, show_default=DEFAULT_MODEL,
        autocompletion=_completer(registry.names),
        help="A name from `sdcli models list`, a diffusers folder, a .safetensors file, "
        "or OWNER/NAME in the hub cache.",
    ),
]  # fmt: skip
NegativePrompt = Annotated[
    str | None,
    typer.Option("--negative-prompt", "-N", metavar="TEXT", rich_help_panel=_PICTURE, help="What to steer away from."),
]
Width = Annotated[
    int | None,
    typer.Option("--width", "-W", metavar="PIXELS", rich_help_panel=_PICTURE, show_default="the model's"),
]
Height = Annotated[
    int | None,
    typer.Option("--height", "-H", metavar="PIXELS", rich_help_panel=_PICTURE, show_default="the model's"),
]
WorkingWidth = Annotated[
    int | None,
    typer.Option(
        "--width", "-W", metavar="PIXELS", rich_help_panel=_PICTURE, show_default="a good one near the image's",
        help="The size to work at; the picture comes back at the image's own.",
    ),
]  # fmt: skip
WorkingHeight = Annotated[
    int | None,
    typer.Option(
        "--height", "-H", metavar="PIXELS", rich_help_panel=_PICTURE, show_default="a good one near the image's"
    ),
]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="The picture to start from: PNG, JPEG, WebP ….")]
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="0…1", rich_help_panel=_PICTURE, show_default="img2img 0.6, else 1",
        help="The share of the steps to take; 1 starts from pure noise, less keeps more of the image.",
    ),
]  # fmt: skip
MaskBlur = Annotated[
    float | None,
    typer.Option(
        "--mask-blur", metavar="PIXELS", rich_help_panel=_PICTURE, show_default="4",
        help="How softly the mask's edge fades into the image; 0 is hard.",
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        "-s",
        metavar="INTEGER",
        rich_help_panel=_PICTURE,
        help=f"0 … {MAX_SEED}.",
        show_default="drawn",
    ),
]
NumImages = Annotated[
    int,
    typer.Option("--num-images", "-n", metavar="N", min=1, rich_help_panel=_PICTURE, help="Picture i has seed SEED+i."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", metavar="N", rich_help_panel=_SAMPLING, help="Denoising steps.", show_default="the model's"
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", "--cfg-scale", metavar="SCALE", rich_help_panel=_SAMPLING,
        show_default="the model's",
        help="How strongly the prompt pulls; 1 or less switches guidance off.",
    ),
]  # fmt: skip
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        "--guidance-rescale",
        metavar="0…1",
        rich_help_panel=_SAMPLING,
        help="Tame overexposure of high guidance scales.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="NAME", rich_help_panel=_SAMPLING,
        autocompletion=_completer(lambda: schedulers.NAMES),
        help=f"{', '.join(schedulers.NAMES)}.", show_default="the model's",
    ),
]  # fmt: skip
Sigmas = Annotated[
    str | None,
    typer.Option(
        "--sigmas", metavar="NAME", rich_help_panel=_SAMPLING,
        autocompletion=_completer(lambda: schedulers.SIGMAS),
        help=f"Spacing of noise levels: {', '.join(schedulers.SIGMAS)}.",
    ),
]  # fmt: skip
Eta = Annotated[
    float | None,
    typer.Option("--eta", metavar="0…1", rich_help_panel=_SAMPLING, help="DDIM's share of fresh noise in each step."),
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", metavar="N", rich_help_panel=_SAMPLING, help="Text layer from the end; 1 skips none."),
]
PromptWeights = Annotated[
    bool | None,
    typer.Option(
        "--prompt-weights/--no-prompt-weights", rich_help_panel=_SAMPLING, show_default="read",
        help="Read (word:1.3), (word), \\[word] and BREAK in prompts, or take them as letters.",
    ),
]  # fmt: skip
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="PATH", rich_help_panel=_OUTPUT,
        help="A file.png, a directory, a template with {seed} {index} {prompt} {model}, or - for PNG on stdout.",
        show_default="PROMPT-SEED.png here",
    ),
]  # fmt: skip
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=_OUTPUT, help="Replace a named file that exists.", show_default=False)
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=_OUTPUT, help="One JSON object a picture on stdout, not its path.", show_default=False
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="No progress, no preview.", show_default=False)
]
Strict = Annotated[
    bool,
    typer.Option("--strict", rich_help_panel=_OUTPUT, help="Make every warning an error.", show_default=False),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=_OUTPUT, show_default=False,
        help="Say what would be made, of what files and where to, and make nothing.",
    ),
]  # fmt: skip
Debug = Annotated[
    bool, typer.Option("--debug", rich_help_panel=_OUTPUT, help="Tracebacks with errors.", show_default=False)
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", rich_help_panel=_EXECUTION, help=f"{', '.join(DEVICES)}.", show_default="auto"
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="NAME", rich_help_panel=_EXECUTION, help=f"{', '.join(DTYPES)}.", show_default="auto"
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", rich_help_panel=_EXECUTION, help="CPU threads.", show_default="torch's choice"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", rich_help_panel=_EXECUTION,
        help="Pictures in one U-Net call; faster on GPUs, but pixels then depend on it.", show_default="1",
    ),
]  # fmt: skip


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}
