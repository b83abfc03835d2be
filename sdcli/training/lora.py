"""Training a LoRA: low-rank changes of a model that is not changed itself, on a few pictures.

The loss is that of diffusion training: the prediction of the model at a random timestep. Pictures of the class, which
the unchanged model has made or the user has, keep the rest of what it knows (Ruiz et al. 2023, "DreamBooth", §3.3,
prior preservation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sdcli.diffusion import autoencode, layout, pipeline
from sdcli.diffusion.context import text as text_context
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files import canvas
from sdcli.models import loading, located
from sdcli.models.located import LocatedModel
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe
from sdcli.training import adapters, checkpoint
from sdcli.training.crops import Crop, crop_of
from sdcli.training.diffusion import target_of
from sdcli.training.imagefolder import Row
from sdcli.training.loop import finish_step, step_noise
from sdcli.training.lora_metadata import metadata
from sdcli.training.optimizers import Adam
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import LoraTraining
from sdcli.training.sheets import save_sheet
from sdcli.training.sources import read_image
from sdcli.training.team import Team

LATENTS = "latents.pt"
SHEET, SHEET_SEED = 4, 1
"""The number of pictures of a sheet, and the seed of the first one."""
MOST_TEXTS = 256
"""So many contexts of captions are kept."""
LARGE = 300e6
"""A U-Net with more parameters recomputes its activations by default."""


@dataclass(frozen=True)
class Example:
    """A picture to train on: a row of a folder, or what the model itself makes of a prompt with a seed."""

    name: str
    text: str
    row: Row | None = None
    seed: int = 0


class LoraRun:
    """A LoRA in training. `load_state(state())` restores it exactly."""

    def __init__(self, config: RunConfig, found: LocatedModel, model: LatentDiffusionModel, team: Team) -> None:
        assert isinstance(config.settings, LoraTraining)
        self.config, self.settings, self.found, self.model, self.team = config, config.settings, found, model, team
        self.trains_text = config.begin.text is True
        torch.manual_seed(self.settings.seed)
        self.changes = adapters.inject(model, self.settings, text=self.trains_text)
        self.optimizer = Adam(self.changes.parameters(), self.settings.lr)
        self.scheduler = DDIMScheduler.from_config(dict(model.scheduler_config))
        self.own = [Example(f"own{index}", row.text, row) for index, row in enumerate(config.rows())]
        self.of_class = list(_of_class(config))
        self.kept: dict[str, Tensor] = {}
        self.crops: dict[str, Crop] = {}
        self.saved = 0
        self.step = 0
        self._embedded = lru_cache(MOST_TEXTS)(self._embed)

    @property
    def side(self) -> int:
        """The side in pixels of a square picture."""
        return self.config.begin.size or self.found.facts.native_size

    def load_latents(self) -> None:
        """Load the pictures that are already encoded."""
        file = self.config.out / LATENTS
        self.kept = checkpoint.load(file) if file.exists() else {}
        self.saved = len(self.kept)

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Encode the pictures, and make those of the class, one per iteration."""
        examples = [*self.own, *self.of_class]
        for index, example in enumerate(examples):
            self.crops[example.name] = self._crop(example)
            if example.name not in self.kept:
                yield index, len(examples)
                self.kept[example.name] = self._latents(example)

    def _crop(self, example: Example) -> Crop:
        if example.row is None:
            return Crop((self.side, self.side), (self.side, self.side), (0, 0))
        multiple = self.model.vae_scale_factor * 2 ** (len(self.model.network.config["block_out_channels"]) - 1)
        return crop_of(read_image(example.row, example.row.image).size, self.side, multiple)

    def _latents(self, example: Example) -> Tensor:
        """Return the normalised latents (C, h, w) of a picture."""
        if example.row is None:
            return self._sample(example.text, example.seed)[0].clone().cpu()
        picture = self.crops[example.name](canvas.opaque(read_image(example.row, example.row.image)))
        return autoencode.encode_picture(self.model, picture)[0].clone()

    def _sample(self, prompt: str, seed: int) -> Tensor:
        return pipeline.sample(self.model, [self._recipe(prompt, seed)])

    def _recipe(self, prompt: str, seed: int) -> Recipe:
        keys = {"model": self.found.entry.name, "prompt": prompt, "seed": seed, "width": self.side, "height": self.side}
        made = resolve.resolve(self.found, keys, user=False).recipe
        dtype = str(self.model.dtype).removeprefix("torch.")
        return made.replace(device=str(self.team.device), dtype=dtype, threads=torch.get_num_threads())

    def keep(self, folder: Path) -> None:
        """Write the encoded pictures; each process has all of them."""
        if self.team.leads and len(self.kept) > self.saved:
            checkpoint.save(folder / LATENTS, self.kept)
            self.saved = len(self.kept)

    def state(self) -> checkpoint.State:
        """Return the changes and the optimizer's state."""
        return {"changes": self.changes.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: checkpoint.State) -> None:
        """Restore the result of `state`."""
        self.changes.load_state_dict(state["changes"])
        self.optimizer.load_state_dict(state["optimizer"])

    def train_step(self) -> float:
        """Train one step and return its loss, averaged over the processes."""
        rng = np.random.default_rng([self.settings.seed, self.step, self.team.process])
        loss = self._loss(self.own, rng)
        if self.of_class:
            loss = loss + self.settings.prior_weight * self._loss(self.of_class, rng)
        return finish_step(self, loss, [self.changes])

    def _loss(self, examples: Sequence[Example], rng: np.random.Generator) -> Tensor:
        """Return the mean squared error of the prediction for a batch of pictures of one size."""
        drawn = draw(examples, self.crops, self.settings.batch // self.team.processes, rng)
        latents = torch.stack([self.kept[each.name] for each in drawn]).to(self.team.device)
        timesteps = torch.from_numpy(rng.integers(self.scheduler.config.num_train_timesteps, size=len(drawn)))
        timesteps = timesteps.to(self.team.device)
        noise = step_noise(int(rng.integers(2**31)), self.step, tuple(latents.shape)).to(self.team.device)
        sample = self.scheduler.add_noise(latents, noise, timesteps).to(self.model.dtype)
        states, pooled = self._contexts([each.text for each in drawn])
        added = {}
        if self.found.facts.knows_sizes:
            ids = [self.crops[each.name].time_ids for each in drawn]
            added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor(ids).to(pooled)}}
        prediction = self.model.network(sample, timesteps, encoder_hidden_states=states, **added, return_dict=False)[0]
        target = target_of(self.scheduler, latents, noise, timesteps)
        loss: Tensor = (prediction.float() - target).square().mean()
        return loss

    def _contexts(self, texts: Sequence[str]) -> tuple[Tensor, Any]:
        """Return the states (n, L, D) and the pooled embeddings (n, P) of captions."""
        if self.trains_text:
            return text_context.embed(self.model, texts)
        with torch.no_grad():
            if len({self._embedded(each)[0].shape for each in texts}) > 1:  # they have other numbers of chunks
                return text_context.embed(self.model, texts)
            states, pooled = zip(*(self._embedded(each) for each in texts), strict=True)
        return torch.cat(states), None if pooled[0] is None else torch.cat(pooled)

    def _embed(self, text: str) -> tuple[Tensor, Tensor | None]:
        return text_context.embed(self.model, [text])

    def report(self) -> dict[str, object]:
        """Return additional log values."""
        return {"samples": self.step * self.settings.batch}

    def sheet(self, path: Path) -> None:
        """Write pictures of the first captions at fixed seeds, and the captions next to them."""
        texts = self.config.begin.sheet_prompts or list(dict.fromkeys(each.text for each in self.own))
        prompts = [texts[index % len(texts)] for index in range(max(SHEET, len(self.config.begin.sheet_prompts)))]
        drawn = [
            autoencode.decode(self.model, self._sample(each, SHEET_SEED + index)) for index, each in enumerate(prompts)
        ]
        save_sheet(torch.cat(drawn), columns=min(len(drawn), SHEET), path=path)
        (path.parent / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")

    def write(self, path: Path) -> None:
        """Write the LoRA."""
        texts = [each.text for each in self.own]
        adapters.write(path, self.changes, metadata(self.config, self.found, path.stem, texts, len(self.of_class)))


def begin(config: RunConfig, team: Team) -> LoraRun:
    """Return the run at its first step, with the pictures that it has already encoded."""
    assert config.begin.base is not None
    found = located.find(config.begin.base)
    dtype = torch.bfloat16 if team.autocasts else torch.float32
    model = loading.load(found.source, name=found.entry.name, device=team.device, dtype=dtype)
    model = layout.arrange(model)
    recomputes = config.begin.gradient_checkpointing
    if recomputes is None:
        recomputes = sum(each.numel() for each in model.network.parameters()) > LARGE
    if recomputes:
        model.network.enable_gradient_checkpointing()
    run = LoraRun(config, found, model, team)
    run.load_latents()
    return run


def draw(examples: Sequence[Example], crops: Mapping[str, Crop], count: int, rng: np.random.Generator) -> list[Example]:
    """Return `count` random pictures of one size, the size of a random one. They repeat only if there are fewer."""
    first = examples[int(rng.integers(len(examples)))]
    alike = [each for each in examples if crops[each.name].size == crops[first.name].size]
    return [alike[index] for index in rng.choice(len(alike), size=count, replace=count > len(alike))]


def _of_class(config: RunConfig) -> Iterator[Example]:
    """Yield the pictures of the class: those of the user's folder, or else those that the model makes."""
    prompts = config.begin.class_prompts
    if config.begin.class_data is not None:
        for index, row in enumerate(config.class_rows()):
            yield Example(f"class{index}", row.text, row)
    elif prompts:
        assert isinstance(config.settings, LoraTraining)
        for index in range(config.settings.class_pictures):
            yield Example(f"class{index}", prompts[index % len(prompts)], seed=index)
