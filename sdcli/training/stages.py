"""The training stages: builds a run from its configuration, and writes a run's model."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdcli.errors import InputError, UsageError
from sdcli.files import folders, palette
from sdcli.training import autoencoder as autoencoding
from sdcli.training import checkpoint, export, loop, lora, parts, tokenizer, world
from sdcli.training.autoencoder import AutoencoderRun
from sdcli.training.diffusion import DiffusionRun
from sdcli.training.learners import world_classes
from sdcli.training.lora import LoraRun
from sdcli.training.optimizers import AveragedWeights
from sdcli.training.parts import Parts
from sdcli.training.pool import Encoder, Pool, Task
from sdcli.training.reading import TextEncoderRun
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import (
    AutoencoderTraining,
    DiffusionTraining,
    InpaintTraining,
    LoraTraining,
    TextEncoderTraining,
)
from sdcli.training.sheets import Sheet
from sdcli.training.sources import ImageFolder, Source, World
from sdcli.training.sprites import find_sprites
from sdcli.training.tasks import Inpaint, Semantic, TextToImage
from sdcli.training.team import Team

FolderRun = AutoencoderRun | TextEncoderRun | DiffusionRun
"""Runs whose result is a folder."""
AnyRun = FolderRun | LoraRun
AUTOENCODER_SIDE = 256
CAPTIONS = 20_000
"""The number of captions that a new tokenizer is trained on."""


def source_of(config: RunConfig, side: int) -> Source:
    """Return the pictures of a run: the world's, 256 pixels wide, or a folder's, `side` pixels wide.

    Raises InputError if the model needs another size than the world's.
    """
    seed = config.settings.seed
    if config.begin.data is not None:
        classes = len(config.classes()) if config.stage == "semantic" else 0
        return ImageFolder(config.rows(), side, seed, classes)
    if side != world.SIZE:
        problem = f"the world's pictures are {world.SIZE} pixels wide, but the model needs {side}"
        raise InputError(problem, "train it on pictures of your own: --data FOLDER")
    vocabulary = world.VOCABULARIES[config.begin.world]
    sprites = find_sprites(Path(config.begin.sprites) if config.begin.sprites else None)
    return World(world.sprites_of(sprites, vocabulary), seed, vocabulary)


def task_of(config: RunConfig, latent_channels: int) -> Task:
    """Return the task of the stage: the condition of its U-Net, besides text."""
    if config.stage == "inpaint":
        assert isinstance(config.settings, InpaintTraining)
        return Inpaint(latent_channels, config.settings.known_weight)
    if config.stage == "semantic":
        return Semantic(config.classes() if config.begin.data is not None else world_classes())
    return TextToImage()


def begin(config: RunConfig, team: Team) -> AnyRun:
    """Return the run at its first step, with the pictures that it has already encoded."""
    settings = config.settings
    if isinstance(settings, AutoencoderTraining):
        return AutoencoderRun(source_of(config, config.begin.size or AUTOENCODER_SIDE), settings, team)
    if isinstance(settings, TextEncoderTraining):
        assert config.begin.base is not None
        torch.manual_seed(settings.seed)
        text_encoder, tokenizer = parts.read_text(Path(config.begin.base))
        return TextEncoderRun(text_encoder, tokenizer, world.VOCABULARIES[config.begin.world], settings, team)
    if isinstance(settings, LoraTraining):
        return lora.begin(config, team)
    assert isinstance(settings, DiffusionTraining)
    held = parts_of(config, team)
    source = source_of(config, held.side)
    task = task_of(config, int(held.unet.config.out_channels))
    parts.widen(held.unet, task.channels)
    held.to(team.device)
    pool = Pool(source, task, Encoder(held.vae, team), settings.seed, team)
    pool.load(config.out / "latents")
    return DiffusionRun(held, pool, settings, team, trains_text=trains_text(config))


def trains_text(config: RunConfig) -> bool:
    """Return whether the text encoder is trained with the U-Net: by default, only if it is new."""
    return config.begin.base is None if config.begin.text is None else config.begin.text


def parts_of(config: RunConfig, team: Team) -> Parts:
    """Return the components that the run starts with."""
    torch.manual_seed(config.settings.seed)
    if config.begin.base is not None:
        return parts.read(Path(config.begin.base))
    assert config.begin.vae is not None
    vae = parts.read_vae(Path(config.begin.vae))
    architecture = parts.UNET | {"in_channels": vae.config.latent_channels, "out_channels": vae.config.latent_channels}
    return parts.build(vae, own_tokenizer(config, team), architecture)


def own_tokenizer(config: RunConfig, team: Team) -> Any:
    """Return the tokenizer in the run's folder; if there is none, the first process trains it on captions."""
    folder = config.out / "tokenizer"
    if team.leads and not (folder / "vocab.json").exists():
        source = source_of(config, world.SIZE)
        items = source.items()
        rng = np.random.default_rng(0)
        count = CAPTIONS if source.size is None else source.size
        tokenizer.write_tokenizer(folder, [source.caption(item, rng) for item in islice(items, count)])
    team.wait()
    return parts.read_tokenizer(folder)


