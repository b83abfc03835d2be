"""Looks at masks: what is no mask is refused, and what a mask hardly repaints is a warning. Knows PIL, no models.

Masks are white where to repaint.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageChops

from sdcli.errors import InputError
from sdcli.recipe.warning import RecipeWarning

NEARLY_BLACK = 20
NEARLY_DARK = 64
NEAR = 16
"""Pixels: resizing and JPEG make nearly black ones this near to an edge."""
MAX_NOISE = 0.1
NEARLY_WHITE = 230
MAX_WRONG = 0.05
"""The share of a mask's pixels that may have a colour: lossy files have some at edges."""
MAX_LOST = 0.25
"""The share of a mask's white pixels that blurring may make dark (LOST) without a warning."""
LOST = 96
_COLOUR = 48
_HINT = "a mask is white where to repaint and black elsewhere"


def of_picture(picture: Image.Image, name: str) -> Image.Image:
    """Convert a mask, upright RGB or RGBA, to greys; transparent pixels become black, around white ones.

    Raises InputError for a picture with colours, and for one with a transparent hole: it could mean either.
    """
    cutout = f"to repaint its transparent part, give it as IMAGE with --mask alpha; {_HINT}"
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    has_hole = alpha is not None and alpha.getextrema()[0] < 128  # type: ignore[operator]
    colours = picture.convert("RGB")
    low, high = _extremes(colours)
    coloured, shown = _count(ImageChops.subtract(high, low), _COLOUR, alpha), _count(high, NEARLY_DARK, alpha)
    if coloured > MAX_WRONG * shown:
        raise InputError(f"{name} is no mask: it has colours in {coloured:,} pixels", cutout if has_hole else _HINT)
    if alpha is None:
        return colours.convert("L")
    if has_hole and _count(ImageChops.invert(low), 127, alpha) > MAX_WRONG * _count(alpha, 127):
        raise InputError(f"{name} is no mask: it has a transparent part, and black or grey pixels too", cutout)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("L")


def of_hole(picture: Image.Image) -> RecipeWarning | None:
    """Warn about a mask that is mostly white with a transparent hole, which other tools would repaint."""
    if picture.mode != "RGBA":
        return None
    alpha = picture.getchannel("A")
    white = _count(alpha, 127) / (picture.width * picture.height)
    if not 0.5 < white < 1:
        return None
    told = f"the mask's transparent part is kept, and its white part, {white:.0%} of the image, is repainted"
    return _warning(told, "to repaint the transparent part, use --invert-mask")


def cleaned(mask: Image.Image) -> tuple[Image.Image, RecipeWarning | None]:
    """Make the noise of a mask's black part black, which lossy files and segmentation networks leave.

    Nearly black pixels are noise if they are far from lighter ones or everywhere, and if there are many more of them
    than of slightly lighter ones; at soft edges and in gradients there are not.
    """
    counts = mask.histogram()
    noise, lighter = sum(counts[1 : NEARLY_BLACK + 1]), sum(counts[NEARLY_BLACK + 1 : 3 * NEARLY_BLACK])
    without = mask.point(lambda value: value if value > NEARLY_BLACK else 0)
    box, wider = without.getbbox(), mask.getbbox()
    if noise <= 4 * lighter or box is None or wider is None:
        return mask, None
    is_far = any(abs(inner - outer) > NEAR for inner, outer in zip(box, wider, strict=True))
    if not is_far and noise < MAX_NOISE * mask.width * mask.height:
        return mask, None
    level = max(value for value in range(NEARLY_BLACK + 1) if counts[value])
    told = f"the mask's black is up to {level} of 255, and was taken as black in {noise:,} pixels"
    return without, _warning(told, "make it black")


def find(core: Image.Image, soft: Image.Image, blur: float) -> Iterator[RecipeWarning]:
    """Warn about a mask that is not white, and about one that blurring all but erases."""
    darkest, lightest = core.getextrema()
    assert isinstance(lightest, int)
    assert isinstance(darkest, int)
    if lightest < NEARLY_WHITE:
        what = "is uniformly grey" if darkest == lightest else "is nowhere white"
        told = f"the mask {what}: at most {lightest / 255:.0%} of the new picture is mixed with the image"
        yield _warning(told, "paint the part to repaint white")
    elif 0 < darkest < NEARLY_WHITE:
        told = f"the mask is nowhere black: at least {darkest / 255:.0%} of the new picture is mixed in everywhere"
        yield _warning(told, "paint the part to keep black")
    white = core.point(lambda value: 255 * (value >= 128))
    total = white.histogram()[255]
    counts = soft.histogram(white)
    if sum(counts[:LOST]) > MAX_LOST * total:
        left = sum(value * count for value, count in enumerate(counts)) / (255 * total)
        told = f"the mask is thin: blurred by {blur:g} pixels, {left:.0%} of it is left"
        yield _warning(told, "use a smaller --mask-blur, or paint more of it white")


def _count(picture: Image.Image, above: int, alpha: Image.Image | None = None) -> int:
    """Return how many pixels of an L picture are `above` a value, without transparent ones."""
    return sum(picture.histogram(alpha and alpha.point(lambda value: 255 * (value >= 128)))[above + 1 :])


def _extremes(colours: Image.Image) -> tuple[Image.Image, Image.Image]:
    red, green, blue = colours.split()
    low, high = ImageChops.darker, ImageChops.lighter
    return low(low(red, green), blue), high(high(red, green), blue)


def _warning(told: str, hint: str) -> RecipeWarning:
    return RecipeWarning(told, hint, "mask_image")
