"""`sdcli train lora`: train a LoRA on a few pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import config as user_config
from sdcli.commands import completion, groups
from sdcli.commands.train_options import RUN, SETTINGS, Once, train_planned, with_settings
from sdcli.errors import OutputExists, UsageError
from sdcli.models import registry
from sdcli.training import run_config
from sdcli.training.run_config import LORA_RUN, LORA_SUFFIX
from sdcli.training.settings import LoraTraining


@dataclass(frozen=True)
class Pictures:
    """What the LoRA is trained on."""

    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA", show_default=False,
            help="A folder of pictures with a metadata.jsonl, or with a text file next to each.",
        ),
    ] = None  # fmt: skip
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", rich_help_panel=RUN, show_default="those in DATA",
            help="The caption of all pictures.",
        ),
    ] = None  # fmt: skip
    class_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--class-prompt", metavar="TEXT", rich_help_panel=RUN, show_default=False,
            help="What to keep unchanged: the model makes pictures of it first. Can be repeated.",
        ),
    ] = None  # fmt: skip
    class_data: Annotated[
        Path | None,
        typer.Option(
            "--class-data", metavar="FOLDER", rich_help_panel=RUN, show_default=False,
            help="Pictures of what to keep unchanged, like DATA, instead of pictures that the model makes.",
        ),
    ] = None  # fmt: skip
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="PIXELS", min=64, rich_help_panel=RUN, show_default="the model's",
            help="Train at PIXELS × PIXELS, or about this area where a picture has another aspect ratio.",
        ),
    ] = None  # fmt: skip
    sheet_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--sheet-prompt", metavar="TEXT", rich_help_panel=RUN, show_default="captions",
            help="Prompt of a sample picture. Can be repeated.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What the LoRA is trained for."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME|PATH", rich_help_panel=RUN, show_default=user_config.DEFAULT_MODEL,
            autocompletion=completion.model, help="The model to train it for, which does not change.",
        ),
    ] = None  # fmt: skip
    text: Annotated[
        bool | None,
        typer.Option(
            "--train-text-encoder/--freeze-text-encoder", rich_help_panel=SETTINGS, show_default="freeze",
            help="Change the text encoders too, or only the U-Net.",
        ),
    ] = None  # fmt: skip
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing", rich_help_panel=SETTINGS,
            show_default="for large models", help="Compute activations twice, which takes less memory and more time.",
        ),
    ] = None  # fmt: skip


Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FILE", rich_help_panel=RUN,
        help="The .safetensors file to write. The run is in the folder FILE.run next to it, and continues from there.",
    ),
]  # fmt: skip


@groups.expand
@with_settings(LoraTraining)
def lora(
    *,
    pictures: Pictures,
    out: Out,
    model: Model,
    force: Annotated[
        bool,
        typer.Option("--force", rich_help_panel=RUN, show_default=False, help="Replace a file of another run."),
    ] = False,
    settings: Any,
    execution: Once,
) -> None:
    """Train a LoRA on a few pictures of a subject or a style.

    Captions say what is in each picture; a word that the model does not use otherwise becomes the name of what is new.
    Pictures of the class keep the rest of what the model knows.

        sdcli train lora dodo -o dodo.safetensors --prompt "a dodo"
        sdcli train lora dodo -o dodo.safetensors -m sd15 --class-prompt "a bird" --lr 1e-4
        sdcli generate "a dodo on the beach" --lora dodo.safetensors
    """
    if out.suffix != LORA_SUFFIX:
        raise UsageError(f"--out is {out}", f"it must end in {LORA_SUFFIX}")
    run = out.with_suffix(LORA_RUN)
    if out.exists() and not (run / run_config.RUN).exists() and not force:
        raise OutputExists(f"{out} exists", "choose another name with --out, or replace it with --force")
    begin = groups.given(
        data=pictures.data, prompt=pictures.prompt, class_prompts=pictures.class_prompt,
        class_data=pictures.class_data, size=pictures.size, sheet_prompts=pictures.sheet_prompt, text=model.text,
        gradient_checkpointing=model.gradient_checkpointing,
    )  # fmt: skip
    if model.model is not None or not (run / run_config.RUN).exists():
        begin["base"] = _base(user_config.model(model.model))
    train_planned(run_config.plan("lora", run, begin, groups.given(settings)), execution)


def _base(name: str) -> str:
    """Return a model's name, or its absolute path if it is one."""
    path = Path(name)
    return str(path.resolve()) if path.exists() and name not in registry.entries() else name
