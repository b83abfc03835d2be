"""Mutated images of every format that Pillow opens: read, refused as unreadable (4), or unfit for the recipe (2)."""

import random
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, UnidentifiedImageError

from tests.fuzz import bounded

COUNT = 1000
_SIZE = (48, 40)
_OPTIONS = {"GIF": {"save_all": True}, "TIFF": {"compression": "tiff_lzw"}, "ICO": {"bitmap_format": "bmp"}}


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.linear_gradient("L").resize(_SIZE).convert("RGB")
    ImageDraw.Draw(image).ellipse((8, 8, 30, 30), fill=(200, 30, 90))
    return image.convert(mode)


def samples() -> dict[str, bytes]:
    """A small file of each format, in each mode that Pillow writes."""
    Image.init()
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "RGBA", "P", "F"):
            target = BytesIO()
            with warnings.catch_warnings(), suppress(Exception):  # not this mode, or only with other data
                warnings.simplefilter("ignore")
                picture(mode).save(target, kind, **_OPTIONS.get(kind, {}))
                found[f"{kind}-{mode}"] = target.getvalue()
    return found | unwritten(found)


def unwritten(written: dict[str, bytes]) -> dict[str, bytes]:
    """Files of the formats that Pillow only reads."""
    width, height = _SIZE
    grey, colour, planes = picture("L").tobytes(), picture().tobytes(), picture().split()
    little, big = struct.pack("<HH", height, width), struct.pack(">II", width, height)
    cards = ("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2")
    cards += (f"NAXIS1  = {width:>20}", f"NAXIS2  = {height:>20}", "END")
    area = (0, 4, *[0] * 6, height, width, 1, *[0] * 2, 1, *[0] * 19, 256, *[0] * 30)
    frame = struct.pack("<IHH8x", 40, 0xF1FA, 1) + struct.pack("<IH", 24, 13).ljust(100, b"\0")
    psd = struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + struct.pack(">IIIH", 0, 0, 0, 0)
    wmf = struct.pack("<4hH", 0, 0, 480, 400, 72) + bytes(6) + b"\1\0\t\0" + bytes(60)
    return {
        "BUFR": b"BUFR" + bytes(60),
        "CUR": b"\0\0\2\0" + written["ICO-RGBA"][4:],
        "DCX": struct.pack("<III", 0x3ADE68B1, 12, 0) + written["PCX-L"],
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 40\n%%EndComments\nshowpage\n",
        "FITS": b"".join(f"{each:<80}".encode() for each in cards).ljust(2880) + grey,
        "FLI": struct.pack("<IHHHHHH", 200, 0xAF12, 1, width, height, 8, 3).ljust(128, b"\0") + frame,
        "FTEX": struct.pack("<4sI2I2II3I", b"FTEX", 1, width, height, 1, 1, 1, 1, 44, len(colour)) + colour,
        "GBR": struct.pack(">II", 28 + 5, 2) + big + struct.pack(">I4sI", 1, b"GIMP", 10) + b"name\0" + grey,
        "GRIB": b"GRIB\0\0\0\1" + bytes(60),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "MCIDAS": struct.pack(">64i", *area) + grey,
        "MPEG": b"\0\0\1\xb3" + bytes((3, 0, 0x28, 0x13)) + bytes(100),
        "PCD": bytes(2048) + b"PCD_" + bytes(100_000),
        "PIXAR": (b"\x80\xe8\0\0" + bytes(412) + little + bytes(4) + b"\x0e\0\2\0").ljust(1024, b"\0") + colour,
        "PSD": b"8BPS" + psd + b"".join(each.tobytes() for each in planes),
        "SUN": struct.pack(">I", 0x59A66A95) + big + struct.pack(">5I", 8, len(grey), 1, 0, 0) + grey,
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + wmf,
        "XPM": b'/* XPM */\nstatic char *x[] = {\n"4 1 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"abab",\n};\n',
    }


def mutate(data: bytes, chance: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 3, 20))):
        place = chance.randrange(min(len(content), chance.choice((32, 128, 10**9))) or 1)
        match chance.randrange(5):
            case 0:
                content[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                number = chance.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000, 9000))
                form = chance.choice((">I", "<I")) if number > 0xFFFF else chance.choice((">H", "<H", ">I", "<I"))
                packed = struct.pack(form, number)
                content[place : place + len(packed)] = packed
            case 2:
                del content[place : place + chance.choice((1, 4, 50))]
            case 3:
                content[place:place] = content[place : place + chance.choice((1, 30, 300))]
            case _:
                content[place:place] = chance.choice((b"\x1b[31m", bytes(1000), b"\xff" * 40, b"\xe2\x80\xae"))
    return bytes(content[: chance.randrange(len(content) + 1)] if chance.random() < 0.1 else content)


def commands(chance: random.Random, file: str) -> tuple[str, ...]:
    plain = ("--dry-run", "--quiet", "--seed", "1")
    return chance.choice(
        (
            ("info", file),
            ("info", file, "--json"),
            ("replay", file, "--verify", "-m", "kit"),
            ("img2img", file, "a fox", *plain),
            ("img2img", file, "a fox", "-W", "64", "-H", "64", "--dry-run", "--json", "--seed", "1"),
            ("inpaint", "photo.png", "a fox", "--mask", file, *plain),
            ("inpaint", file, "a fox", "--mask", "alpha", "--padding", "8", *plain),
            ("outpaint", file, "a fox", "--left", "16", *plain),
            ("synthesize", file, "a fox", *plain),
        )
    )


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The samples that Pillow opens, which are of all formats that it does."""
    home = tmp_path_factory.mktemp("warm")
    picture().save(home / "a.png")
    picture("L").save(home / "m.png")
    plain = ("--dry-run", "--seed", "1")
    bounded.warm(
        home,
        ("info", "a.png"),
        ("img2img", "a.png", "a fox", *plain),
        ("inpaint", "a.png", "a fox", "--mask", "m.png", *plain),
        ("outpaint", "a.png", "a fox", "--left", "16", *plain),
    )
    found, formats = {}, set()
    for name, data in samples().items():
        with warnings.catch_warnings(), suppress(UnidentifiedImageError):
            warnings.simplefilter("ignore")
            formats.add(Image.open(BytesIO(data)).format)
            found[name] = data
    assert formats >= set(Image.OPEN) - {"DIB", "IMT", "IPTC", "XVTHUMB"}
    return found


@pytest.mark.slow
@bounded.blocks(COUNT)
def test_mutated_images(originals: dict[str, bytes], tmp_path: Path, seeds: range) -> None:
    picture().save(tmp_path / "photo.png")
    names = sorted(originals)

    def attempt(seed: int) -> Iterator[tuple[str, bounded.Run, list[str]]]:
        chance = random.Random(seed)
        name = names[seed % len(names)]
        file = f"in{seed}.{name.partition('-')[0].lower()}"
        (tmp_path / file).write_bytes(mutate(originals[name], chance))
        words = commands(chance, file)
        before = bounded.listed(tmp_path)
        done = bounded.run(*words, home=tmp_path)
        yield f"{name}: {' '.join(words)}", done, bounded.faults(done, bounded.UNREADABLE, tmp_path, before)
        (tmp_path / file).unlink()

    bounded.check(seeds, attempt)
