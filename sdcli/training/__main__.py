"""`python -m sdcli.training COMMAND`: the commands that made the embedded model. Plain argparse; not for users."""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError

SHEET_PROMPTS = (
    "arctic fox",
    "an arctic fox in the snow",
    "a fox in the forest",
    "a red fox on the beach",
    "a castle at night",
    "a white owl in the forest",
    "a robot in the desert",
    "a blue whale on the beach",
    "a house in a meadow",
    "a penguin in the snow",
    "a unicorn at night",
    "a red rocket in the desert",
)


def autoencoder(arguments: argparse.Namespace) -> None:
    """Train the autoencoder."""
    from sdcli.training.autoencoder import AutoencoderRun, AutoencoderTraining
    from sdcli.training.checkpoint import append_log, train
    from sdcli.training.world import sprites_of

    settings = settings_from(AutoencoderTraining, arguments)
    run = AutoencoderRun(sprites_of(arguments.sprites), settings)
    run.restore(arguments.out)
    for entry in train(run, arguments.out):
        append_log(arguments.out / "autoencoder.jsonl", entry)


def trained_autoencoder(folder: Path, sprites: Any) -> Any:
    """The autoencoder of a checkpoint, with its scaling factor measured."""
    from diffusers import AutoencoderKL

    from sdcli.training import autoencoder as stage
    from sdcli.training import checkpoint

    vae = AutoencoderKL(**stage.ARCHITECTURE)
    vae.load_state_dict(checkpoint.load(folder / "autoencoder.pt")["vae"])
    stage.set_scaling_factor(vae, stage.render_batch(sprites, seed=3, count=64))
    return vae.eval().requires_grad_(False)


def trained_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; if there is none the first process learns it from captions and writes it there."""
    import numpy as np

    from sdcli.training import parallel
    from sdcli.training.captions import caption
    from sdcli.training.tokenizer import load_tokenizer, write_tokenizer
    from sdcli.training.world import scenes

    if parallel.place()[0] == 0 and not (folder / "vocab.json").exists():
        rng = np.random.default_rng(0)
        write_tokenizer(folder, [caption(scene, rng) for scene in itertools.islice(scenes(0), 20_000)])
    parallel.any_of(False)  # the others wait here
    return load_tokenizer(folder)


def run_in(arguments: argparse.Namespace, settings: Any) -> Any:
    """The text-to-image run in the folder of checkpoints, as far as it has come."""
    from sdcli.training import parallel
    from sdcli.training.text_to_image import Latents, TextToImageRun
    from sdcli.training.world import sprites_of

    sprites = sprites_of(arguments.sprites)
    vae = trained_autoencoder(arguments.out, sprites)
    tokenizer = trained_tokenizer(arguments.out / "tokenizer")
    world_seed = settings.seed + 1000 * parallel.place()[0]
    run = TextToImageRun(tokenizer, Latents(vae, sprites, world_seed), settings)
    run.restore(arguments.out)
    return run


def text_to_image(arguments: argparse.Namespace) -> None:
    """Train U-Net and text encoder on a trained autoencoder, with a sheet of pictures at each checkpoint."""
    from sdcli.training import parallel
    from sdcli.training.checkpoint import append_log, train
    from sdcli.training.sampling import Sampling, assemble, generate, sheet
    from sdcli.training.text_to_image import TextToImageTraining

    parallel.join()
    run = run_in(arguments, settings_from(TextToImageTraining, arguments))
    pipeline = assemble(run.pool.vae, run.text_encoder, run.tokenizer, run.unet, run.scheduler)
    for entry in train(run, arguments.out):
        if parallel.place()[0] > 0:
            continue
        append_log(arguments.out / "text-to-image.jsonl", entry)
        run.average.swap()
        pictures = generate(pipeline, SHEET_PROMPTS, range(len(SHEET_PROMPTS)), Sampling(num_inference_steps=20))
        run.average.swap()
        sheet(pictures, columns=4, side=160).save(arguments.out / f"sheet-{run.step:06}.png")


def export(arguments: argparse.Namespace) -> None:
    """Write the model as a diffusers folder in half precision."""
    from sdcli.training import export as stage
    from sdcli.training.text_to_image import TextToImageTraining

    run = run_in(arguments, TextToImageTraining())
    if arguments.weights == "average":
        run.average.swap()
    stage.export(run.pool.vae, run.unet, run.text_encoder, run.scheduler, arguments.to)
    shutil.copytree(arguments.out / "tokenizer", arguments.to / "tokenizer", dirs_exist_ok=True)
    print(json.dumps({"step": run.step, "folder": str(arguments.to)}))


def measure(arguments: argparse.Namespace) -> None:
    """Judge the pictures of a diffusers folder: accuracy on combinations seen and held out, at fixed seeds."""
    from sdcli.training import judge as judging
    from sdcli.training.measure import drawer, judge_itself, measure_text
    from sdcli.training.world import sprites_of

    sprites = sprites_of(arguments.sprites)
    judge, segmenter = judging.load_or_train(arguments.out / "judge.pt", sprites)
    print(json.dumps({"judge_on_unseen_renderings": judge_itself(judge, segmenter, sprites)}), flush=True)
    draw = drawer(str(arguments.model), {})
    print(json.dumps(measure_text(draw, judge, seen=arguments.count, held_out=arguments.count)), flush=True)


def settings_from(kind: type[Any], arguments: argparse.Namespace) -> Any:
    """An instance of a frozen settings class, from the options of the same names."""
    return kind(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(kind)})


def add_settings(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """One option for each field of a settings class, with its default."""
    for field in dataclasses.fields(kind):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help="%(default)s")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from sdcli.training.autoencoder import AutoencoderTraining
    from sdcli.training.sprites import DEFAULT_FONT
    from sdcli.training.text_to_image import TextToImageTraining

    top = argparse.ArgumentParser(prog="python -m sdcli.training", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any, name: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--sprites", type=Path, default=DEFAULT_FONT, help="emoji font or folder of sprites")
        sub.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs")
        sub.add_argument("--threads", type=int, default=2)
        return sub

    add_settings(command(autoencoder, "autoencoder"), AutoencoderTraining)
    add_settings(command(text_to_image, "text-to-image"), TextToImageTraining)
    sub = command(export, "export")
    sub.add_argument("--to", type=Path, required=True, help="the folder to write")
    sub.add_argument(
        "--weights",
        choices=("last", "average"),
        default="last",
        help="of the last step (best after a cooldown) or their moving average (best before it); %(default)s",
    )
    sub = command(measure, "measure")
    sub.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    sub.add_argument("--count", type=int, default=92, help="pictures of each kind; %(default)s")
    return top


def main() -> int:
    """Run a command; an error is two lines on stderr."""
    import torch

    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        arguments.run(arguments)
    except SdcliError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
