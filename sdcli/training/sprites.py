"""Sprites: the RGBA pictures of subjects, from Fluent Emoji 3D, and their tints.

Does not depend on places, scenes or captions.
"""

import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from sdcli.errors import InputError
from sdcli.files import atomic
from sdcli.files.user_files import cache_folder
from sdcli.training.subjects import BY_NAME, SUBJECTS, Subject

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
ARCHIVE = "lobehub-fluent-emoji-3d-1.1.0.tgz"  # the file name from `npm pack`

# A tint maps luminance to a ramp of colours: dark stays dark, so that eyes and outlines survive.
RAMP_LUMINANCE = (0.0, 0.14, 0.32, 0.58, 0.82, 1.0)
Colour = tuple[int, int, int]
TINTS: Mapping[str, tuple[Colour, ...] | None] = {
    "natural": None,
    "white": ((30, 32, 44), (86, 92, 112), (176, 184, 206), (232, 236, 246), (248, 250, 254), (255, 255, 255)),
    "red": ((38, 4, 10), (92, 8, 20), (164, 14, 30), (224, 34, 44), (250, 88, 84), (255, 214, 206)),
    "blue": ((6, 10, 48), (12, 26, 104), (22, 60, 178), (46, 112, 236), (104, 164, 252), (214, 232, 255)),
    "green": ((4, 30, 14), (8, 66, 28), (20, 118, 48), (52, 176, 76), (122, 218, 120), (222, 248, 214)),
    "purple": ((26, 6, 46), (62, 18, 104), (106, 38, 166), (150, 76, 218), (190, 136, 246), (238, 222, 255)),
    "black": ((6, 6, 10), (16, 16, 22), (28, 29, 36), (48, 50, 60), (84, 87, 100), (206, 208, 218)),
    "yellow": ((64, 38, 0), (136, 92, 4), (214, 160, 10), (252, 208, 40), (255, 230, 104), (255, 250, 214)),
    "orange": ((56, 18, 0), (128, 48, 4), (204, 88, 8), (248, 132, 28), (255, 174, 84), (255, 232, 206)),
    "pink": ((70, 10, 40), (142, 30, 88), (212, 76, 140), (250, 128, 182), (255, 176, 210), (255, 230, 242)),
}
MIDDLE = 0.56
"""The luminance of a sprite's body before it is tinted."""
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Tone:
    """What a tint needs of a sprite: normalized luminance, and how much each pixel keeps of its own colour."""

    luminance: Image.Image
    kept: Image.Image


def tone_of(sprite: Image.Image, own: str = "") -> Tone:
    """Return luminance with the body at MIDDLE; accents in another colour than the body (a beak, a window) are kept.

    `own` is the subject's natural colour.
    """
    pixels = np.asarray(sprite).astype(np.float32)
    rgb, opaque = pixels[..., :3] / 255, pixels[..., 3] > 128
    luminance = rgb @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # ITU-R BT.709
    body = np.median(luminance[opaque]).clip(0.05, 0.9)
    below = MIDDLE * (luminance / body).clip(0, 1) ** (
        1.7 - 0.8 * body
    )  # eyes are only a little darker than dark bodies
    above = (1 - MIDDLE) * ((luminance - body) / (1 - body)).clip(0, 1) ** 0.85
    levelled = Image.fromarray(((below + above).clip(0, 1) * 255).round().astype(np.uint8))
    kept = accents(rgb, opaque, own)
    return Tone(levelled, Image.fromarray((kept * 255).round().astype(np.uint8)))