def train(config: RunConfig, team: Team, stop: loop.Stop, watcher: loop.Watcher) -> bool:
    """Start or continue a run; returns whether it is done. A finished run has its model at `config.result`."""
    if loop.last_step(config.out) >= config.settings.steps and config.result.exists():
        return True
    if team.leads:
        config.write()
    team.wait()
    run = begin(config, team)
    if isinstance(run, DiffusionRun) and run.settings.sheet_every and team.leads:
        run.preview = Sheet(run.parts, run.pool, config.settings.seed, team)
    done = loop.train(run, config.out, stop, watcher)
    if done and team.leads and isinstance(run, LoraRun):
        run.write(config.result)
    elif done and team.leads and not isinstance(run, LoraRun):
        with folders.written(str(config.result), force=True) as folder:
            write_model(config, run, folder)
    team.wait()
    return done


def export_run(config: RunConfig, folder: Path, *, averaged: bool | None, unet_only: bool, shard_mb: int) -> int:
    """Write the model of a run's last checkpoint to a folder; returns its step.

    `averaged` selects the moving average of the weights, which is better before the cooldown, instead of the last
    weights, which are better after it. None selects the average for unfinished runs. Raises ModelNotFound if there is
    no checkpoint.
    """
    if config.stage == "lora":
        raise UsageError(f"{config.out} is a run of lora, whose result is a file", "continue it: sdcli train lora")
    if unet_only and not isinstance(config.settings, DiffusionTraining):
        raise UsageError(f"a run of {config.stage} does not train a U-Net", "omit --unet-only")
    team = Team(torch.device("cpu"))
    state = checkpoint.load(config.out / loop.CHECKPOINT)
    run = begin(config, team)
    assert not isinstance(run, LoraRun)
    run.load_state(state["run"])
    run.step = state["step"]
    wants_average = run.step < config.settings.steps if averaged is None else averaged
    average: AveragedWeights | None = getattr(run, "average", None)
    if averaged and average is None:
        raise UsageError(f"a run of {config.stage} keeps no average of its weights", "omit --average")
    if wants_average and average is not None:
        average.swap()
    write_model(config, run, folder, unet_only=unet_only, shard_mb=shard_mb)
    return run.step


def write_model(
    config: RunConfig, run: FolderRun, folder: Path, *, unet_only: bool = False, shard_mb: int = 4000
) -> None:
    """Write a run's model, with its current weights, in float16; components that were not trained are copied.

    For an autoencoder, the folder is that component; with `unet_only`, it is the U-Net. The run cannot continue after
    this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(run, AutoencoderRun):
        autoencoding.set_scaling_factor(run.vae, autoencoding.pictures(run.source, seed=3, count=64))
        export.export_vae(run.vae, folder)
        return
    base = None if config.begin.base is None else Path(config.begin.base)
    if isinstance(run, TextEncoderRun):
        assert base is not None
        for part in ("unet", "vae", "tokenizer", "scheduler"):
            export.copy_part(base / part, folder / part)
        export.export_text_encoder(run.text_encoder, folder / "text_encoder")
        export.write_index(folder, config.stage, base)
        return
    export.export_unet(run.parts.unet, folder if unet_only else folder / "unet", shard_mb)
    if isinstance(run.pool.task, Semantic):
        palette.write(folder, run.pool.task.classes)
    if unet_only:
        return
    if base is not None:
        for part in ("vae", "tokenizer", "scheduler"):
            export.copy_part(base / part, folder / part)
    else:
        assert config.begin.vae is not None
        export.copy_part(Path(config.begin.vae), folder / "vae")
        export.copy_part(config.out / "tokenizer", folder / "tokenizer")
        run.parts.scheduler.save_pretrained(folder / "scheduler")
    if base is not None and not trains_text(config):
        export.copy_part(base / "text_encoder", folder / "text_encoder")
    else:
        export.export_text_encoder(run.parts.text_encoder, folder / "text_encoder")
    export.write_index(folder, config.stage, base)
