"""Pictures for a sheet: their recipes, or what other tools recorded, the command lines, and small copies of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import InputError, SdcliError

if TYPE_CHECKING:
    from PIL import Image

    from sdcli.files.metadata import PictureInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of the files in a directory that are pictures."""
GENERATOR = "sdcli sheet"
"""What sheets have near their start, to be recognised."""


@dataclass(frozen=True)
class Entry:
    """A picture: its path, its size, the flat keys of its recipe, and its command line, if there is one.

    `image` is a small copy for a PNG, and `webp` one for a page, as the bytes of a file; either can be absent.
    """

    path: str
    size: tuple[int, int]
    values: Mapping[str, Any]
    command: str | None
    writer: str
    image: Image.Image | None = None
    webp: bytes = b""


def paths_in(given: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    """Return the paths of pictures: those given, and the pictures in directories that are given, by name.

    Sheets in directories are skipped, and so are files of `but`. Raises InputError for a directory that cannot be read.
    """
    found: list[str] = []
    apart = {os.path.realpath(each) for each in but}
    for each in given:
        if not Path(each).is_dir():
            found.append(each)
            continue
        try:
            names = sorted((entry.name for entry in os.scandir(each)), key=_natural)
        except OSError as error:
            hint = "give files, or a directory of pictures"
            raise InputError(f"cannot read {each}: {error.strerror}", hint) from error
        inside = [os.path.join(each, name) for name in names if name.lower().endswith(SUFFIXES)]  # noqa: PTH118
        found += [path for path in inside if not Path(path).name.startswith(".") and not is_sheet(path)]
    return [path for path in dict.fromkeys(found) if os.path.realpath(path) not in apart]


def is_sheet(path: str) -> bool:
    """Whether a file is a sheet that sdcli has written."""
    try:
        with Path(path).open("rb") as file:
            return GENERATOR.encode() in file.read(1024)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Sides:
    """The largest sides of the copies for a PNG and for a page, in pixels; None is no copy."""

    png: int | None
    page: int | None


def read_all(
    paths: Sequence[str], sides: Sides, on_picture: Callable[[int], None] = lambda done: None
) -> Iterator[Entry | SdcliError]:
    """Read pictures in order; an error replaces one that cannot be read.

    `on_picture` is called with the number of those that are done.
    """

    from concurrent.futures import ThreadPoolExecutor

    def read(path: str) -> Entry | SdcliError:
        try:
            return read_one(path, sides)
        except SdcliError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and scaling release the lock of the interpreter
        for done, entry in enumerate(pool.map(read, paths), start=1):
            on_picture(done)
            yield entry


def read_one(path: str, sides: Sides) -> Entry:
    """Read a picture. Raises InputError for a file that is not a picture."""
    from sdcli.files import canvas, metadata, pictures
    from sdcli.files.reading import file_bytes
    from sdcli.planning import replay

    data = file_bytes(path)
    found = metadata.read(path, data)
    image = canvas.opaque(pictures.decode(data, path).picture)
    return Entry(
        path,
        image.size,
        values_of(found),
        replay.command_of_picture(path, data, found),
        found.writer,
        None if sides.png is None else _copy(image, sides.png),
        b"" if sides.page is None else _webp(_copy(image, sides.page)),
    )


def _copy(image: Image.Image, side: int) -> Image.Image:
    from PIL import Image

    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _webp(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "WebP", quality=84, method=2)
    return buffer.getvalue()


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `fox-2` before `fox-10`."""
    return [
        (int(each), "") if each.isascii() and each.isdecimal() else (-1, each) for each in re.split(r"(\d{1,18})", name)
    ]


def values_of(found: PictureInfo) -> dict[str, Any]:
    """Return the keys of a recipe: sdcli's own, or those of another tool as far as they are known."""
    from sdcli.files import foreign

    if found.recipe is not None:
        return dict(found.recipe)
    translated = foreign.translate(found)
    if translated is not None:
        model = {"model": translated.model} if translated.model else {}
        return {**translated.recipe, **model}
    plain = {key.lower().replace(" ", "_"): value for key, value in found.fields.items()}
    return {**plain, "width": found.width, "height": found.height} if plain else {}
