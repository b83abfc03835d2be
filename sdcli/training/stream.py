"""Streams rendered scenes as tensors, in chunks from worker processes. Does not depend on models.

Each phase of training has its kind of chunk. A worker keeps painted backdrops and reuses them for most scenes: painting
a place takes longer than placing subjects on it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from sdcli.training import reading, world
from sdcli.training.captions import caption
from sdcli.training.judge import targets_of
from sdcli.training.masks import draw_mask, plan_mask
from sdcli.training.parts import read_tokenizer, tokenize
from sdcli.training.places import BACKGROUNDS, PLACES, paint
from sdcli.training.world import Backdrop, Rendering, Scene, Sprites, Vocabulary

KINDS = ("pictures", "answers", "captions", "text-to-image", "inpaint", "semantic")
CHUNK = 32
CAPTIONS = 3
"""Captions per scene; each training step uses one of them."""
VIEWS = 12
"""Backdrops that a worker keeps of each place and time. After that, a share of REPAINTED scenes gets a new one."""
REPAINTED = 0.05

Chunk = dict[str, Tensor]


@dataclass(frozen=True)
class ChunkSettings:
    """The settings of a stream; `tokenizer` is a folder, required for captions."""

    sprites: Path
    kind: str
    vocabulary: Vocabulary = world.KIT
    tokenizer: Path | None = None
    seed: int = 1
    held_out: bool = False


class Backdrops:
    """Painted backdrops, by place and time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.bank: dict[tuple[str, str], list[Backdrop]] = defaultdict(list)

    def of(self, scene: Scene) -> Backdrop:
        """Return a backdrop for a scene: a new one until there are VIEWS, then mostly one of these."""
        if scene.place not in PLACES and scene.place not in BACKGROUNDS:  # a mixed place: too many combinations to keep
            return paint_for(scene)
        views = self.bank[scene.place, scene.time]
        if len(views) < VIEWS or self.rng.uniform() < REPAINTED:
            painted = paint_for(scene)
            if len(views) < VIEWS:
                views.append(painted)
            else:
                views[self.rng.integers(VIEWS)] = painted
            return painted
        return views[self.rng.integers(VIEWS)]


def paint_for(scene: Scene) -> Backdrop:
    """Paint a new backdrop for a scene."""
    return paint(scene.place, np.random.default_rng(scene.seed), world.SIZE, scene.time)


class Scenes(IterableDataset[Chunk]):
    """The unlimited chunks of these settings; no two workers have the same scenes."""

    def __init__(self, settings: ChunkSettings, chunk: int = CHUNK) -> None:
        self.settings, self.chunk = settings, chunk

    def __iter__(self) -> Iterator[Chunk]:
        """Yield chunks of `chunk` scenes."""
        settings, info = self.settings, get_worker_info()
        rng = np.random.default_rng([settings.seed, 0 if info is None else info.id])
        sprites = world.sprites_of(settings.sprites, settings.vocabulary) if settings.kind != "captions" else {}
        tokenizer = None if settings.tokenizer is None else read_tokenizer(settings.tokenizer)
        backdrops = Backdrops(rng)
        drawn = world.scenes(int(rng.integers(2**62)), settings.vocabulary, held_out=settings.held_out)
        while True:
            yield chunk_of(settings, list(islice(drawn, self.chunk)), sprites, tokenizer, backdrops, rng)


def chunk_of(
    settings: ChunkSettings,
    scenes: Sequence[Scene],
    sprites: Sprites,
    tokenizer: CLIPTokenizer | None,
    backdrops: Backdrops,
    rng: np.random.Generator,
) -> Chunk:
    """Return the chunk of n scenes.

    images: uint8 (n, 3, 256, 256); ids: int16 (n, CAPTIONS, 77), or (n, 77) for "captions"; masks and maps: uint8 (n,
    256, 256), the mask to inpaint and class indices; for "answers", the targets of the judge; for "captions", the
    layout.
    """
    kind, vocabulary = settings.kind, settings.vocabulary
    if kind == "captions":
        assert tokenizer is not None
        ids = tokenize(tokenizer, [caption(scene, rng) for scene in scenes])
        return {"ids": ids.short(), **reading.layout_of(scenes, vocabulary)}
    renderings = [world.render(scene, sprites, backdrops.of(scene)) for scene in scenes]
    chunk = {"images": stacked([np.moveaxis(rendering.image, -1, 0) for rendering in renderings])}
    if kind in ("answers", "semantic"):
        chunk["maps"] = stacked([rendering.segmentation for rendering in renderings])
    if kind == "answers":
        chunk |= targets_of(scenes, vocabulary)
    if kind == "inpaint":
        scenes, masks = masked(scenes, renderings, rng)
        chunk["masks"] = stacked(masks)
    if kind in ("text-to-image", "inpaint", "semantic"):
        assert tokenizer is not None
        words = [caption(scene, rng) for scene in scenes for _ in range(CAPTIONS)]
        chunk["ids"] = tokenize(tokenizer, words).short().unflatten(0, (len(scenes), CAPTIONS))
    return chunk


def masked(
    scenes: Sequence[Scene], renderings: Sequence[Rendering], rng: np.random.Generator
) -> tuple[list[Scene], list[np.ndarray]]:
    """Return, for each scene, the scene of its caption and a mask to inpaint.

    The scene of the caption has only the masked subject, if the mask is around one.
    """
    captioned, masks = [], []
    for scene, rendering in zip(scenes, renderings, strict=True):
        plan = plan_mask(len(rendering.masks), rng)
        masks.append(draw_mask(plan, rendering.masks, rendering.image.shape[:2], rng).astype(np.uint8))
        captioned.append(scene if plan.subject is None else world.only(scene, plan.subject))
    return captioned, masks


def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stack arrays of the same shape as one tensor."""
    return torch.from_numpy(np.stack(arrays))


def stream(settings: ChunkSettings, workers: int, chunk: int = CHUNK) -> Iterator[Chunk]:
    """Yield chunks, prepared by `workers` processes in advance; with 0 workers, in this process."""
    ahead = 4 if workers else None
    return iter(DataLoader(Scenes(settings, chunk), batch_size=None, num_workers=workers, prefetch_factor=ahead))
