"""`sdcli train`: train models in stages, on the synthetic world or on a folder of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.commands import groups
from sdcli.commands.plain_help import Commands
from sdcli.commands.train_kit import kit
from sdcli.commands.train_lora import lora
from sdcli.commands.train_options import (
    RUN,
    SETTINGS,
    Base,
    Once,
    Out,
    Sprites,
    World,
    folder_of,
    train_planned,
    with_settings,
)
from sdcli.commands.trained import export, measure
from sdcli.training import run_config
from sdcli.training.settings import (
    AutoencoderTraining,
    InpaintTraining,
    SemanticTraining,
    TextEncoderTraining,
    TextToImageTraining,
)

train = Commands(
    help="Train, measure and export models.",
)

Vae = Annotated[
    Path | None,
    typer.Option(
        "--vae", metavar="FOLDER", rich_help_panel=RUN, show_default=False,
        help="A trained autoencoder for a new model.",
    ),
]  # fmt: skip
Text = Annotated[
    bool | None,
    typer.Option(
        "--train-text-encoder/--freeze-text-encoder", rich_help_panel=SETTINGS,
        show_default="train a new one, freeze one of --from", help="Train the text encoder, or keep it as it is.",
    ),
]  # fmt: skip
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="PIXELS", min=64, rich_help_panel=RUN, show_default="256",
        help="The side length that the pictures of --data are resized to.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Options of the run's folder and data."""

    out: Out
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", rich_help_panel=RUN, show_default="the synthetic world",
            help="A folder of pictures with a metadata.jsonl.",
        ),
    ] = None  # fmt: skip
    world: World = None
    sprites: Sprites = None


@train.command("autoencoder")
@groups.expand
@with_settings(AutoencoderTraining)
def autoencoder(*, run: Run, size: Size = None, settings: Any, execution: Once) -> None:
    """Train an autoencoder that maps 8×8 pixels to 8 numbers.

    sdcli train autoencoder --out runs/autoencoder --slice 10
    """
    _run_stage("autoencoder", run, execution, settings, {"size": size})


@train.command("text-encoder")
@groups.expand
@with_settings(TextEncoderTraining)
def text_encoder(*, out: Out, world: World = None, base: Base = None, settings: Any, execution: Once) -> None:
    """Train a model's text encoder on captions of the synthetic world.

    It learns which subject is where. The U-Net does not change; continue with text-to-image --from, so that the U-Net
    learns to use the new text encoder.

        sdcli train text-encoder --from runs/text/model --world kit-rows --out runs/reading
    """
    _run_stage("text-encoder", Run(out, world=world), execution, settings, {"base": base})


@train.command("text-to-image")
@groups.expand
@with_settings(TextToImageTraining)
def text_to_image(
    *, run: Run, vae: Vae = None, base: Base = None, text: Text = None, settings: Any, execution: Once
) -> None:
    """Train a text-to-image model, or continue training one.

    --vae starts a new model on a trained autoencoder, with a new text encoder and tokenizer. --from continues with a
    trained model.

        sdcli train text-to-image --vae runs/autoencoder/model --out runs/text
        sdcli train text-to-image --from my-model --data my-pictures --lr 1e-4 --out runs/mine
    """
    _run_stage("text-to-image", run, execution, settings, {"vae": vae, "base": base, "text": text})


@train.command("inpaint")
@groups.expand
@with_settings(InpaintTraining)
def inpaint(*, run: Run, base: Base = None, text: Text = None, settings: Any, execution: Once) -> None:
    """Train an inpainting model from a text-to-image model.

    Its U-Net takes the mask and the masked image as further channels, like Stable Diffusion's inpainting models.

        sdcli train inpaint --from runs/text/model --out runs/inpaint
    """
    _run_stage("inpaint", run, execution, settings, {"base": base, "text": text})


@train.command("semantic")
@groups.expand
@with_settings(SemanticTraining)
def semantic(*, run: Run, base: Base = None, text: Text = None, settings: Any, execution: Once) -> None:
    """Train a model for segmentation maps from a text-to-image model.

    Its U-Net takes one further channel per class. Maps of your own are images of class indices, named by
    "map_file_name" in metadata.jsonl; classes.json in the same folder lists the classes.

        sdcli train semantic --from runs/text/model --out runs/semantic
    """
    _run_stage("semantic", run, execution, settings, {"base": base, "text": text})


def _run_stage(stage: str, run: Run, execution: Once, settings: Any, begin: Mapping[str, Any]) -> None:
    begin = {key: folder_of(value) if key == "base" else value for key, value in begin.items()}
    given = groups.given(data=run.data, world=run.world, sprites=run.sprites, **begin)
    train_planned(run_config.plan(stage, run.out, given, groups.given(settings)), execution)


for _command in (kit, lora, measure, export):
    train.command()(_command)
