"""Opening pictures: what beside the pixels is damaged does not matter, and colours are sRGB."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdcli.errors import InputError
from sdcli.files import metadata, pictures, png_chunks
from tests.conftest import Run
from tests.test_metadata import chunk

PIXELS = np.random.default_rng(3).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray = PIXELS, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, format_, **options)
    return buffer.getvalue()


def with_chunk(kind: bytes, body: bytes, data: bytes | None = None) -> bytes:
    data = data or encoded()
    return data[:33] + chunk(kind, body) + data[33:]


def tiff(*entries: bytes, extra: bytes = b"") -> bytes:
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + bytes(4) + extra


TURN = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
DAMAGED = {
    "EXIF that is no TIFF": (b"eXIf", b"not a tiff"),
    "EXIF cut short": (b"eXIf", b"MM\0*\0"),
    "long text": (b"tEXt", b"workflow\0" + b"x" * (3 << 20)),
    "long compressed text": (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 << 20))),
    "long international text": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
    "text cut short": (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(999))[:-6]),
    "unknown compression": (b"zTXt", b"workflow\0\7xyz"),
    "international text of two bytes": (b"iTXt", b"key\0\1"),
    "profile that is no zlib": (b"iCCP", b"icc\0\0abc"),
    "endless profile": (b"iCCP", b"icc\0\0" + zlib.compress(bytes(20 << 20))),
    "short gamma": (b"gAMA", b"\0"),
    "long resolution": (b"pHYs", bytes(10)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_chunk_that_pixels_do_not_need_is_skipped(name, tmp_path):
    data = with_chunk(*DAMAGED[name])
    found = pictures.decode(data, "photo.png")
    assert (np.asarray(found.picture) == PIXELS).all()
    assert [each.message.startswith("photo.png: its ") for each in found.warnings] == [True]
    assert found.warnings[0].field == "image"
    told = metadata.read("photo.png", data)
    assert (told.width, told.height, len(told.skipped)) == (20, 12, 1)


def test_a_wrong_checksum_of_such_a_chunk_does_not_matter():
    data = with_chunk(b"tEXt", b"parameters\0hello").replace(b"hello", b"jello")
    assert "is damaged" in pictures.decode(data, "x").warnings[0].message
    assert metadata.read("x", data).parameters is None
    with pytest.raises(InputError, match="damaged"):
        metadata.read("x", encoded()[:-30] + b"\0" + encoded()[-29:])


def test_the_other_texts_of_a_picture_are_kept():
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a fox\nSteps: 2, Sampler: Euler, Seed: 1")
    data = with_chunk(b"tEXt", b"workflow\0" + b"x" * (3 << 20), encoded(pnginfo=info))
    told = metadata.read("x", data)
    assert (told.fields["Prompt"], len(told.skipped)) == ("a fox", 1)


def test_the_orientation_is_read_alone():
    """An unusable rational number in another tag neither matters nor is mentioned."""
    rational = struct.pack(">HHII", 0x11A, 10, 1, 38)
    exif = tiff(TURN, rational, extra=struct.pack(">ii", -1, 0))
    data = encoded(format_="JPEG")
    segment = b"Exif\0\0" + exif
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1)
    found = pictures.decode(turned, "x.jpg")
    assert not found.warnings
    assert (np.asarray(found.picture) == upright).all()
    assert (np.asarray(pictures.decode(with_chunk(b"eXIf", exif), "x").picture) == np.rot90(PIXELS, -1)).all()


def test_exif_data_that_cannot_be_read_are_a_warning():
    data = encoded(format_="JPEG")
    segment = b"Exif\0\0nonsense"
    found = pictures.decode(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:], "x.jpg")
    assert "EXIF data are damaged" in found.warnings[0].message


def test_the_result_has_no_metadata():
    info = PngImagePlugin.PngInfo()
    info.add_text("key", "value")
    assert pictures.decode(encoded(pnginfo=info, dpi=(72, 72)), "x").picture.info == {}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "AVIF", "BMP", "ICO", "TGA", "DDS"]), st.data())
def test_a_damaged_file_is_read_or_refused(format_, data):
    whole = bytearray(encoded(format_=format_))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 300) - 1))] = data.draw(st.integers(0, 255))
    for read in (pictures.decode, pictures.load, lambda data, name: metadata.read(name, data)):
        try:
            read(bytes(whole), "x")
        except InputError as error:
            assert error.message.startswith(("x ", "cannot", "the image has"))  # noqa: PT017  either end is right


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60), st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"gAMA"])
)
def test_chunks_of_any_content(body, kind):
    data = with_chunk(kind, body)
    assert pictures.decode(data, "x").picture.size == (20, 12)
    assert metadata.read("x", data).width == 20


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_png_stays_as_it_is(data):
    assert png_chunks.clean(data).data == data
    assert png_chunks.clean(encoded()).data == encoded()
    assert png_chunks.clean(png_chunks.SIGNATURE + data).data.startswith(png_chunks.SIGNATURE)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "~no-such-user/x"},
        {"model": "x" * 5000},
        {"model": "a\0b"},
        {"model": True},
        {"model": []},
        {"width": "wide", "image": "photo.png"},
        {"image": 5},
        {"image": "~no-such-user/x"},
        {"control": [{}]},
        {"prompt": None},
    ],
)
def test_recorded_values_of_a_wrong_type(changes, run: Run, tmp_path: Path):
    recipe = {"model": "kit", "prompt": "a", "steps": 1, "guidance_scale": 3.0, "scheduler": "ddim", "width": 64}
    content = {
        "recipe": {**recipe, "height": 64, "seed": 1, **changes},
        "software": {"torch": []},
        "addons": [{"name": []}],
    }
    info = PngImagePlugin.PngInfo()
    info.add_text("sdcli", json.dumps(content))
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", pnginfo=info)
    done = run("info", "photo.png")
    assert done.status == 0, done.stderr
    assert "command:" not in done.stdout.decode()
    done = run("replay", "photo.png")
    assert done.status in (2, 3, 4), done.stderr
