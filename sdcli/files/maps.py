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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdcli.errors import InputError
from sdcli.files import pictures
from sdcli.files.palette import Class
from sdcli.files.reading import Files, decoding
from sdcli.recipe.warning import RecipeWarning

Indices = NDArray[np.uint8]
"""Class indices, (H, W)."""
Codes = NDArray[np.uint32]
"""Colours as numbers 0xRRGGBB."""
MAX_AT_ONCE = 2**17
"""Pixels whose colours are compared with the classes at once."""


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


def open_map(path: str, recorded: str | None = None, files: Files | None = None) -> MapPicture:
    """Open the image at `path`.

    Raises InputError for a file that is not an image, differs from the `recorded` sha256, or is transparent.
    """
    opened = pictures.open_picture(path, recorded, files or Files(), field="segmentation_map", decoder=pictures.load)
    picture, sha256 = opened.picture, opened.sha256
    with decoding(path):  # a palette image can have no palette
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
        return SegmentationMap(_of_indices(np.asarray(picture), classes, path), sha256)
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
    clear = np.asarray(picture.convert("RGBA").getchannel("A")) < 255
    if clear.any():
        row, column = _first(clear)
        raise InputError(
            f"{path} is transparent in {_pixels(int(clear.sum()))}, the first at {column}, {row}",
            "fill them with the colours of classes, which sdcli synthesize --classes lists",
        )


def _of_indices(values: NDArray[Any], classes: Sequence[Class], path: str) -> Indices:
    wrong = (values < 0) | (values >= len(classes))
    if wrong.any():
        row, column = _first(wrong)
        worst = values[row, column]
        raise InputError(
            f"{path} has the index {worst} of no class, in {_pixels(int((values == worst).sum()))}, "
            f"the first at {column}, {row}",
            f"a greyscale map has the indices 0 … {len(classes) - 1}; save a map of colours as RGB",
        )
    return values.astype(np.uint8)


def _first(where: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the row and the column of the first pixel that is true."""
    row, column = np.unravel_index(int(where.argmax()), where.shape)
    return int(row), int(column)


def _says_indices(picture: Image.Image, classes: Sequence[Class]) -> bool:
    """Whether the indices of a palette image are used, rather than its colours."""
    used = np.flatnonzero(picture.histogram())
    colours = np.asarray(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    known = np.isin(_codes(colours[used[used < len(colours)]]), _codes_of(classes))
    return bool(used.max() < len(classes) and known.sum() * 2 < len(used))


def _of_colours(picture: Image.Image, classes: Sequence[Class], snap: bool, path: str) -> tuple[Indices, int]:
    """Return the class indices of an RGB image, and the number of snapped pixels.

    Works on a few rows at once: numbers of 64 bits for each pixel of a large map would take gigabytes.
    """
    width, height = picture.size
    indices, off = np.zeros((height, width), dtype=np.uint8), np.zeros((height, width), dtype=np.bool_)
    rows = max(1, MAX_AT_ONCE // width)
    for top in range(0, height, rows):
        codes = _codes(np.asarray(picture.crop((0, top, width, min(top + rows, height)))))
        colours, inverse = np.unique(codes, return_inverse=True)
        found, exact = _classes_of(colours, classes, nearest=snap)
        indices[top : top + rows] = found[inverse].reshape(codes.shape)
        off[top : top + rows] = ~exact[inverse].reshape(codes.shape)
    count = int(off.sum())
    if count and not snap:
        raise _unknown_colour(_codes(np.asarray(picture)), off, classes, path)
    return indices, count


def _unknown_colour(codes: Codes, off: NDArray[np.bool_], classes: Sequence[Class], path: str) -> InputError:
    """Return the error about the most frequent one of the colours in `codes` that belong to no class."""
    found, counts = np.unique(codes[off], return_counts=True)
    worst = int(counts.argmax())
    row, column = _first(codes == found[worst])
    more, in_them = len(found) - 1, _pixels(int(counts.sum() - counts[worst]))
    also = f", and {more} more {'colour' if more == 1 else 'colours'} of none in {in_them}" if more else ""
    near = classes[int(_classes_of(found[worst : worst + 1], classes, nearest=True)[0][0])]
    return InputError(
        f"{path} has a colour of no class: #{found[worst]:06x}, in {_pixels(int(counts[worst]))}, "
        f"the first at {column}, {row}{also}",
        f"the nearest class is {near.name}, {near.hex}; take the nearest of each with --snap, "
        "or see sdcli synthesize --classes",
    )


def _classes_of(colours: Codes, classes: Sequence[Class], *, nearest: bool) -> tuple[Indices, NDArray[np.bool_]]:
    """Return the class of each colour, the `nearest` or 0 for an unknown one, and whether it is exact."""
    table = _codes_of(classes)
    order = np.argsort(table, kind="stable")  # of equal colours the first class
    place = np.minimum(np.searchsorted(table[order], colours), len(table) - 1)
    found, exact = order[place].astype(np.uint8), table[order][place] == colours
    if nearest:
        found[~exact] = _distances(colours[~exact], classes).argmin(axis=1)
    return found, exact


def _distances(codes: Codes, classes: Sequence[Class]) -> NDArray[np.int32]:
    """Return the squared distances of colours (rows) from classes (columns)."""
    distances = np.zeros((len(codes), len(classes)), dtype=np.int32)
    for band, shift in enumerate((16, 8, 0)):
        values = (codes >> shift & 255).astype(np.int32)
        table = np.array([each.color[band] for each in classes], dtype=np.int32)
        distances += (values[:, None] - table[None]) ** 2
    return distances


def _codes_of(classes: Sequence[Class]) -> Codes:
    return _codes(np.array([each.color for each in classes], dtype=np.uint8))


def _codes(colours: NDArray[Any]) -> Codes:
    """Convert 8-bit colours (…, 3) to numbers 0xRRGGBB."""
    codes = colours[..., 0].astype(np.uint32)
    for band in (1, 2):
        codes <<= 8
        codes |= colours[..., band]
    return codes


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count:,} pixels"
