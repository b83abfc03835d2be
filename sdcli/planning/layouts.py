"""Completes a recipe with values from its map and control images. Loads PIL and numpy, nothing heavier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdcli.files import canvas
from sdcli.files.inputs import Inputs
from sdcli.recipe.parts import Layout


def complete(options: Mapping[str, Any], found: Inputs, native: tuple[int, int], multiple: int) -> dict[str, Any]:
    """Add the sha256 of maps and control images, and the size, to `options`.

    `native` is the model's native size, and sides are multiples of `multiple` pixels. The picture gets the aspect ratio
    of the map or the first control image, unless it starts from an image or latents.
    """
    recorded: dict[str, Any] = {"control_sha256": [each.sha256 for each in found.controls]}
    for each in found.maps.values():
        recorded["segmentation_sha256"] = each.sha256
    sizes = [*(each.size for each in found.maps.values()), *(each.picture.size for each in found.controls)]
    if found.image is None and found.latents is None:
        size = canvas.good_size(sizes[0], options, native, multiple)
        recorded |= {key: value for key, value in size.items() if options.get(key) is None}
    return {**options, **recorded}


def notes(layout: Layout, found: Inputs, size: tuple[int, int]) -> Iterator[str]:
    """Yield notes about images that are resized, and about replaced colours."""
    for each in [*found.maps.values()][:1]:
        if each.snapped:
            total = each.size[0] * each.size[1]
            yield f"{layout.segmentation_map}: {each.snapped:,} of {total:,} pixels were replaced by the nearest class"
        yield from size_notes(str(layout.segmentation_map), each.size, size)
    paths = [each.image for each in layout.controls if each.image is not None]
    for path, image in zip(paths, found.controls, strict=True):
        yield from size_notes(path, image.picture.size, size)


def size_notes(path: str, own: tuple[int, int], size: tuple[int, int]) -> Iterator[str]:
    """Yield a note about an image of the size `own` that is used at `size`, if they differ."""
    if own == size:
        return
    scale = max(size[0] / own[0], size[1] / own[1])
    lost = [round(side * scale) - used for side, used in zip(own, size, strict=True)]
    cut = f", without {max(lost)} pixels of its {'width' if lost[0] else 'height'}" if any(lost) else ""
    yield f"{path} is {own[0]}×{own[1]}, and used at {size[0]}×{size[1]}{cut}"
