"""Reads segmentation maps as class indices. Knows PIL and numpy, nothing of models.

- A colour image: each pixel is the class of its colour, the first one if two classes have the same colour.
- A greyscale image of 1, 8 or 16 bits: each pixel is the index of a class.
- A palette image: its colours are used if at least half of those in use belong to classes, or with `snap`; otherwise
its
  indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdcli.errors import InputError
from sdcli.files import pictures
from sdcli.files.palette import Class
from sdcli.recipe.warning import RecipeWarning

Indices = NDArray[np.uint8]
"""Class indices, (H, W)."""


@dataclass(frozen=True)
class SegmentationMap:
    """A segmentation map. `snapped` pixels had unknown colours, and got the nearest class."""

    indices: Indices
    sha256: str
    snapped: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.indices.shape[1], self.indices.shape[0]


@dataclass(frozen=True)
class MapPicture:
    """A map image, before its colours are converted to classes."""

    picture: Image.Image
    path: str
    sha256: str
    warnings: tuple[RecipeWarning, ...] = ()


def open_map(path: str, recorded: str | None = None, directory: Path = Path()) -> MapPicture:
    """Open the image at `path`, which can be relative to `directory`.

    Raises InputError for a file that is not an image, differs from the `recorded` sha256, or is transparent.
    """
    opened = pictures.open_picture(path, recorded, directory, field="segmentation_map", decoder=pictures.load)
    picture, sha256 = opened.picture, opened.sha256
    if picture.has_transparency_data:
        _check_opaque(picture, path)
    opaque = picture.convert("L") if picture.mode == "LA" else picture
    return MapPicture(opaque, path, sha256, opened.warnings)


def classify(of: MapPicture, classes: Sequence[Class], *, snap: bool = False) -> SegmentationMap:
    """Convert an image to a map with these `classes`.

    With `snap` an unknown colour becomes the class with the nearest colour (Euclidean, in RGB).

    Raises InputError for an invalid index and, without `snap`, an unknown colour, with its position, count and nearest
    class.
    """
    picture, path, sha256 = of.picture, of.path, of.sha256
    if picture.mode in ("1", "L") or picture.mode.startswith("I"):
        return SegmentationMap(_of_indices(np.asarray(picture).astype(np.int64), classes, path), sha256)
    if picture.mode == "P" and not snap and _says_indices(picture, classes):
        return SegmentationMap(np.asarray(picture), sha256)
    indices, snapped = _of_colours(picture.convert("RGB"), classes, snap, path)
    return SegmentationMap(indices, sha256, snapped)


def fit(indices: Indices, size: tuple[int, int]) -> Indices:
    """Resize the map to `size` (width, height) with nearest-neighbour sampling; keeps the aspect ratio and crops."""
    return np.array(ImageOps.fit(Image.fromarray(indices), size, Image.Resampling.NEAREST))


def colours(indices: Indices, classes: Sequence[Class]) -> Image.Image:
    """Return the map as an RGB image in the colours of the classes."""
    table = np.array([each.color for each in classes], dtype=np.uint8)
    return Image.fromarray(table[indices])


def _check_opaque(picture: Image.Image, path: str) -> None:
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    rows, columns = np.nonzero(alpha < 255)
    if len(rows):
        raise InputError(
            f"{path} is transparent in {_pixels(len(rows))}, the first at {columns[0]}, {rows[0]}",
            "fill them with the colours of classes, which sdcli synthesize --classes lists",
        )


def _of_indices(values: NDArray[np.int64], classes: Sequence[Class], path: str) -> Indices:
    wrong = (values < 0) | (values >= len(classes))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        worst = values[row, column]
        raise InputError(
            f"{path} has the index {worst} of no class, in {_pixels(int((values == worst).sum()))}, "
            f"the first at {column}, {row}",
            f"a greyscale map has the indices 0 … {len(classes) - 1}; save a map of colours as RGB",
        )
    return values.astype(np.uint8)


def _says_indices(picture: Image.Image, classes: Sequence[Class]) -> bool:
    """Whether the indices of a palette image are used, rather than its colours."""
    used = np.unique(np.asarray(picture))
    colours = np.asarray(picture.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    known = np.isin(_codes(colours[used[used < len(colours)]]), _codes_of(classes))
    return bool(used.max() < len(classes) and known.sum() * 2 < len(used))


def _of_colours(picture: Image.Image, classes: Sequence[Class], snap: bool, path: str) -> tuple[Indices, int]:
    """Return the class indices of an RGB image, and the number of snapped pixels."""
    pixels = np.asarray(picture)
    codes = _codes(pixels.astype(np.int64))
    found, first, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    distances = _distances(found, classes)
    nearest = distances.argmin(axis=1)
    off = distances[np.arange(len(found)), nearest] > 0
    if off.any() and not snap:
        worst = int(np.where(off, counts, 0).argmax())
        row, column = divmod(int(first[worst]), pixels.shape[1])
        more, in_them = int(off.sum()) - 1, _pixels(int(counts[off].sum() - counts[worst]))
        also = f", and {more} more {'colour' if more == 1 else 'colours'} of none in {in_them}" if more else ""
        near = classes[int(nearest[worst])]
        raise InputError(
            f"{path} has a colour of no class: #{found[worst]:06x}, in {_pixels(int(counts[worst]))}, "
            f"the first at {column}, {row}{also}",
            f"the nearest class is {near.name}, {near.hex}; take the nearest of each with --snap, "
            "or see sdcli synthesize --classes",
        )
    return nearest[inverse].reshape(codes.shape).astype(np.uint8), int(counts[off].sum())


def _distances(codes: NDArray[np.int64], classes: Sequence[Class]) -> NDArray[np.int64]:
    """Return the squared distances of colours (rows) from classes (columns)."""
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    table = np.array([each.color for each in classes], dtype=np.int64)
    squares: Any = (found[:, None, :] - table[None]) ** 2
    distances: NDArray[np.int64] = squares.sum(axis=2)
    return distances


def _codes_of(classes: Sequence[Class]) -> NDArray[np.int64]:
    return _codes(np.array([each.color for each in classes], dtype=np.int64))


def _codes(colours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Convert colours (…, 3) to numbers 0xRRGGBB."""
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count:,} pixels"
