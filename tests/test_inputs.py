"""Reading pictures and masks, the size they are worked on at, and putting the work back to the bit."""

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from sdcli.errors import InputError
from sdcli.files import canvas, inputs, masks
from sdcli.recipe.parts import Initial, Layout

HOME = (256, 256)
TAKES: Any = {"latent_channels": 4, "scaling_factor": 0.18215}


def noise(width: int, height: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels.squeeze()).save(path)
    return str(path)


def read(path: Path | str, **initial: object) -> canvas.InitialImage:
    found = inputs.read(Initial(image=str(path), **initial), Layout(), **TAKES).image  # type: ignore[arg-type]
    assert found is not None
    return found


@st.composite
def soft_masks(draw: st.DrawFn, width: int, height: int) -> Image.Image:
    """Rectangles, thin lines, dots and greys."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    for _ in range(draw(st.integers(1, 4))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        pixels[top:bottom, left:right] = draw(st.sampled_from([1, 90, 128, 255]))
    pixels[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 255
    return Image.fromarray(pixels)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_changes_where_the_mask_is_zero(data):
    width, height = data.draw(st.integers(200, 1100)), data.draw(st.integers(200, 1100))
    bands = data.draw(st.sampled_from([3, 4]))
    before = noise(width, height, bands, seed=width)
    blur, padding = data.draw(st.sampled_from([0.0, 1.5, 4.0, 20.0])), data.draw(st.sampled_from([None, 0, 37]))
    mask = data.draw(soft_masks(width, height))
    initial = Initial(image="x", mask_image="m", mask_blur=blur)
    if blur and not np.asarray(masks.cleaned(mask)[0].filter(ImageFilter.GaussianBlur(blur))).any():
        with pytest.raises(InputError, match="no part of it is left"):
            canvas.prepare(Image.fromarray(before), mask, initial)
        return
    given_ = canvas.prepare(Image.fromarray(before), mask, initial)
    asked = canvas.complete(given_, {"padding": padding}, HOME, 8)
    picture = Image.fromarray(noise(asked["width"], asked["height"], seed=1))
    after = np.asarray(canvas.put_back(picture, given_, padding))
    outside = np.asarray(given_.mask) == 0
    assert after.shape == before.shape
    assert (after == before)[outside].all()
    repainted = np.asarray(given_.mask) == 255
    assert not repainted.any() or (after != before)[repainted].any()


def test_a_mask_that_softening_leaves_nothing_of_is_refused():
    mask = Image.new("L", (64, 64))
    mask.putpixel((30, 30), 255)
    initial = Initial(image="x", mask_image="m", mask_blur=20.0)
    with pytest.raises(InputError, match="softened by 20 pixels, no part of it is left") as refused:
        canvas.prepare(mask.convert("RGB"), mask, initial)
    assert "--mask-blur" in refused.value.hint


def test_what_is_fully_masked_is_the_picture():
    image, picture = Image.fromarray(noise(30, 20)), Image.fromarray(noise(30, 20, seed=1))
    mask = Image.new("L", (30, 20), 255)
    assert canvas.put_back(picture, canvas.InitialImage(image, mask, mask), None).tobytes() == picture.tobytes()


def test_colours_mix_by_their_opacity():
    """Half of an opaque red over transparent green is a half-opaque pure red."""
    image = Image.new("RGBA", (1, 1), (0, 255, 0, 0))
    mask = Image.new("L", (1, 1), 128)
    mixed = canvas.put_back(Image.new("RGB", (1, 1), "red"), canvas.InitialImage(image, mask, mask), None)
    assert mixed.getpixel((0, 0)) == (255, 0, 0, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(orientation, tmp_path):
    """A picture with a red top left corner, as each camera position stores it (Exif 2.32, tag 0112)."""
    shown = np.zeros((16, 24, 3), dtype=np.uint8)
    shown[:8, :8] = (255, 0, 0)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[::-1],
        7: shown.transpose(1, 0, 2)[::-1, ::-1],
        8: shown.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(read(tmp_path / "turned.png").image) == shown).all()


def test_palettes_greys_and_alpha(tmp_path):
    pixels = noise(9, 7)
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert read(tmp_path / "palette.png").image.tobytes() == palette.convert("RGB").tobytes()
    palette.save(tmp_path / "clear.png", transparency=3)
    assert read(tmp_path / "clear.png").image.mode == "RGBA"
    grey = save(tmp_path / "grey.png", pixels[..., :1])
    assert (np.asarray(read(grey).image) == pixels[..., :1]).all()
    rgba = save(tmp_path / "rgba.png", noise(9, 7, 4))
    assert read(rgba).image.tobytes() == noise(9, 7, 4).tobytes()


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert (np.asarray(read(tmp_path / "deep.png").image)[..., 1].ravel() == np.arange(256)).all()
    Image.fromarray(ramp).save(tmp_path / "clear.png", transparency=257 * 7)
    clear = read(tmp_path / "clear.png").image
    assert clear.mode == "RGBA"
    assert (np.asarray(clear)[..., 3].ravel() == np.where(np.arange(256) == 7, 0, 255)).all()


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read(tmp_path / "float.tiff")


def bomb() -> bytes:
    """The start of a PNG of 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"no picture at all", "not a picture"),
        (jpeg()[:1500], "truncated"),
        (bomb(), "too many pixels"),
    ],
    ids=["empty", "text", "truncated", "bomb"],
)
def test_what_is_no_whole_picture_is_refused(data, said, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError, match=said) as refused:
        read(tmp_path / "file")
    assert refused.value.hint


