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
from PIL import Image, ImageCms, PngImagePlugin

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


# Colours


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile with these tags and a description."""
    text = b"made here\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(each * 65536) for each in (0.9642, 1, 0.8249)))
    tags = {b"desc": described, b"wtpt": white, b"cprt": b"text" + bytes(4) + text, **tags}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s28x3i", 128 + len(table + body), b"none", 0x02400000, b"mntr", space, b"XYZ ",
                       bytes(12), b"acsp", 63190, 65536, 54061)  # fmt: skip
    return head.ljust(128, b"\0") + table + body


def rgb_profile(columns: list[tuple[float, float, float]], gamma: float = 2.2) -> bytes:
    tags = {}
    for name, column in zip("rgb", columns, strict=True):
        tags[f"{name}XYZ".encode()] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(each * 65536) for each in column))
        tags[f"{name}TRC".encode()] = curve(gamma)
    return icc(b"RGB ", tags)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PRIMARIES = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
WIDE = rgb_profile([(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)])
TURNED = rgb_profile([*PRIMARIES[1:], PRIMARIES[0]])  # the first channel is green
GREY = icc(b"GRAY", {b"kTRC": curve(1.0)})


def decoded(data: bytes) -> tuple[np.ndarray, str]:
    found = pictures.decode(data, "x")
    assert found.picture.info == {}
    return np.asarray(found.picture), " ".join(each.message for each in found.warnings)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_a_profile_of_srgb_changes_nothing_and_is_dropped(format_):
    options = {"lossless": True} if format_ == "WEBP" else {}
    pixels, told = decoded(encoded(PIXELS, format_, icc_profile=SRGB, **options))
    assert (pixels == PIXELS).all()
    assert told == ""


@pytest.mark.parametrize("bands", [3, 4])
def test_colours_are_converted_to_srgb_by_their_profile(bands):
    alpha = PIXELS[..., :1]
    given_ = np.concatenate([PIXELS, alpha], axis=-1)[..., :bands]
    pixels, told = decoded(encoded(given_, icc_profile=TURNED))
    apart = np.abs(pixels[..., :3].astype(int) - PIXELS[..., [2, 0, 1]])
    assert np.percentile(apart, 90) < 12  # a gamma of 2.2 is not quite sRGB's curve
    assert "converted to sRGB by its profile, 'made here'" in told
    assert bands == 3 or (pixels[..., 3:] == alpha).all()


def test_a_wide_gamut_looks_the_same_after_reading():
    sample = np.full((8, 8, 3), (180, 90, 60), dtype=np.uint8)
    wide = ImageCms.profileToProfile(Image.fromarray(sample), ImageCms.createProfile("sRGB"), io.BytesIO(WIDE))
    assert wide is not None
    pixels, told = decoded(encoded(np.asarray(wide), icc_profile=WIDE))
    assert np.abs(pixels.astype(int) - sample).max() <= 2
    assert np.abs(np.asarray(wide).astype(int) - sample).max() > 10
    assert "sRGB" in told


def test_greys_follow_a_grey_profile_and_become_rgb():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels, told = decoded(encoded(ramp, icc_profile=GREY))
    light = ramp / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(pixels[..., 0] - expected).max() <= 2
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert "sRGB" in told
    deep, _ = decoded(encoded(ramp.astype(np.uint16) * 257, icc_profile=GREY))
    assert (deep == pixels).all()
    paletted = Image.fromarray(PIXELS).quantize(16)
    buffer = io.BytesIO()
    paletted.save(buffer, "PNG", icc_profile=GREY)
    pixels, told = decoded(buffer.getvalue())
    assert (pixels == np.asarray(paletted.convert("RGB"))).all()
    assert "is for GRAY, and is not used" in told


def test_a_profile_that_cannot_be_used_is_a_warning():
    for profile in (b"nonsense", SRGB[:200], b"\0" * 500, TURNED[:140]):
        pixels, told = decoded(encoded(icc_profile=profile))
        assert (pixels == PIXELS).all()
        assert "its colour profile is damaged, and is not used" in told


def test_cmyk_without_a_profile_is_converted_approximately():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(buffer, "TIFF")
    pixels, told = decoded(buffer.getvalue())
    assert np.abs(pixels.astype(int) - PIXELS).max() <= 2
    assert "CMYK" in told


def test_a_gamma_of_a_png_is_followed():
    linear = np.arange(256, dtype=np.uint8).reshape(16, 16)
    gamma = struct.pack(">I", 100_000)
    pixels, told = decoded(with_chunk(b"gAMA", gamma, encoded(linear)))
    assert pixels[0, 3, 0] == round(255 * (1.055 * (3 / 255) ** (1 / 2.4) - 0.055))
    assert "gamma 1" in told
    usual, told = decoded(with_chunk(b"gAMA", struct.pack(">I", 45455), encoded(linear)))
    assert (usual[..., 0] == linear).all()
    assert told == ""
    decoded(with_chunk(b"gAMA", bytes(4), encoded(linear)))


def test_integers_of_32_bits_are_refused():
    with pytest.raises(InputError, match="32-bit integer pixels"):
        pictures.decode(encoded(np.arange(64, dtype=np.int32).reshape(8, 8) * 10**6, "TIFF"), "x.tiff")


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_used_and_told(format_):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    options = {"lossless": True} if format_ == "WEBP" else {}
    frames[0].save(buffer, format_, save_all=True, append_images=frames[1:], **options)
    pixels, told = decoded(buffer.getvalue())
    assert (pixels[..., :3] == (255, 0, 0)).all()
    assert "several frames or pages, and only the first is used" in told
    assert "first" not in decoded(encoded(format_=format_))[1]
