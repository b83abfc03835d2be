"""Where pictures come from: the synthetic world, or a folder of a user's own. Both look alike to the stages.

An item is what a source knows of a picture before it is rendered or read; the items of a source come in a fixed order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from sdcli.errors import InputError
from sdcli.training import world
from sdcli.training.captions import caption
from sdcli.training.imagefolder import Row, where


@dataclass(frozen=True)
class Picture:
    """image: uint8 (H, W, 3); masks: bool (subjects, H, W); segmentation: uint8 (H, W) class numbers, or None."""

    image: np.ndarray
    masks: np.ndarray
    segmentation: np.ndarray | None = None


class Source(Protocol):
    """Items in order, and what they look like."""

    @property
    def size(self) -> int | None:
        """How many items there are, None where they are endless."""

    def items(self, process: int = 0, processes: int = 1) -> Iterator[Any]:
        """This process' items, in their order; no two processes have the same."""

    def draw(self, rng: np.random.Generator, count: int) -> list[Any]:
        """Items drawn at random."""

    def picture(self, item: Any) -> Picture:
        """What an item looks like. Raises InputError where it cannot be read."""

    def caption(self, item: Any, rng: np.random.Generator) -> str:
        """One of the captions of an item."""

    def subjects(self, item: Any) -> int:
        """How many subjects an item has whose masks are known."""

    def only(self, item: Any, subject: int) -> Any:
        """The item with one of its subjects alone, for a caption of that subject."""


class World:
    """The synthetic world of a seed: endless, with the masks of its subjects and a map of its classes."""

    size = None

    def __init__(self, sprites: world.Sprites, seed: int, vocabulary: world.Vocabulary = world.KIT) -> None:
        self.sprites, self.seed, self.vocabulary = sprites, seed, vocabulary

    def items(self, process: int = 0, processes: int = 1) -> Iterator[world.Scene]:
        """The scenes of a seed that is this process' own."""
        return world.scenes(self.seed + 1000 * process, self.vocabulary)

    def draw(self, rng: np.random.Generator, count: int) -> list[world.Scene]:
        """Fresh scenes."""
        return list(islice(world.scenes(int(rng.integers(2**62)), self.vocabulary), count))

    def picture(self, item: world.Scene) -> Picture:
        """The scene rendered."""
        rendering = world.render(item, self.sprites)
        return Picture(rendering.image, rendering.masks, rendering.segmentation)

    def caption(self, item: world.Scene, rng: np.random.Generator) -> str:
        """The scene in words."""
        return caption(item, rng)

    def subjects(self, item: world.Scene) -> int:
        """How many subjects stand in the scene."""
        return len(item.placements)

    def only(self, item: world.Scene, subject: int) -> world.Scene:
        """The scene with one subject."""
        return world.only(item, subject)


class ImageFolder:
    """A folder's pictures, cropped about their middle and resized to a square; the order is shuffled by the seed.

    Maps hold class indices below `classes`.
    """

    def __init__(self, rows: Sequence[Row], side: int, seed: int, classes: int = 0) -> None:
        self.rows, self.side, self.size, self.classes = rows, side, len(rows), classes
        self.order = np.random.default_rng(seed).permutation(len(rows))

    def items(self, process: int = 0, processes: int = 1) -> Iterator[Row]:
        """Every picture once, then over again."""
        own = [self.rows[index] for index in self.order[process::processes]]
        return cycle(own or list(self.rows))

    def draw(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Pictures drawn at random."""
        return [self.rows[index] for index in rng.integers(len(self.rows), size=count)]

    def picture(self, item: Row) -> Picture:
        """The picture, and its map if the folder has maps."""
        image = np.asarray(self._fit(read_image(item, item.image).convert("RGB"), Image.Resampling.LANCZOS))
        segmentation = None if item.segmentation is None else self._map(item, item.segmentation)
        return Picture(image, np.zeros((0, self.side, self.side), dtype=bool), segmentation)

    def _map(self, item: Row, path: Path) -> np.ndarray:
        drawn = read_image(item, path)
        if drawn.mode not in ("L", "P"):
            problem = f"{where(item)}: the map {path.name} is of mode {drawn.mode}"
            raise InputError(problem, "a map is an 8-bit greyscale or palette image whose values are class indices")
        indices = np.asarray(self._fit(drawn, Image.Resampling.NEAREST))
        if indices.max() >= self.classes:
            problem = f"{where(item)}: the map {path.name} has the index {indices.max()}"
            raise InputError(problem, f"classes.json lists the indices 0 … {self.classes - 1}")
        return indices

    def _fit(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        return ImageOps.fit(image, (self.side, self.side), resampling)

    def caption(self, item: Row, rng: np.random.Generator) -> str:
        """The picture's text."""
        return item.text

    def subjects(self, item: Row) -> int:
        """None whose mask is known."""
        return 0

    def only(self, item: Row, subject: int) -> Row:
        """Never asked for."""
        return item


def read_image(row: Row, path: Path) -> Image.Image:
    """A whole image, upright. Raises InputError, naming line and file, where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            upright: Image.Image = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"{where(row)}: cannot read the image {path.name}: {error}"
        raise InputError(problem, "replace the file, or take the line out") from error
    return upright