@pytest.mark.parametrize("place", [".", "missing.png"])
def test_what_is_no_file_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / place)


def test_files_are_known_by_their_sum(tmp_path):
    path = save(tmp_path / "image.png", noise(64, 64))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert read(path).image_sha256 == digest
    assert read(path, image_sha256=digest).image.size == (64, 64)
    with pytest.raises(InputError, match="has changed since") as refused:
        read(path, image_sha256="0" * 64)
    assert "0" * 64 in refused.value.hint


def test_a_mask_of_another_size(tmp_path):
    image, mask = save(tmp_path / "i.png", noise(40, 30)), save(tmp_path / "m.png", np.full((10, 20), 255, np.uint8))
    with pytest.raises(InputError, match="the mask is 20×10 and the image 40×30") as refused:
        read(image, mask_image=mask)
    assert "--fit-mask" in refused.value.hint
    fitted = read(image, mask_image=mask, fit_mask=True).mask
    assert fitted is not None
    assert fitted.size == (40, 30)


def test_nothing_to_repaint(tmp_path):
    image, mask = save(tmp_path / "i.png", noise(40, 30)), save(tmp_path / "m.png", np.full((30, 40), 100, np.uint8))
    with pytest.raises(InputError, match="nothing to repaint"):
        read(image, mask_image=mask)
    assert read(image, mask_image=mask, invert_mask=True).mask is not None


def test_alpha_is_a_mask_of_what_is_transparent(tmp_path):
    pixels = noise(40, 30, 4)
    mask = read(save(tmp_path / "i.png", pixels), mask_image="alpha", mask_blur=0.0).mask
    assert (np.asarray(mask) == 255 - pixels[..., 3]).all()
    with pytest.raises(InputError, match="no alpha"):
        read(save(tmp_path / "opaque.png", noise(40, 30)), mask_image="alpha")


def test_borders_mirror_the_image_and_are_repainted():
    pixels = noise(5, 4)
    extended, mask = canvas.extend(Image.fromarray(pixels), (3, 1, 12, 0))
    after = np.asarray(extended)
    assert extended.size == mask.size == (20, 5)
    assert (after[1:, 3:8] == pixels).all()
    assert (after[1:, :3] == pixels[:, 3:0:-1]).all()
    assert (after[0, 3:8] == pixels[1]).all()
    assert (np.asarray(mask) == 0).sum() == 20


