"""Pictures encoded once, and trained on many times. What is in a pool depends on its size only.

Knows nothing of losses or steps. A task says what is kept of a picture beside its latents.
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
"""Pictures that are encoded together. A resumed run must divide them alike: bfloat16 rounds by the batch."""


class Encoder:
    """A frozen autoencoder, from pictures to scaled latents."""

    def __init__(self, vae: Any, team: Team) -> None:
        self.vae, self.team = vae, team

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The means (n, C, h, w) of the latents of images (n, 3, H, W) in -1 … 1, scaled; float32, on the CPU."""
        with self.team.autocast():
            encoded = self.vae.encode(images.to(self.team.device))
        means = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        scaled: Tensor = means.float().cpu() * self.vae.config.scaling_factor
        return scaled


class Task(Protocol):
    """What a U-Net learns to draw by, beside text."""

    @property
    def channels(self) -> int:
        """Channels beside the noisy latents."""

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """What of an item its captions are made of."""

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """What is kept of pictures: tensors of n rows, `latents` (n, C, h, w) among them."""

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """The channels (n, `channels`, h, w) beside the noisy latents, float32, of what was kept."""

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """What the loss counts at each place of the latents, (n, 1, h, w); None is 1 everywhere."""

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Pictures (n, 3, H, W) of what the U-Net draws by beside text; `decode` makes them of latents."""


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) arrays to one float tensor (n, 3, h, w) in -1 … 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pool:
    """A task's view of a source's items, one after the other, as far as it has been encoded."""

    def __init__(self, source: Source, task: Task, encoder: Encoder, seed: int, team: Team) -> None:
        self.source, self.task, self.encoder, self.seed, self.team = source, task, encoder, seed, team
        self.upcoming: Iterator[Any] = source.items(team.process, team.processes)
        self.items: list[Any] = []
        self.kept: dict[str, list[Tensor]] = {}
        self.saved = 0

    def __len__(self) -> int:
        return len(self.items)

    def limit(self, size: int) -> int:
        """`size`, or as many items as this process can have where they are fewer."""
        return size if self.source.size is None else max(1, min(size, self.source.size // self.team.processes))

    def grow(self, size: int) -> None:
        """Render and encode until there are at least `size`, a chunk or what is left of it at a time."""
        while len(self) < size:
            self.grow_by(min(CHUNK, size - len(self)))

    def grow_by(self, count: int) -> None:
        """Render and encode `count` more."""
        numbers = range(len(self), len(self) + count)
        pictures = [self.source.picture(item) for item in self._next(count)]
        encoded = self.task.encode(self.encoder, pictures, [self._rng(number) for number in numbers])
        for name, rows in encoded.items():
            self.kept.setdefault(name, []).extend(rows)

    def _next(self, count: int) -> list[Any]:
        """The next `count` items; what their captions are made of is kept."""
        drawn = list(islice(self.upcoming, count))
        for item in drawn:
            self.items.append(self.task.describe(self.source, item, self._rng(len(self))))
        return drawn

    def _rng(self, number: int) -> np.random.Generator:
        """The draws of item `number`, which describing and encoding both begin with."""
        return np.random.default_rng([self.seed, self.team.process, number])

    def save(self, folder: Path) -> None:
        """Keep what is new since the last time, so that a resumed run need not encode it again."""
        if len(self) > self.saved:
            name = f"process{self.team.process}-{self.saved:07}.pt"
            checkpoint.save(folder / name, self.take(range(self.saved, len(self))))
            self.saved = len(self)

    def load(self, folder: Path) -> None:
        """Take what `save` kept."""
        for file in sorted(folder.glob(f"process{self.team.process}-*.pt")):
            block = checkpoint.load(file)
            for name, rows in block.items():
                self.kept.setdefault(name, []).extend(rows)
            self._next(len(block["latents"]))
        self.saved = len(self)

    def take(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """What was kept of these items, stacked."""
        return {name: torch.stack([rows[index] for index in chosen]) for name, rows in self.kept.items()}

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """One of the captions of an item."""
        return self.source.caption(self.items[index], rng)
