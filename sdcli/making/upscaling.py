"""Enlarges pictures: from a picture's file to the PNG of a larger one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdcli.errors import InvalidRecipe, OutOfMemory, UsageError
from sdcli.models.source import Source
from sdcli.recipe.bounds import MAX_IMAGE_PIXELS, check_area, megapixels
from sdcli.recipe.lora import file_stem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdcli.diffusion.upscale import Upscaler
    from sdcli.files.raster import Raster

LANCZOS = "lanczos"
MAX_FACTOR = 32.0
MAX_BETWEEN = 4 * MAX_IMAGE_PIXELS
"""The largest picture that a network gives, before it is reduced to what was asked for."""
DEFAULT_FACTOR = 2.0
"""Of the filter; that of a network is its own."""

OnTile = Callable[[int, int], None]
"""Called with the number of finished tiles and of all tiles."""


@dataclass(frozen=True)
class Enlarger:
    """What enlarges pictures: a filter, or a network from `source`. `name` is its name in metadata."""

    name: str
    source: Source | None = None
    network: Upscaler | None = None
    tile: int = 0

    @property
    def execution(self) -> dict[str, str] | None:
        """The device and the dtype of the network."""
        if self.network is None:
            return None
        return {"device": self.network.device.type, "dtype": str(self.network.dtype).removeprefix("torch.")}

    @property
    def factor(self) -> float:
        """The factor if none is given."""
        return DEFAULT_FACTOR if self.network is None else float(self.network.scale)


@dataclass(frozen=True)
class Target:
    """The factor or the size (width, height) that was asked for; with neither, the factor is the enlarger's."""

    factor: float | None = None
    size: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise UsageError for both, and for a factor or size that no picture can have."""
        if self.factor is not None and self.size is not None:
            raise UsageError("--scale and --size are both given", "omit one of them")
        if self.factor is not None and not 1 < self.factor <= MAX_FACTOR:
            raise UsageError(f"--scale is {self.factor:g}", f"it must be above 1, up to {MAX_FACTOR:g}")
        if self.size is not None:
            check_area(*self.size, MAX_IMAGE_PIXELS, field="size")

    def of(self, size: tuple[int, int], factor: float) -> tuple[int, int]:
        """Return the size for a picture of `size`. Raises InvalidRecipe if it is too large, or not larger."""
        if self.size is None:
            times = self.factor or factor
            wanted = max(1, round(size[0] * times)), max(1, round(size[1] * times))
            check_area(*wanted, MAX_IMAGE_PIXELS, what=f"{times:g} times {size[0]}×{size[1]}", field="scale")
            return wanted
        if any(new < old for new, old in zip(self.size, size, strict=True)) or self.size == size:
            asked = f"{self.size[0]}×{self.size[1]}"
            hint = "give a larger size; sides cannot be smaller than the picture's"
            raise InvalidRecipe(f"the picture is {size[0]}×{size[1]}, which {asked} does not enlarge", hint, "size")
        return self.size


@dataclass(frozen=True)
class Enlarged:
    """A finished picture: the PNG and what it holds."""

    png: bytes
    size: tuple[int, int]
    pixels_sha256: str
    seconds: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load(name: str | None, *, tile: int, device: str, dtype: str, threads: int) -> Enlarger:
    """Load the upscaler of this name; None and `lanczos` are the filter. Raises what locating and loading raise."""
    if name is None or name.lower() == LANCZOS:
        return Enlarger(LANCZOS)
    from sdcli.models.addons import upscaler as addon

    source = addon.locate(name)
    import torch

    from sdcli.diffusion import device as devices
    from sdcli.models.loading import upscaler as loading

    place = torch.device(devices.choose(device))
    torch.set_num_threads(threads or devices.DEFAULT_THREADS)
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    _ = source.sha256  # computed before the file is read
    network = loading.load(source.path, device=place, dtype=wanted)
    source.check_unchanged()
    return Enlarger(file_stem(name), source, network, tile)


def enlarge(
    data: bytes, name: str, by: Enlarger, target: Target, on_tile: OnTile = lambda done, total: None
) -> Enlarged:
    """Enlarge the picture in `data`; `name` is its name in messages.

    Raises InputError for a picture that cannot be read, InvalidRecipe for a size that is too large, OutOfMemory, and
    InvalidPicture.
    """
    from sdcli.files import raster, upscaled

    started = time.perf_counter()
    found = raster.decode(data, name)
    size = target.of(found.size, by.factor)
    info, problem = upscaled.read(name, data)
    made = _in_size(found, by, size, on_tile)
    digest = made.pixels_sha256
    how = upscaled.Upscaling(
        by.name,
        None if by.source is None else by.source.sha256,
        found.size,
        size,
        None if target.size else target.factor or by.factor,
        None if by.network is None else by.tile,
        by.execution,
    )
    png = raster.png(made, upscaled.texts(info, data, how, digest))
    skipped = () if info is None else tuple(each for each in info.skipped)
    warnings = (*(each.message for each in found.warnings), *filter(None, [problem]), *skipped)
    return Enlarged(
        png, size, digest, time.perf_counter() - started, tuple(dict.fromkeys(warnings)), _notes(found, size)
    )


def _in_size(found: Raster, by: Enlarger, size: tuple[int, int], on_tile: OnTile) -> Raster:
    """Return the picture in `size`, cropped to its aspect ratio."""
    from sdcli.files import raster

    alpha = found.alpha
    if by.network is None:
        colours = raster.resized(_cropped(found.colours, size), size, None if alpha is None else _cropped(alpha, size))
    else:
        colours = _by_network(found, by, size, on_tile)
    return found.with_colours(colours, None if alpha is None else raster.resized(_cropped(alpha, size), size))


def _by_network(found: Raster, by: Enlarger, size: tuple[int, int], on_tile: OnTile) -> NDArray[Any]:
    from sdcli.diffusion import upscale
    from sdcli.diffusion.device import is_out_of_memory
    from sdcli.files import raster

    assert by.network is not None
    seen = found.colours if found.alpha is None else raster.shown(found.colours, found.alpha)
    seen = _cropped(seen, size)
    taken = upscale.sizes((seen.shape[1], seen.shape[0]), size, by.network.scale)
    largest = max(width * height for width, height in taken) * by.network.scale**2
    if largest > MAX_BETWEEN:
        hint = "reduce the picture first, or use lanczos or an upscaler with a lower scale"
        what = f"{by.name} enlarges by {by.network.scale}, which would give {megapixels(largest)}"
        raise InvalidRecipe(f"{what}; the limit is {megapixels(MAX_BETWEEN)}", hint, "scale")
    total, done = upscale.total_tiles(taken, by.network, by.tile), 0

    def count(tiles: int) -> None:
        nonlocal done
        done += tiles
        on_tile(done, total)

    try:
        return upscale.to_size(by.network, seen, size, by.tile, count)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"not enough memory to enlarge {found.size[0]}×{found.size[1]} pixels to {size[0]}×{size[1]}",
            f"use smaller tiles, such as --tile {max(upscale.MIN_TILE, (by.tile or upscale.TILE) // 2)}",
        ) from error


def _cropped(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Crop to the aspect ratio of `size`, unless they differ by rounding alone."""
    from sdcli.files import raster

    height, width = pixels.shape[:2]
    if abs(width * size[1] / size[0] - height) < 1 or abs(height * size[0] / size[1] - width) < 1:
        return pixels
    return raster.cropped(pixels, size)


def _notes(found: Raster, size: tuple[int, int]) -> tuple[str, ...]:
    cropped = _cropped(found.pixels, size).shape[1::-1]
    if cropped == found.size:
        return ()
    return (f"{found.size[0]}×{found.size[1]} is cropped to {cropped[0]}×{cropped[1]}, the aspect ratio of --size",)
