"""Between pixels as the autoencoder gives them and pictures as PIL holds them. Knows nothing of files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from PIL import Image, ImageStat

from sdcli.errors import InvalidPicture

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_FLAT = 2.0
"""A picture no channel of which has a standard deviation above this, of 255, shows nothing that can be made out."""


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit RGB picture of `pixels` (3, H, W), of any float dtype, nominally in −1 … 1; what lies outside is cut.

    Arithmetic is in float32 whatever the dtype, and rounds half to even, so that float32 pixels become the same
    bytes as diffusers' VaeImageProcessor makes of them.
    """
    unit = (pixels.detach().cpu().float() * 0.5 + 0.5).clamp(0, 1)
    return Image.fromarray((unit * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def to_pixels(image: Image.Image) -> Tensor:
    """The pixels (1, 3, H, W), float32 in −1 … 1, of an 8-bit RGB picture; (1, 1, H, W) in 0 … 1 of an L one."""
    return to_unit(image) if image.mode == "L" else to_unit(image) * 2 - 1


def to_unit(image: Image.Image) -> Tensor:
    """The pixels (1, C, H, W), float32 in 0 … 1, of an 8-bit RGB or L picture."""
    import numpy as np
    import torch

    unit = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return unit[None, None] if image.mode == "L" else unit.permute(2, 0, 1)[None]


def check_picture(pixels: Tensor) -> None:
    """Raise InvalidPicture unless `pixels` (…, 3, H, W), in −1 … 1, are finite and no picture is black throughout.

    Black is what a failed model leaves where NaN was clipped away on its path: every 8-bit value 0. A dark picture
    that holds anything else passes.
    """
    if not pixels.isfinite().all():
        raise InvalidPicture(
            "the model produced pixels that are not numbers (NaN or infinity)",
            "try --dtype float32, for float16 overflows in some models; if that is no help, the weights are damaged",
        )
    brightest = pixels.float().flatten(-3).amax(-1)
    if ((brightest * 0.5 + 0.5) * 255).round().le(0).any():
        raise InvalidPicture(
            "the model produced a picture that is black all over",
            "try --dtype float32, another --seed or a lower --guidance-scale",
        )


def flatness(image: Image.Image) -> str | None:
    """What to say of an 8-bit RGB `image` that is of one colour, or nearly so (NEARLY_FLAT); None of any other."""
    low, high = zip(*image.getextrema(), strict=True)
    if low == high:
        return "the picture is one colour all over: #" + bytes(low).hex()
    deviation = max(ImageStat.Stat(image).stddev)
    if deviation < NEARLY_FLAT:
        return f"the picture is nearly one colour: its channels deviate by {deviation:.1f} of 255 at most"
    return None


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256, in hex, of what `image` shows, whatever file format holds it and whatever metadata it carries.

    The digest is over the line `MODE WIDTHxHEIGHT\\n` in ASCII and the raw bytes of `image.tobytes()`: rows from the
    top, and in each pixel the bands in the mode's order.
    """
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode("ascii"))
    digest.update(image.tobytes())
    return digest.hexdigest()
