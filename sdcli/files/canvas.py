"""The image that a picture starts from: the part to work on, the working size, and pasting the result.

Knows PIL and numpy, nothing of files, models or latents. Masks are white where to repaint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from sdcli.errors import InputError
from sdcli.files import masks
from sdcli.files.images import ROWS
from sdcli.recipe.bounds import MAX_IMAGE_PIXELS, check_area
from sdcli.recipe.parts import Initial
from sdcli.recipe.warning import RecipeWarning

STRENGTH = 0.6
MOST_TIMES_NATIVE = 2.0
MOST_ASPECT = 2.0
MIN_SIDE = 64

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True)
class InitialImage:
    """An image, upright 8-bit RGB or RGBA, and its mask.

    `mask` is 8-bit L of the same size, white where to repaint and soft at its edges; None redraws the whole image.
    `core` is the mask before blurring. With `resize` the image is cropped to the working size, which is the picture's.
    """

    image: Image.Image
    mask: Image.Image | None = None
    core: Image.Image | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    warnings: tuple[RecipeWarning, ...] = ()
    resize: bool = False


def prepare(
    image: Image.Image,
    mask: Image.Image | None,
    initial: Initial,
    image_sha256: str | None = None,
    mask_sha256: str | None = None,
) -> InitialImage:
    """Prepare an upright `image` (RGB or RGBA) and `mask` (L, white repaints) for `initial`.

    Raises InputError for a mask of another size without fit_mask, and for one with nothing to repaint, and
    InvalidRecipe for an extended image that is too large.
    """
    if any(initial.borders):
        left, top, right, bottom = initial.borders
        size, what = (image.width + left + right, image.height + top + bottom), "the extended image"
        check_area(*size, MAX_IMAGE_PIXELS, what=what, field=_widest(initial))
        image, mask = extend(image, initial.borders)
    if mask is None:
        return InitialImage(image, image_sha256=image_sha256, resize=initial.resize)
    if mask.size != image.size:
        if not initial.fit_mask:
            raise InputError(
                f"the mask is {mask.width}×{mask.height} and the image {image.width}×{image.height}",
                "give a mask of the image's size, or resize it with --fit-mask",
            )
        mask = mask.resize(image.size, Image.Resampling.BILINEAR)
    if initial.invert_mask:
        mask = ImageChops.invert(mask)
    mask, noise = masks.cleaned(mask)
    if mask.getextrema()[1] < 128:  # type: ignore[operator]
        raise InputError(
            "the mask has nothing to repaint: no part of it is white",
            "paint the part to repaint white, or invert the mask with --invert-mask",
        )
    soft = mask.filter(ImageFilter.GaussianBlur(initial.mask_blur)) if initial.mask_blur else mask
    if soft.getbbox() is None:
        raise InputError(
            f"the mask has nothing to repaint: softened by {initial.mask_blur:g} pixels, no part of it is left",
            "paint more of it white, or use a smaller --mask-blur",
        )
    warnings = (*filter(None, [noise]), *masks.find(mask, soft, initial.mask_blur))
    return InitialImage(image, soft, mask, image_sha256, mask_sha256, warnings)


def complete(given: InitialImage, asked: Mapping[str, Any], native: tuple[int, int], multiple: int) -> dict[str, Any]:
    """Add values from the image that are not in `asked`: working size, strength, sha256.

    `native` is the model's native size; sides are multiples of `multiple` pixels. An image of half to twice that area
    keeps its size except for rounding; others, and a part cropped by padding, get that area.
    """
    left, top, right, bottom = box(given, asked.get("padding"))
    own = right - left, bottom - top
    recorded = {
        **good_size(own, asked, native, multiple, exact=asked.get("padding") is not None),
        "strength": STRENGTH if given.mask is None else 1.0,
        "image_sha256": given.image_sha256,
        "mask_sha256": given.mask_sha256,
    }
    return {**recorded, **{key: value for key, value in asked.items() if value is not None}}


def box(given: InitialImage, padding: int | None) -> Box:
    """Return the part to work on: the whole image, or the masked area and `padding` pixels around it.

    Models work badly with aspect ratios above 1:2: a longer part is extended if the image has room.
    """
    if padding is None or given.mask is None:
        return (0, 0, *given.image.size)
    shown = given.mask.getbbox()
    assert shown is not None
    left, top, right, bottom = shown
    width, height = given.image.size
    left, right = max(left - padding, 0), min(right + padding, width)
    top, bottom = max(top - padding, 0), min(bottom + padding, height)
    least = math.ceil(max(right - left, bottom - top) / MOST_ASPECT)
    (left, right), (top, bottom) = _widened(left, right, least, width), _widened(top, bottom, least, height)
    return left, top, right, bottom


def _widened(low: int, high: int, least: int, most: int) -> tuple[int, int]:
    """Extend `low` … `high` around its middle to the length `least`, if 0 … `most` has room."""
    length = max(high - low, min(least, most))
    start = min(max(low - (length - (high - low)) // 2, 0), most - length)
    return start, start + length


def working(given: InitialImage, padding: int | None, size: tuple[int, int]) -> Image.Image:
    """Return the part to work on, RGB, at `size` (width, height); transparent pixels become white."""
    part = opaque(given.image.crop(box(given, padding)))
    if part.size == size:
        return part
    if given.resize:
        return ImageOps.fit(part, size, Image.Resampling.LANCZOS)
    return part.resize(size, Image.Resampling.LANCZOS)


def working_mask(given: InitialImage, padding: int | None, size: tuple[int, int], cell: int) -> Image.Image:
    """Return the mask of that part at `size`, L, 0 or 255, in whole latents of `cell` × `cell` pixels.

    A latent is repainted if the mask touches it anywhere, so that thin lines are kept.
    """
    assert given.core is not None
    part = given.core.crop(box(given, padding)).point(lambda value: 255 * (value >= 128)).convert("F")
    cells = np.asarray(part.resize((size[0] // cell, size[1] // cell), Image.Resampling.BOX)) > 0
    return Image.fromarray(np.repeat(np.repeat(np.uint8(255) * cells, cell, axis=0), cell, axis=1))


def put_back(picture: Image.Image, given: InitialImage, padding: int | None) -> Image.Image:
    """Paste `picture` (RGB, of the working size) into the image, at the image's size.

    A picture that is resized is returned as it is. Pixels with a mask of 0 are unchanged, including transparency;
    without a mask the result is `picture`. Repainted pixels are opaque, and are mixed with transparent pixels in
    proportion to both opacities.
    """
    if given.resize:
        return picture
    left, top, right, bottom = box(given, padding)
    part = (right - left, bottom - top)
    if picture.size != part:
        picture = picture.resize(part, Image.Resampling.LANCZOS)
    if given.mask is None:
        return picture
    result = given.image.copy()
    for start in range(0, part[1], ROWS):
        rows = (0, start, part[0], min(start + ROWS, part[1]))
        there = (left, top + rows[1], right, top + rows[3])
        result.paste(_mixed(given.image.crop(there), picture.crop(rows), given.mask.crop(there)), there[:2])
    return result


def _mixed(before: Image.Image, after: Image.Image, mask: Image.Image) -> Image.Image:
    """Mix `before` (where `mask` is 0) and `after` (where it is 255), in the mode of `before`, RGB or RGBA.

    Colours are weighted by their opacity (Porter & Duff 1984, "Compositing Digital
    Images", premultiplied α).
    """
    old = np.asarray(before).astype(np.float32)
    new = np.asarray(after.convert(before.mode)).astype(np.float32)
    share = np.asarray(mask)[..., None].astype(np.float32) / 255
    if before.mode == "RGB":
        mixed = old * (1 - share) + new * share
    else:
        opacity = old[..., 3:] * (1 - share) + new[..., 3:] * share
        colours = old[..., :3] * old[..., 3:] * (1 - share) + new[..., :3] * new[..., 3:] * share
        mixed = np.concatenate([colours / np.maximum(opacity, 1e-6), opacity], axis=-1)
    mixed = np.where(share == 0, old, mixed.round())
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8), before.mode)


def extend(image: Image.Image, borders: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image]:
    """Extend `image` by `borders` (left, top, right, bottom), and return it with the mask of the new pixels.

    The new pixels repeat the mirrored image.
    """
    left, top, right, bottom = borders
    mode = "reflect" if min(image.size) > 1 else "edge"
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode=mode)  # type: ignore[call-overload]
    mask = Image.new("L", (pixels.shape[1], pixels.shape[0]), 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return Image.fromarray(pixels, image.mode), mask


def good_size(
    own: tuple[int, int], asked: Mapping[str, Any], native: tuple[int, int], multiple: int, *, exact: bool = False
) -> dict[str, int]:
    """Return `width` and `height` near the aspect ratio of `own`, for a model with the size `native`.

    This is `own` with rounding, if its area is half to twice that of `native` and not `exact`; otherwise its aspect
    ratio with the area of `native`. A strip that is widened to MIN_SIDE is shortened to twice that area. If `asked` has
    one side, the other is derived from it.
    """
    area = native[0] * native[1]
    ratio = own[0] * own[1] / area
    scale = math.sqrt(1 / ratio) if exact or not 1 / MOST_TIMES_NATIVE <= ratio <= MOST_TIMES_NATIVE else 1.0
    width, height = (_rounded(side * scale, multiple) for side in own)
    most = int(area * MOST_TIMES_NATIVE / min(width, height)) // multiple * multiple
    if min(own) * scale < MIN_SIDE and max(width, height) > most:  # a strip, which MIN_SIDE has widened
        width, height = min(width, most), min(height, most)
    if asked.get("width") and not asked.get("height"):
        height = _rounded(asked["width"] * own[1] / own[0], multiple)
    if asked.get("height") and not asked.get("width"):
        width = _rounded(asked["height"] * own[0] / own[1], multiple)
    return {"width": width, "height": height}


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop `image` to the aspect ratio of `size`, around the middle, unless they differ by rounding alone."""
    left, top, right, bottom = middle(image.size, size)
    if image.width - (right - left) <= 1 and image.height - (bottom - top) <= 1:
        return image
    return image.crop((left, top, right, bottom))


def middle(size: tuple[int, int], aspect: tuple[int, int]) -> Box:
    """Return the largest part of a picture of `size` with the aspect ratio of `aspect`, around the middle."""
    width = min(size[0], round(size[1] * aspect[0] / aspect[1]))
    height = min(size[1], round(size[0] * aspect[1] / aspect[0]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def guide(picture: Image.Image, given: InitialImage | None, padding: int | None, size: tuple[int, int]) -> Image.Image:
    """Return the part of a control image at `size`, RGB, that belongs to the part to work on.

    It is centred on the image, or on the new picture, scaled without distortion and cropped.
    """
    picture = opaque(picture)
    part = (0, 0, *picture.size) if given is None else box(given, padding)
    if given is not None and part != (0, 0, *given.image.size):
        picture = ImageOps.fit(picture, given.image.size, Image.Resampling.LANCZOS).crop(part)
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _widest(initial: Initial) -> str:
    return max(("left", "right", "top", "bottom"), key=lambda key: getattr(initial, key))


def _rounded(side: float, multiple: int) -> int:
    least = -(-MIN_SIDE // multiple) * multiple
    return max(round(side / multiple) * multiple, least)


def opaque(image: Image.Image) -> Image.Image:
    """Return `image` as RGB; transparent pixels become white."""
    if image.mode == "RGB":
        return image
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        rows = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        result.paste(Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert("RGB"), (0, top))
    return result
