"""Converts pictures to sRGB by their colour profile. Knows PIL, nothing of files."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageCms

SRGB_GAMMA = 1 / 2.2
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_STEPS = tuple(range(0, 256, 15))


def to_srgb(colours: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Convert `colours` (L, RGB or CMYK) to sRGB by the ICC `profile`, and return it, RGB, with what was done.

    A profile that is sRGB to within a rounding changes nothing, and None is returned. A profile that is damaged or
    for other colours is not used.
    """
    try:
        known = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = known.profile.xcolor_space.strip()
        if space == "RGB" and colours.mode == "L":
            colours = colours.convert("RGB")
        if space != _SPACES[colours.mode]:
            return colours.convert("RGB"), f"its colour profile is for {space}, and is not used"
        target = ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE if colours.mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(known, target, colours.mode, "RGB", flags=exact)
        if colours.mode != "CMYK" and _is_srgb(transform, colours.mode):
            return colours.convert("RGB"), None
        converted = _of_greys(colours, transform) if colours.mode == "L" else _applied(transform, colours)
    except Exception as error:  # noqa: BLE001  ImageCms raises several for damaged profiles
        return colours.convert("RGB"), f"its colour profile is damaged, and is not used: {error}"
    return converted, f"its colours were converted to sRGB by its profile, {_name(known)}"


def from_gamma(colours: Image.Image, gamma: Any) -> tuple[Image.Image, str | None]:
    """Convert `colours` (RGB) with the gAMA value of a PNG to sRGB; see `to_srgb`."""
    if not isinstance(gamma, float) or not 0.01 < gamma < 10 or abs(gamma - SRGB_GAMMA) < 0.02:
        return colours, None
    light = [(value / 255) ** (1 / gamma) for value in range(256)]
    table = [round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055)) for x in light]
    return colours.point(table * 3), f"its colours were converted to sRGB from the gamma {gamma:g}"


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for conversion in place
    return converted


def _of_greys(greys: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Convert 256 greys exactly, and the picture by the table of them."""
    ramp = _applied(transform, Image.frombytes("L", (256, 1), bytes(range(256))))
    return Image.merge("RGB", [greys.point(list(band.tobytes())) for band in ramp.split()])


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform changes no sample by more than 1."""
    if mode == "L":
        samples = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        colours = bytes(value for r in _STEPS for g in _STEPS for b in _STEPS for value in (r, g, b))
        samples = Image.frombytes("RGB", (len(_STEPS) ** 3, 1), colours)
    extrema = ImageChops.difference(samples.convert("RGB"), _applied(transform, samples)).getextrema()
    return all(high <= 1 for _, high in extrema)  # type: ignore[misc]


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    try:
        return repr(ImageCms.getProfileDescription(profile).strip()[:60])
    except Exception:  # noqa: BLE001  a description that cannot be read
        return "which has no name"
