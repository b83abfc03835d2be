"""Sources of training pictures: the synthetic world or a user's folder, with the same interface.

An item is the description of a picture before it is rendered or read. The items of a source have a fixed order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from sdcli.errors import InputError
from sdcli.files import pictures
from sdcli.training import world
from sdcli.training.captions import caption
from sdcli.training.imagefolder import Row, where


@dataclass(frozen=True)
class Picture:
    """A training picture.

    image: uint8 (H, W, 3); masks: bool (subjects, H, W); segmentation: uint8 (H, W) class indices, or None.
    """

    image: np.ndarray
    masks: np.ndarray
    segmentation: np.ndarray | None = None


class Source(Protocol):
    """A sequence of items, with their pictures and captions."""

    @property
    def size(self) -> int | None:
        """The number of items, None if unlimited."""

    def items(self, process: int = 0, processes: int = 1) -> Iterator[Any]:
        """Yield the items of this process, in order. No two processes have the same items."""

    def draw(self, rng: np.random.Generator, count: int) -> list[Any]:
        """Return random items."""

    def picture(self, item: Any) -> Picture:
        """Return the picture of an item. Raises InputError if it cannot be read."""

    def caption(self, item: Any, rng: np.random.Generator) -> str:
        """Return one of the captions of an item."""

    def subjects(self, item: Any) -> int:
        """Return the number of subjects with a mask."""

    def only(self, item: Any, subject: int) -> Any:
        """Return the item with only one of its subjects, for a caption of that subject."""


class World:
    """The unlimited scenes of the synthetic world for a seed, with masks of subjects and segmentation maps."""

    size = None

    def __init__(self, sprites: world.Sprites, seed: int, vocabulary: world.Vocabulary = world.KIT) -> None:
        self.sprites, self.seed, self.vocabulary = sprites, seed, vocabulary

    def items(self, process: int = 0, processes: int = 1) -> Iterator[world.Scene]:
        """Yield scenes; each process has its own seed."""
        return world.scenes(self.seed + 1000 * process, self.vocabulary)

    def draw(self, rng: np.random.Generator, count: int) -> list[world.Scene]:
        """Return new scenes."""
        return list(islice(world.scenes(int(rng.integers(2**62)), self.vocabulary), count))

    def picture(self, item: world.Scene) -> Picture:
        """Render the scene."""
        rendering = world.render(item, self.sprites)
        return Picture(rendering.image, rendering.masks, rendering.segmentation)

    def caption(self, item: world.Scene, rng: np.random.Generator) -> str:
        """Return one of the captions of the scene."""
        return caption(item, rng)

    def subjects(self, item: world.Scene) -> int:
        """Return the number of subjects in the scene."""
        return len(item.placements)

    def only(self, item: world.Scene, subject: int) -> world.Scene:
        """Return the scene with only one subject."""
        return world.only(item, subject)


class ImageFolder:
    """The pictures of a folder, cropped to the central square and resized. The seed shuffles their order.

    Segmentation maps have class indices below `classes`.
    """

    def __init__(self, rows: Sequence[Row], side: int, seed: int, classes: int = 0) -> None:
        self.rows, self.side, self.size, self.classes = rows, side, len(rows), classes
        self.order = np.random.default_rng(seed).permutation(len(rows))

    def items(self, process: int = 0, processes: int = 1) -> Iterator[Row]:
        """Yield each picture once, then repeat."""
        own = [self.rows[index] for index in self.order[process::processes]]
        return cycle(own or list(self.rows))

    def draw(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Return random pictures."""
        return [self.rows[index] for index in rng.integers(len(self.rows), size=count)]

    def picture(self, item: Row) -> Picture:
        """Read the picture, and its map if the folder has maps."""
        image = np.asarray(self._fit(read_image(item, item.image).convert("RGB"), Image.Resampling.LANCZOS))
        segmentation = None if item.segmentation is None else self._map(item, item.segmentation)
        return Picture(image, np.zeros((0, self.side, self.side), dtype=bool), segmentation)

    def _map(self, item: Row, path: Path) -> np.ndarray:
        drawn = read_image(item, path)
        if drawn.mode not in ("L", "P"):
            problem = f"{where(item)}: the map {path.name} has mode {drawn.mode}"
            raise InputError(problem, "a map must be an 8-bit greyscale or palette image of class indices")
        indices = np.asarray(self._fit(drawn, Image.Resampling.NEAREST))
        if indices.max() >= self.classes:
            problem = f"{where(item)}: the map {path.name} has the index {indices.max()}"
            raise InputError(problem, f"classes.json lists the indices 0 … {self.classes - 1}")
        return indices

    def _fit(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        return ImageOps.fit(image, (self.side, self.side), resampling)

    def caption(self, item: Row, rng: np.random.Generator) -> str:
        """Return the picture's text."""
        return item.text

    def subjects(self, item: Row) -> int:
        """Return 0: there are no masks."""
        return 0

    def only(self, item: Row, subject: int) -> Row:
        """Return the item. Not called, because there are no masks."""
        return item


def read_image(row: Row, path: Path) -> Image.Image:
    """Read an image and apply its EXIF orientation. Raises InputError with the line and the file."""
    try:
        return pictures.load(path.read_bytes(), "the file").picture
    except (OSError, InputError) as error:
        reason = error.message if isinstance(error, InputError) else error.strerror
        problem = f"{where(row)}: cannot read the image {path.name}: {reason}"
        raise InputError(problem, "replace the file or remove the line") from error
