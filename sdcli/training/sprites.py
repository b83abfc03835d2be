"""Subjects as sprites: RGBA pictures with exact alpha, cut from a colour emoji font, and their tints.

Knows nothing of places, scenes or captions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdcli.errors import InputError

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_SIZE = 109  # the one size of Noto Color Emoji's bitmaps


@dataclass(frozen=True)
class Subject:
    """Something to depict.

    `name`: in captions, with `synonyms` beside it. `mirror`: whether its mirror image is as good. `kind`: its class in
    segmentation maps. `own`: the colour of `TINTS` it has by nature, in which it is not tinted.
    """

    name: str
    glyph: str
    mirror: bool = False
    kind: str = "animal"
    own: str = ""
    synonyms: tuple[str, ...] = ()


# The first 24 are the world of kit as it is shipped; all of them are the whole world.
SUBJECTS = (
    Subject("fox", "🦊"),
    Subject("cat", "🐱", synonyms=("kitten",)),
    Subject("bear", "🐻"),
    Subject("panda", "🐼", synonyms=("panda bear",)),
    Subject("rabbit", "🐰", synonyms=("bunny",)),
    Subject("owl", "🦉"),
    Subject("penguin", "🐧"),
    Subject("whale", "🐋", mirror=True),
    Subject("unicorn", "🦄", mirror=True),
    Subject("castle", "🏰", kind="building"),
    Subject("house", "🏠", kind="building", synonyms=("home", "cottage")),
    Subject("tree", "🌳", kind="tree", own="green"),
    Subject("mushroom", "🍄", kind="object", synonyms=("toadstool",)),
    Subject("rocket", "🚀", kind="object", synonyms=("spaceship",)),
    Subject("sailboat", "⛵", kind="object", synonyms=("boat", "sailing boat")),
    Subject("robot", "🤖", kind="object"),
    Subject("dragon", "🐉", mirror=True, own="green"),
    Subject("dog", "🐶", synonyms=("puppy",)),
    Subject("lion", "🦁"),
    Subject("elephant", "🐘", mirror=True),
    Subject("turtle", "🐢", mirror=True, own="green", synonyms=("tortoise",)),
    Subject("frog", "🐸", own="green", synonyms=("toad",)),
    Subject("car", "🚗", mirror=True, kind="object", own="red", synonyms=("automobile",)),
    Subject("pumpkin", "🎃", kind="object", own="orange"),
    Subject("cow", "🐮"),
    Subject("pig", "🐷", own="pink", synonyms=("piglet",)),
    Subject("mouse", "🐭"),
    Subject("koala", "🐨"),
    Subject("tiger", "🐯", own="orange"),
    Subject("monkey", "🐵"),
    Subject("chick", "🐥", own="yellow"),
    Subject("duck", "🦆", mirror=True),
    Subject("eagle", "🦅", mirror=True),
    Subject("parrot", "🦜", mirror=True, own="green"),
    Subject("flamingo", "🦩", mirror=True, own="pink"),
    Subject("swan", "🦢", mirror=True, own="white"),
    Subject("peacock", "🦚"),
    Subject("rooster", "🐓", mirror=True, synonyms=("cock",)),
    Subject("bat", "🦇"),
    Subject("wolf", "🐺"),
    Subject("boar", "🐗", mirror=True),
    Subject("horse", "🐎", mirror=True),
    Subject("zebra", "🦓", mirror=True),
    Subject("giraffe", "🦒", mirror=True),
    Subject("deer", "🦌", mirror=True),
    Subject("camel", "🐫", mirror=True),
    Subject("kangaroo", "🦘", mirror=True),
    Subject("hippo", "🦛", mirror=True, synonyms=("hippopotamus",)),
    Subject("rhino", "🦏", mirror=True, synonyms=("rhinoceros",)),
    Subject("otter", "🦦", mirror=True),
    Subject("skunk", "🦨", mirror=True),
    Subject("badger", "🦡", mirror=True),
    Subject("hedgehog", "🦔", mirror=True),
    Subject("squirrel", "🐿", mirror=True),
    Subject("crocodile", "🐊", mirror=True, own="green", synonyms=("alligator",)),
    Subject("snake", "🐍", mirror=True, own="green"),
    Subject("lizard", "🦎", mirror=True, own="green"),
    Subject("dinosaur", "🦕", mirror=True, own="green"),
    Subject("dolphin", "🐬", mirror=True, own="blue"),
    Subject("fish", "🐟", mirror=True, own="blue"),
    Subject("shark", "🦈", mirror=True),
    Subject("octopus", "🐙", own="pink"),
    Subject("snail", "🐌", mirror=True),
    Subject("butterfly", "🦋", own="blue"),
    Subject("bee", "🐝", mirror=True, own="yellow"),
    Subject("ladybug", "🐞", own="red", synonyms=("ladybird",)),
    Subject("crab", "🦀", own="red"),
    Subject("lobster", "🦞", own="red"),
    Subject("squid", "🦑", own="pink"),
    Subject("raccoon", "🦝"),
    Subject("hamster", "🐹"),
    Subject("sheep", "🐑", mirror=True, own="white", synonyms=("lamb",)),
    Subject("goat", "🐐", mirror=True),
    Subject("llama", "🦙", mirror=True, own="white"),
    Subject("beaver", "🦫", mirror=True),
    Subject("teddy", "🧸", kind="object", synonyms=("teddy bear",)),
    Subject("cactus", "🌵", kind="object", own="green"),
    Subject("sunflower", "🌻", kind="object", own="yellow"),
    Subject("tulip", "🌷", kind="object", own="pink"),
    Subject("rose", "🌹", kind="object", own="red"),
    Subject("pizza", "🍕", kind="object"),
    Subject("cake", "🎂", kind="object"),
    Subject("apple", "🍎", kind="object", own="red"),
    Subject("strawberry", "🍓", kind="object", own="red"),
    Subject("banana", "🍌", mirror=True, kind="object", own="yellow"),
    Subject("bus", "🚌", mirror=True, kind="object"),
    Subject("train", "🚂", mirror=True, kind="object", synonyms=("locomotive", "steam engine")),
    Subject("bicycle", "🚲", mirror=True, kind="object", synonyms=("bike",)),
    Subject("helicopter", "🚁", mirror=True, kind="object", own="yellow"),
    Subject("tractor", "🚜", mirror=True, kind="object", own="green"),
    Subject("balloon", "🎈", kind="object", own="red"),
    Subject("umbrella", "☂", kind="object", own="purple"),
    Subject("guitar", "🎸", kind="object", own="red"),
    Subject("teapot", "🫖", kind="object", own="red"),
    Subject("ghost", "👻", kind="object", own="white"),
    Subject("snowman", "⛄", kind="object", own="white"),
    Subject("crown", "👑", kind="object", own="yellow"),
    Subject("tent", "⛺", kind="building", own="orange"),
)
BY_NAME: Mapping[str, Subject] = {subject.name: subject for subject in SUBJECTS}

# A tint maps luminance to a ramp of colours: dark stays dark, so that eyes and outlines survive.
RAMP_LUMINANCE = (0.0, 0.16, 0.34, 0.62, 1.0)
TINTS: Mapping[str, tuple[tuple[int, int, int], ...] | None] = {
    "natural": None,
    "white": ((22, 26, 38), (52, 60, 78), (188, 202, 222), (238, 243, 250), (255, 255, 255)),
    "red": ((28, 4, 8), (70, 8, 16), (176, 22, 34), (226, 48, 48), (255, 214, 200)),
    "blue": ((4, 10, 40), (10, 24, 92), (26, 68, 190), (60, 118, 236), (208, 228, 255)),
    "green": ((4, 22, 10), (8, 56, 24), (24, 122, 50), (62, 176, 78), (214, 246, 208)),
    "purple": ((22, 4, 38), (54, 14, 90), (112, 42, 168), (156, 84, 214), (236, 214, 255)),
    "black": ((4, 4, 8), (12, 12, 18), (26, 27, 34), (48, 50, 60), (220, 222, 230)),
    "yellow": ((40, 26, 0), (110, 76, 4), (214, 166, 18), (250, 214, 58), (255, 248, 206)),
    "orange": ((38, 14, 0), (108, 44, 4), (214, 98, 14), (248, 142, 44), (255, 228, 198)),
    "pink": ((44, 6, 24), (120, 24, 72), (222, 88, 150), (250, 146, 192), (255, 226, 240)),
}
# The first 6 tints, besides the natural look, are those of kit as it is shipped.


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


def load_sprites(source: Path, subjects: Sequence[Subject] = SUBJECTS) -> dict[str, Image.Image]:
    """The natural sprites of subjects, by name, from a colour emoji font or a folder of `<subject>.png` (RGBA).

    Raises InputError when one cannot be read.
    """
    if source.is_dir():
        try:
            return {s.name: Image.open(source / f"{s.name}.png").convert("RGBA") for s in subjects}
        except OSError as error:
            raise InputError(f"no sprite: {error}", "a folder of sprites holds a PNG for every subject") from error
    try:
        font = ImageFont.truetype(str(source), GLYPH_SIZE)
    except OSError as error:
        raise InputError(
            f"cannot read the emoji font {source}: {error}",
            "install it (Debian: apt install fonts-noto-color-emoji) or name it with --sprites",
        ) from error
    return {subject.name: draw_glyph(subject.glyph, font) for subject in subjects}


class TintedSprites(Mapping[tuple[str, str], Image.Image]):
    """Sprites by (subject, colour), tinted when first asked for."""

    def __init__(self, sprites: Mapping[str, Image.Image]) -> None:
        self.natural = sprites
        self.tinted: dict[tuple[str, str], Image.Image] = {}

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        name, colour = key
        if key not in self.tinted:
            self.tinted[key] = tint(self.natural[name], colour)
        return self.tinted[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(product(self.natural, TINTS))

    def __len__(self) -> int:
        return len(self.natural) * len(TINTS)


def tinted_sprites(source: Path, subjects: Sequence[Subject] = SUBJECTS) -> TintedSprites:
    """Every sprite in every tint, by (subject, colour)."""
    return TintedSprites(load_sprites(source, subjects))
