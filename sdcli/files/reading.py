"""Reads the bytes of input files, and converts the errors of those who decode them. Knows nothing of their content."""

from __future__ import annotations

import logging
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdcli.errors import InputError, SdcliError
from sdcli.recipe.bounds import MAX_IMAGE_PIXELS, megapixels

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"
_OWN = re.compile(r"-|/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")
MAX_FILE_BYTES = 512 * 1024**2
TOO_LARGE_HINT = f"the limit is {megapixels(MAX_IMAGE_PIXELS)}; resize it"


def is_stream_name(path: str) -> bool:
    """Whether a path means something else in each process: `-` and descriptors."""
    return _OWN.fullmatch(path) is not None


def is_stream(path: str | Path, directory: Path = Path()) -> bool:
    """Whether a file can be read only once, or only by this process: stdin (`-`), a pipe, a FIFO, a device."""
    if is_stream_name(str(path)):
        return True
    try:
        mode = (directory / path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def file_bytes(path: str | Path, directory: Path = Path()) -> bytes:
    """Return the content of a file; a relative `path` counts from `directory`, and `-` is stdin.

    Raises InputError if it cannot be read, or is too large.
    """
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with (directory / path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}", "give the path of a picture file") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MiB", "give a smaller picture file")
    return data


@dataclass(frozen=True)
class Files:
    """Reads files, each stream once. Relative paths count from `directory`.

    `streams` has the content of streams by their path: what was read, and what was read before or elsewhere.
    """

    directory: Path = Path()
    streams: dict[str, bytes] = field(default_factory=dict)

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises what `file_bytes` raises."""
        if path not in self.streams:
            data = file_bytes(path, self.directory)
            if not is_stream(path, self.directory):
                return data
            self.streams[path] = data
        return self.streams[path]


@contextmanager
def decoding(name: str | Path) -> Iterator[None]:
    """Convert Pillow's errors about the picture `name` to InputError, and hide its warnings and log.

    Its readers raise any exception for a damaged file: OSError and SyntaxError, but also RuntimeError and IndexError.
    """
    from PIL import Image, UnidentifiedImageError

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise its log goes to stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual but readable files
            yield
    except SdcliError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{name} has too many pixels", TOO_LARGE_HINT) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not a picture, or its header is damaged", "give a PNG, JPEG or WebP file"
        ) from error
    except Exception as error:
        raise InputError(
            f"{name} is truncated or damaged: {error}", "get the file again, or open and save it with another tool"
        ) from error


def check_size(image: Image.Image, name: str | Path) -> None:
    """Raise InputError for an image that is too large, or in a format that needs another program."""
    pixels = image.width * image.height
    if pixels > MAX_IMAGE_PIXELS:
        size = f"{image.width}×{image.height}, {megapixels(pixels)}"
        raise InputError(f"{name} has too many pixels: {size}", TOO_LARGE_HINT)
    if image.format == "EPS":  # Pillow runs Ghostscript
        raise InputError(f"{name} is an EPS file, which is not supported", "convert it to PNG, JPEG or WebP")