def hue_plane(rgb: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as vectors (..., 2); their direction is the hue and their length the chroma."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.stack([red - (green + blue) / 2, 0.866 * (green - blue)], -1)


def accents(rgb: np.ndarray, opaque: np.ndarray, own: str) -> np.ndarray:
    """Return how much the hue of each pixel differs from the main one, 0 … 1; all 0 if too many pixels differ."""
    plane = hue_plane(rgb)
    chroma = np.hypot(plane[..., 0], plane[..., 1])
    grey = np.median(chroma[opaque]) < 0.16
    ramp = (
        TINTS.get(own) if grey and own not in ("white", "black") else None
    )  # such as a bicycle's frame, between its grey wheels
    main = hue_plane(np.array(ramp[3]) / 255) if ramp else (plane * np.where(opaque, chroma, 0)[..., None]).sum((0, 1))
    length = float(np.hypot(*main))
    if grey and not ramp:
        kept = ((chroma - 0.3) / 0.12).clip(0, 1)  # for a grey body, everything with a hue is an accent
    else:
        likeness = plane @ main / (length * np.maximum(chroma, 1e-6))
        kept = ((0.35 - likeness) / 0.3).clip(0, 1) * ((chroma - 0.22) / 0.1).clip(0, 1)
    return kept if kept[opaque].mean() < 0.3 else np.zeros_like(kept)


def tint(sprite: Image.Image, colour: str, tone: Tone | None = None) -> Image.Image:
    """Return an RGBA sprite in another colour of `TINTS`. The alpha channel does not change."""
    ramp = TINTS[colour]
    if ramp is None:
        return sprite
    tone = tone or tone_of(sprite)
    levels = np.linspace(0, 1, 256)
    channels = []
    for channel in range(3):
        table = np.interp(levels, RAMP_LUMINANCE, [stop[channel] for stop in ramp]).round().astype(int)
        channels.append(tone.luminance.point(table.tolist()))
    alpha = sprite.getchannel("A")
    tinted = Image.merge("RGB", channels)
    tinted.paste(sprite.convert("RGB"), mask=tone.kept)
    tinted.putalpha(alpha)
    return tinted


def find_sprites(source: Path | None = None) -> Path:
    """Return `source`, or else the package in the user's cache; npm downloads it if it is missing.

    Raises InputError if npm is missing or fails.
    """
    if source is not None:
        return source
    kept = cache_folder() / "sprites" / ARCHIVE
    if not kept.exists():
        fetch_package(kept)
    return kept


def fetch_package(to: Path) -> None:
    """Download the package from the npm registry. Raises InputError if npm is missing or fails."""
    hint = f"run `npm pack {PACKAGE}` on another machine and give the file with --sprites"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm, which downloads the sprites of the world, is not installed", hint)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        fetched = Path(folder) / ARCHIVE
        if done.returncode or not fetched.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"npm cannot download {PACKAGE}: {last}", hint)
        to.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(to, fetched.read_bytes())


def reader_of(source: Path) -> Read:
    """Return a reader of sprite files by code, for a folder, a zip archive, or the npm package's tarball."""
    if source.is_dir():
        return lambda code: (source / f"{code}.webp").read_bytes()
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            files = {name.rsplit("/", 1)[-1]: archive.read(name) for name in archive.namelist()}
    else:
        with tarfile.open(source) as package:
            members = [member for member in package if member.isfile() and member.name.endswith(".webp")]
            files = {Path(m.name).name: read.read() for m in members if (read := package.extractfile(m))}
    return lambda code: files[f"{code}.webp"]


def read_sprite(subject: Subject, read: Read) -> Image.Image:
    """Return a subject's sprite, facing left, cropped to its visible part."""
    sprite = Image.open(BytesIO(read(subject.code))).convert("RGBA")
    if subject.flip:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return sprite.crop(sprite.getchannel("A").point(lambda level: 255 * (level > 40)).getbbox())


def load_sprites(source: Path, subjects: Sequence[Subject] = SUBJECTS) -> dict[str, Image.Image]:
    """Load the sprites of subjects in natural colours, by name.

    `source` is a folder of `<code>.webp`, a zip archive of them, or the npm package's tarball. Raises InputError if a
    sprite cannot be read.
    """
    hint = f"give a folder or a zip archive of <code>.webp, or the file that `npm pack {PACKAGE}` downloads"
    try:
        read = reader_of(source)
        return {subject.name: read_sprite(subject, read) for subject in subjects}
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the sprites in {source}: {error}", hint) from error


def write_archive(source: Path, to: Path, subjects: Sequence[Subject] = SUBJECTS) -> None:
    """Write a zip archive of the sprites of subjects, which is a source for use without a network."""
    read = reader_of(source)
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:
        for subject in subjects:
            archive.writestr(zipfile.ZipInfo(f"{subject.code}.webp"), read(subject.code))


class TintedSprites(Mapping[tuple[str, str], Image.Image]):
    """Sprites by (subject, colour), tinted on access."""

    def __init__(self, sprites: Mapping[str, Image.Image]) -> None:
        self.natural = sprites
        self.tones: dict[str, Tone] = {}

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        name, colour = key
        if colour == "natural":
            return self.natural[name]
        if name not in self.tones:
            self.tones[name] = tone_of(self.natural[name], BY_NAME[name].own)
        return tint(self.natural[name], colour, self.tones[name])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name, colour in product(self.natural, TINTS):
            if colour == "natural" or BY_NAME[name].tinted:
                yield name, colour

    def __len__(self) -> int:
        return sum(1 for _ in self)


def tinted_sprites(source: Path, subjects: Sequence[Subject] = SUBJECTS) -> TintedSprites:
    """Return all sprites in all tints, by (subject, colour). Raises InputError if one cannot be read."""
    return TintedSprites(load_sprites(source, subjects))