def test_the_size_that_is_worked_on():
    def size(wide: int, high: int, **asked: int) -> tuple[int, int]:
        done = canvas.complete(canvas.InitialImage(Image.new("RGB", (wide, high))), asked, HOME, 8)
        return done["width"], done["height"]

    assert size(256, 256) == (256, 256)
    assert size(301, 203) == (304, 200)  # at home, but for whole latents
    assert size(512, 256) == (512, 256)
    assert size(1024, 1024) == (256, 256)
    assert size(1600, 400) == (512, 128)
    assert size(32, 32) == (256, 256)
    assert size(5000, 10)[1] == 64
    assert size(800, 400, width=208) == (208, 104)
    assert size(800, 400, height=128) == (256, 128)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_valid_and_near_the_home_area(width, height):
    done = canvas.complete(canvas.InitialImage(Image.new("L", (width, height))), {}, HOME, 8)
    assert done["width"] % 8 == done["height"] % 8 == 0
    assert min(done["width"], done["height"]) >= 64
    if 0.25 < width / height < 4:
        assert 0.45 <= done["width"] * done["height"] / (256 * 256) <= 2.1


def test_padding_works_on_the_masked_part_alone():
    mask = Image.new("L", (800, 600))
    mask.paste(255, (100, 200, 150, 250))
    given_ = canvas.InitialImage(Image.new("RGB", (800, 600)), mask, mask)
    assert canvas.box(given_, 10) == (90, 190, 160, 260)
    assert canvas.box(given_, 150) == (0, 50, 300, 400)
    assert canvas.box(given_, None) == (0, 0, 800, 600)
    done = canvas.complete(given_, {"padding": 10}, HOME, 8)
    assert (done["width"], done["height"]) == (256, 256)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ((100, 200, 101, 600), (1, 200, 201, 600)),
        ((790, 200, 791, 600), (600, 200, 800, 600)),
        ((0, 300, 800, 301), (0, 101, 800, 501)),
        ((0, 599, 300, 600), (0, 450, 300, 600)),
        ((7, 7, 8, 8), (7, 7, 8, 8)),
    ],
)
def test_a_thin_part_is_worked_on_at_a_shape_that_models_know(line, box):
    mask = Image.new("L", (800, 600))
    mask.paste(255, line)
    given_ = canvas.InitialImage(Image.new("RGB", (800, 600)), mask, mask)
    assert canvas.box(given_, 0) == box
    done = canvas.complete(given_, {"padding": 0}, HOME, 8)
    assert 0.5 <= done["width"] / done["height"] <= 2
    assert done["width"] * done["height"] <= 1.1 * 256 * 256


def test_a_part_cannot_be_wider_than_the_image():
    mask = Image.new("L", (300, 20), 255)
    assert canvas.box(canvas.InitialImage(mask.convert("RGB"), mask, mask), 5) == (0, 0, 300, 20)


def test_a_thin_line_still_repaints_its_cells():
    mask = Image.new("L", (64, 64))
    mask.paste(255, (9, 0, 10, 64))
    cells = np.asarray(canvas.working_mask(canvas.InitialImage(mask.convert("RGB"), mask, mask), None, (64, 64), 8))
    assert (cells[:, 8:16] == 255).all()
    assert (cells == 255).sum() == 64 * 8
    assert set(np.unique(cells)) == {0, 255}


def test_transparent_pixels_are_seen_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert canvas.working(canvas.InitialImage(image), None, (8, 8)).getpixel((0, 0)) == (255, 255, 255)


def test_a_mask_s_own_transparency_is_black():
    assert masks.of_picture(Image.new("RGBA", (1, 1), (255, 255, 255, 0)), "m").getpixel((0, 0)) == 0
    assert masks.of_picture(Image.new("RGBA", (1, 1), (255, 255, 255, 255)), "m").getpixel((0, 0)) == 255
