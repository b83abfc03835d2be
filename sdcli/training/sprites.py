"""Subjects as sprites: RGBA pictures with exact alpha, cut from a colour emoji font, and their tints.

Knows nothing of places, scenes or captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdcli.errors import InputError

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_SIZE = 109  # the one size of Noto Color Emoji's bitmaps


@dataclass(frozen=True)
class Subject:
    """Something to depict: its name in captions, its glyph, whether its mirror image is as good."""

    name: str
    glyph: str
    mirror: bool = False
    weight: float = 1.0


SUBJECTS = (
    Subject("fox", "🦊", weight=1.5),
    Subject("cat", "🐱"),
    Subject("bear", "🐻"),
    Subject("panda", "🐼"),
    Subject("rabbit", "🐰"),
    Subject("owl", "🦉"),
    Subject("penguin", "🐧"),
    Subject("whale", "🐋", mirror=True),
    Subject("unicorn", "🦄", mirror=True),
    Subject("castle", "🏰"),
    Subject("house", "🏠"),
    Subject("tree", "🌳"),
    Subject("mushroom", "🍄"),
    Subject("rocket", "🚀"),
    Subject("sailboat", "⛵"),
    Subject("robot", "🤖"),
)

# A tint maps luminance to a ramp of colours: dark stays dark, so that eyes and outlines survive.
RAMP_LUMINANCE = (0.0, 0.16, 0.34, 0.62, 1.0)
TINTS: Mapping[str, tuple[tuple[int, int, int], ...] | None] = {
    "natural": None,
    "white": ((22, 26, 38), (52, 60, 78), (188, 202, 222), (238, 243, 250), (255, 255, 255)),
    "red": ((28, 4, 8), (70, 8, 16), (176, 22, 34), (226, 48, 48), (255, 214, 200)),
    "blue": ((4, 10, 40), (10, 24, 92), (26, 68, 190), (60, 118, 236), (208, 228, 255)),
}


def tint(sprite: Image.Image, colour: str) -> Image.Image:
    """An RGBA sprite in another colour of `TINTS`; its alpha is untouched."""
    ramp = TINTS[colour]
    if ramp is None:
        return sprite
    pixels = np.asarray(sprite)
    luminance = pixels[..., :3] @ np.array([0.2126, 0.7152, 0.0722]) / 255  # ITU-R BT.709
    tinted = pixels.copy()
    for channel in range(3):
        tinted[..., channel] = np.interp(luminance, RAMP_LUMINANCE, [stop[channel] for stop in ramp]).round()
    return Image.fromarray(tinted)


def draw_glyph(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One colour glyph as an RGBA image with straight alpha, cropped to what is visible."""
    drawn = []
    for ground in ("black", "white"):
        canvas = Image.new("RGB", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE), ground)
        ImageDraw.Draw(canvas).text((GLYPH_SIZE // 4, GLYPH_SIZE // 4), glyph, font=font, embedded_color=True)
        drawn.append(canvas)
    sprite = matte(*drawn)
    return sprite.crop(sprite.getchannel("A").getbbox())


def matte(on_black: Image.Image, on_white: Image.Image) -> Image.Image:
    """The RGBA picture that gives these two RGB pictures when put on black and on white.

    From on_black = alpha colour and on_white = alpha colour + (1 - alpha) 255.
    """
    black, white = np.asarray(on_black, dtype=float), np.asarray(on_white, dtype=float)
    alpha = np.clip(1 - (white - black).mean(-1, keepdims=True) / 255, 0, 1)
    colour = np.clip(black / np.maximum(alpha, 1 / 255), 0, 255)
    return Image.fromarray(np.concatenate([colour, 255 * alpha], -1).round().astype(np.uint8))


def load_sprites(source: Path) -> dict[str, Image.Image]:
    """The natural sprite of every subject, by name, from a colour emoji font or a folder of `<subject>.png` (RGBA).

    Raises InputError when it cannot be read.
    """
    if source.is_dir():
        try:
            return {s.name: Image.open(source / f"{s.name}.png").convert("RGBA") for s in SUBJECTS}
        except OSError as error:
            raise InputError(f"no sprite: {error}", "a folder of sprites holds a PNG for every subject") from error
    try:
        font = ImageFont.truetype(str(source), GLYPH_SIZE)
    except OSError as error:
        raise InputError(
            f"cannot read the emoji font {source}: {error}",
            "install it (Debian: apt install fonts-noto-color-emoji) or name it with --sprites",
        ) from error
    return {subject.name: draw_glyph(subject.glyph, font) for subject in SUBJECTS}


def tinted_sprites(source: Path) -> dict[tuple[str, str], Image.Image]:
    """Every sprite in every tint, by (subject, colour)."""
    sprites = load_sprites(source)
    return {(name, colour): tint(sprite, colour) for name, sprite in sprites.items() for colour in TINTS}
