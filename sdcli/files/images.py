"""Converts between the autoencoder's pixels and PIL images. Knows nothing of files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from PIL import Image, ImageStat

from sdcli.errors import InvalidPicture

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 256
"""Rows of a picture that are converted at once, so that copies of a large one do not take gigabytes."""
NEARLY_FLAT = 2.0
"""A picture is flat if no channel has a standard deviation above this, out of 255."""


def to_image(pixels: Tensor) -> Image.Image:
    """Convert `pixels` (3, H, W), of any float dtype, nominally in −1 … 1, to an 8-bit RGB picture; clips the values.

    Computes in float32 and rounds half to even, so that float32 pixels give the same bytes as diffusers'
    VaeImageProcessor.
    """
    unit = (pixels.detach().cpu().float() * 0.5 + 0.5).clamp(0, 1)
    return Image.fromarray((unit * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an 8-bit RGB picture to pixels (1, 3, H, W), float32 in −1 … 1, or an L one to (1, 1, H, W) in 0 … 1."""
    return to_unit(image) if image.mode == "L" else to_unit(image) * 2 - 1


def to_unit(image: Image.Image) -> Tensor:
    """Convert an 8-bit RGB or L picture to pixels (1, C, H, W), float32 in 0 … 1."""
    import numpy as np
    import torch

    unit = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return unit[None, None] if image.mode == "L" else unit.permute(2, 0, 1)[None]


def check_picture(pixels: Tensor) -> None:
    """Raise InvalidPicture unless `pixels` (…, 3, H, W), in −1 … 1, are finite and no picture is completely black.

    A model that fails can return a black picture, with every 8-bit value 0, because NaN was clipped. Any other dark
    picture is valid.
    """
    if not pixels.isfinite().all():
        raise InvalidPicture(
            "the model produced pixels that are not numbers (NaN or infinity)",
            "try --dtype float32, because some models overflow in float16; otherwise the weights are damaged",
        )
    brightest = pixels.float().flatten(-3).amax(-1)
    if ((brightest * 0.5 + 0.5) * 255).round().le(0).any():
        raise InvalidPicture(
            "the model produced a completely black picture",
            "try --dtype float32, another --seed or a lower --guidance-scale",
        )


def flatness(image: Image.Image) -> str | None:
    """Return a warning about an 8-bit RGB `image` of a single colour, or nearly so (NEARLY_FLAT), or None."""
    low, high = zip(*image.getextrema(), strict=True)
    if low == high:
        return "the picture has a single colour: #" + bytes(low).hex()
    deviation = max(ImageStat.Stat(image).stddev)
    if deviation < NEARLY_FLAT:
        return f"the picture has nearly a single colour: its channels deviate by at most {deviation:.1f} out of 255"
    return None


def pixels_sha256(image: Image.Image) -> str:
    """Return the SHA-256 of the pixels in hex, independent of file format and metadata.

    The digest is over the line `MODE WIDTHxHEIGHT\\n` in ASCII and the bytes of `image.tobytes()`: rows from the top,
    with the bands of each pixel in the mode's order.
    """
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode("ascii"))
    for top in range(0, image.height, ROWS):
        digest.update(image.crop((0, top, image.width, min(top + ROWS, image.height))).tobytes())
    return digest.hexdigest()
