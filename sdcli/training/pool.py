"""Pictures that are encoded once and used for training many times. The content of a pool depends only on its size.

Does not depend on losses or steps. A task defines what is kept of a picture besides its latents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sdcli.training import checkpoint
from sdcli.training.sources import Picture, Source
from sdcli.training.team import Team

CHUNK = 16
"""Pictures encoded together. A resumed run must use the same chunks: in bfloat16, results depend on the batch."""


class Encoder:
    """A frozen autoencoder that encodes pictures to scaled latents."""

    def __init__(self, vae: Any, team: Team) -> None:
        self.vae, self.team = vae, team

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the scaled means of the latents (n, C, h, w), float32, on the CPU.

        Images are (n, 3, H, W) in -1 … 1.
        """
        with self.team.autocast():
            encoded = self.vae.encode(images.to(self.team.device))
        means = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        scaled: Tensor = means.float().cpu() * self.vae.config.scaling_factor
        return scaled


class Task(Protocol):
    """What a U-Net is conditioned on, besides text."""

    @property
    def channels(self) -> int:
        """The number of channels besides the noisy latents."""

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """Return the data of an item that captions are made from."""

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """What is kept of pictures: tensors of n rows, `latents` (n, C, h, w) among them."""

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return the channels (n, `channels`, h, w) besides the noisy latents, float32, from the pool's tensors."""

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return the weight of the loss for each latent, (n, 1, h, w); None for 1 everywhere."""

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return pictures (n, 3, H, W) of the condition, or None; `decode` decodes latents."""


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Convert uint8 (h, w, 3) arrays to a float tensor (n, 3, h, w) in -1 … 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pool:
    """The encoded items of a source for a task, in order."""

    def __init__(self, source: Source, task: Task, encoder: Encoder, seed: int, team: Team) -> None:
        self.source, self.task, self.encoder, self.seed, self.team = source, task, encoder, seed, team
        self.upcoming: Iterator[Any] = source.items(team.process, team.processes)
        self.items: list[Any] = []
        self.kept: dict[str, list[Tensor]] = {}
        self.saved = 0

    def __len__(self) -> int:
        return len(self.items)

    def limit(self, size: int) -> int:
        """Return `size`, or the number of items that this process can have if that is smaller."""
        return size if self.source.size is None else max(1, min(size, self.source.size // self.team.processes))

    def grow(self, size: int) -> None:
        """Render and encode until there are at least `size` items, one chunk or less per iteration."""
        while len(self) < size:
            self.grow_by(min(CHUNK, size - len(self)))

    def grow_by(self, count: int) -> None:
        """Render and encode `count` more items."""
        numbers = range(len(self), len(self) + count)
        pictures = [self.source.picture(item) for item in self._next(count)]
        encoded = self.task.encode(self.encoder, pictures, [self._rng(number) for number in numbers])
        for name, rows in encoded.items():
            self.kept.setdefault(name, []).extend(rows)

    def _next(self, count: int) -> list[Any]:
        """Return the next `count` items, and keep the data for their captions."""
        drawn = list(islice(self.upcoming, count))
        for item in drawn:
            self.items.append(self.task.describe(self.source, item, self._rng(len(self))))
        return drawn

    def _rng(self, number: int) -> np.random.Generator:
        """Return the generator of item `number`; describing and encoding both start with it."""
        return np.random.default_rng([self.seed, self.team.process, number])

    def save(self, folder: Path) -> None:
        """Write the items encoded since the last save, so that a resumed run need not encode them again."""
        if len(self) > self.saved:
            name = f"process{self.team.process}-{self.saved:07}.pt"
            checkpoint.save(folder / name, self.take(range(self.saved, len(self))))
            self.saved = len(self)

    def load(self, folder: Path) -> None:
        """Load the items that `save` wrote."""
        for file in sorted(folder.glob(f"process{self.team.process}-*.pt")):
            block = checkpoint.load(file)
            for name, rows in block.items():
                self.kept.setdefault(name, []).extend(rows)
            self._next(len(block["latents"]))
        self.saved = len(self)

    def take(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Return the kept tensors of these items, stacked."""
        return {name: torch.stack([rows[index] for index in chosen]) for name, rows in self.kept.items()}

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """Return one of the captions of an item."""
        return self.source.caption(self.items[index], rng)
