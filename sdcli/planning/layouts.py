"""Maps and control pictures on their way into a recipe: what they decide, and what is to be said of them.

Loads PIL and numpy, and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdcli.files import inputs, maps
from sdcli.files.maps import SegmentationMap
from sdcli.files.palette import Class
from sdcli.models import controlnets
from sdcli.models.registry import ModelFacts
from sdcli.recipe.recipe import Layout, layout_of


def complete(
    options: Mapping[str, Any], unet: Mapping[str, Any], facts: ModelFacts, home: tuple[int, int]
) -> dict[str, Any]:
    """The flat keys of `options` and those that a layout decides: the ControlNet for a map, sums, and the size.

    `unet` is the config of the model's U-Net, and `home` the size it is at home with. The picture takes the shape of
    the map, or of the first control picture, unless it starts from an image or latents, which decide that.

    Raises InputError for pictures that cannot be read, InvalidRecipe for ControlNets that do not fit the model, and
    for a map where nothing takes one, and what `controlnets.find` raises.
    """
    layout = layout_of(options)
    control = list(layout.control)
    if layout.segmentation_map is not None and not facts.classes and not _has_reader(layout):
        control.insert(0, controlnets.for_maps(unet, facts))
    layout = layout_of({**options, "control": control})
    for each in layout.controls:
        controlnets.check_fit(each.name, unet, facts)
    sizes: list[tuple[int, int]] = []
    said: dict[str, Any] = {"control": control}
    for found in segmentation_maps(layout, facts.classes):
        sizes.append(found.size)
        said["segmentation_sha256"] = found.sha256
    pictures = [inputs.open_picture(*each) for each in _control_images(layout)]
    said["control_sha256"] = [sha256 for _, sha256 in pictures]
    sizes += [picture.size for picture, _ in pictures]
    if options.get("image") is None and options.get("init_latents") is None:
        size = inputs.good_size(sizes[0], options, home, facts.size_multiple)
        said |= {key: value for key, value in size.items() if options.get(key) is None}
    return {**options, **said}


def segmentation_maps(layout: Layout, classes: Sequence[Class]) -> list[SegmentationMap]:
    """The layout's map as each of its readers sees it: the U-Net, if it has `classes`, then ControlNets by theirs."""
    if layout.segmentation_map is None:
        return []
    palettes = [classes] if classes else []
    palettes += [controlnets.classes(controlnets.locate(each.name)) for each in layout.controls if each.image is None]
    return [
        maps.read(layout.segmentation_map, each, snap=layout.snap, recorded=layout.segmentation_sha256)
        for each in palettes
    ]


def notes(layout: Layout, classes: Sequence[Class], size: tuple[int, int]) -> Iterator[str]:
    """What is to be said of pictures that are used otherwise than they are: at another size, or snapped."""
    for found in segmentation_maps(layout, classes)[:1]:
        if found.snapped:
            total = found.size[0] * found.size[1]
            yield f"{layout.segmentation_map}: {found.snapped:,} of {total:,} pixels were taken for the nearest class"
        yield from _of_size(str(layout.segmentation_map), found.size, size)
    for path, sha256 in _control_images(layout):
        yield from _of_size(path, inputs.open_picture(path, sha256)[0].size, size)


def _of_size(path: str, own: tuple[int, int], size: tuple[int, int]) -> Iterator[str]:
    if own == size:
        return
    scale = max(size[0] / own[0], size[1] / own[1])
    lost = [round(side * scale) - used for side, used in zip(own, size, strict=True)]
    cut = f", without {max(lost)} pixels of its {'width' if lost[0] else 'height'}" if any(lost) else ""
    yield f"{path} is {own[0]}×{own[1]}, and used at {size[0]}×{size[1]}{cut}"


def _has_reader(layout: Layout) -> bool:
    return any(each.image is None for each in layout.controls)


def _control_images(layout: Layout) -> list[tuple[str, str | None]]:
    """The path of each control picture, and the sum its file must have, if that was recorded."""
    paths = [each.image for each in layout.controls if each.image is not None]
    return list(zip(paths, layout.control_sha256 or [None] * len(paths), strict=True))
