"""What is no mask is refused, and what a mask hardly repaints is told."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from sdcli.errors import InputError
from sdcli.files import canvas, masks
from sdcli.recipe.parts import Initial
from tests.conftest import Run

SIZE = (200, 150)
PHOTO = Image.effect_noise(SIZE, 60).convert("RGB")


def drawn(*boxes: tuple[int, int, int, int], fill: int = 255, ground: int = 0) -> Image.Image:
    mask = Image.new("L", SIZE, ground)
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=fill)
    return mask


def prepared(mask: Image.Image, **initial: object) -> tuple[canvas.InitialImage, str]:
    recorded = Initial(image="i", mask_image="m", **initial)  # type: ignore[arg-type]
    made = canvas.prepare(PHOTO, mask, recorded)
    assert {each.field for each in made.warnings} <= {"mask_image"}
    return made, "; ".join(each.message for each in made.warnings)


def noisy(level: int, invert: bool = False) -> Image.Image:
    """A square whose black is 0 … `level`."""
    pixels = np.asarray(drawn((90, 60, 110, 90))).copy()
    pixels[pixels == 0] = np.random.default_rng(0).integers(0, level + 1, (pixels == 0).sum())
    return Image.fromarray(255 - pixels if invert else pixels)


@pytest.mark.parametrize("level", [1, 2, 9, 20])
@pytest.mark.parametrize("invert", [False, True])
def test_a_black_that_is_not_quite_black_is_black(level, invert):
    made, told = prepared(noisy(level, invert), invert_mask=invert)
    clean, nothing = prepared(drawn((90, 60, 110, 90)))
    assert made.mask is not None
    assert made.mask.tobytes() == clean.mask.tobytes()  # type: ignore[union-attr]
    assert canvas.box(made, 8) == canvas.box(clean, 8) != (0, 0, *SIZE)
    assert f"black is up to {level} of 255" in told
    assert nothing == ""


def test_the_noise_of_a_jpeg_is_black():
    buffer = io.BytesIO()
    drawn((90, 60, 110, 90)).save(buffer, "JPEG", quality=60)
    made, _ = prepared(Image.open(buffer).convert("L"))
    assert canvas.box(made, 0) != (0, 0, *SIZE)


def test_an_evenly_grey_black_is_black():
    made, told = prepared(drawn((90, 60, 110, 90), fill=235, ground=16))  # the levels of video
    assert canvas.box(made, 8) != (0, 0, *SIZE)
    assert "up to 16 of 255" in told


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 90), st.sampled_from(["gradient", "radial", "blurred", "ellipse", "square"]))
def test_a_sound_mask_is_taken_as_it_is(place, kind):
    if kind == "gradient":
        mask = Image.linear_gradient("L").resize(SIZE)
    elif kind == "radial":
        mask = Image.radial_gradient("L").resize(SIZE)
    elif kind == "blurred":
        mask = drawn((place, 30, place + 70, 120)).filter(ImageFilter.GaussianBlur(9))
    elif kind == "ellipse":
        large = Image.new("L", (800, 600))
        ImageDraw.Draw(large).ellipse((place, 80, place + 400, 520), fill=255)
        mask = large.resize(SIZE, Image.Resampling.LANCZOS)
    else:
        mask = drawn((place, 30, place + 70, 120))
    cleaned, warning = masks.cleaned(mask)
    assert warning is None
    assert cleaned.tobytes() == mask.tobytes()
    assert not [each for each in prepared(mask)[0].warnings if "thin" in each.message]


@pytest.mark.parametrize(("width", "thin"), [(1, True), (2, True), (3, True), (40, False)])
def test_a_thin_mask_is_told_with_what_remains(width, thin):
    _, told = prepared(drawn((20, 20, 180, 19 + width)))
    assert ("the mask is thin: blurred by 4 pixels," in told) == thin
    assert "thin" not in prepared(drawn((20, 20, 180, 19 + width)), mask_blur=0.0)[1]


def test_thin_parts_of_a_mask_are_told():
    dots = drawn((5, 5, 35, 35), *((x, 60 + y, x + 1, 61 + y) for x in range(10, 190, 9) for y in range(0, 80, 9)))
    assert "thin" in prepared(dots)[1]


def test_greys_are_told_with_their_share():
    assert "uniformly grey: at most 78% of the new picture" in prepared(drawn(ground=200))[1]
    assert "nowhere white: at most 59%" in prepared(drawn((90, 60, 130, 100), fill=150))[1]
    assert "nowhere black: at least 39%" in prepared(drawn((90, 60, 130, 100), ground=100))[1]
    assert prepared(drawn(ground=255))[1] == ""


def test_a_mask_that_is_no_mask_is_refused():
    colours = np.random.default_rng(1).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    photo = Image.fromarray(colours)
    with pytest.raises(InputError, match=r"m\.png is no mask: it has colours") as refused:
        masks.of_picture(photo, "m.png")
    assert "white where to repaint" in refused.value.hint
    red = Image.new("RGB", SIZE)
    red.paste((255, 40, 40), (90, 60, 110, 90))
    with pytest.raises(InputError, match="colours in 600 pixels"):
        masks.of_picture(red, "m.png")


@pytest.mark.parametrize("ground", ["photo", "grey", "black"])
def test_a_copy_with_a_transparent_hole_is_refused_with_the_way_to_say_it(ground):
    cutout = PHOTO.copy() if ground == "grey" else Image.new("RGB", SIZE, "black")
    if ground == "photo":
        cutout = Image.merge("RGB", [Image.effect_noise(SIZE, 90) for _ in range(3)])
    cutout.putalpha(drawn((90, 60, 110, 90), fill=0, ground=255))
    with pytest.raises(InputError, match="is no mask") as refused:
        masks.of_picture(cutout, "m.png")
    assert "--mask alpha" in refused.value.hint


def test_white_on_a_transparent_ground_is_a_mask():
    strokes = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    shape = drawn((90, 60, 110, 90)).filter(ImageFilter.GaussianBlur(1))
    strokes.paste((255, 255, 255), (0, 0, *SIZE), shape)
    strokes = Image.merge("RGBA", (*Image.new("RGB", SIZE, "white").split(), shape))
    assert masks.of_picture(strokes, "m").tobytes() == shape.tobytes()
    half = Image.merge("RGBA", (*drawn((9, 9, 50, 50)).convert("RGB").split(), Image.new("L", SIZE, 255)))
    assert masks.of_picture(half, "m").tobytes() == drawn((9, 9, 50, 50)).tobytes()


def test_a_white_picture_with_a_transparent_hole_is_said_to_keep_it(run: Run, tmp_path: Path):
    PHOTO.save(tmp_path / "photo.png")
    white, small = Image.new("RGB", SIZE, "white"), drawn((90, 60, 110, 90))
    for name, alpha in (("hole", drawn((90, 60, 110, 90), fill=0, ground=255)), ("strokes", small)):
        Image.merge("RGBA", (*white.split(), alpha)).save(tmp_path / f"{name}.png")
    asked = ("inpaint", "photo.png", "a fox", "--dry-run", "-s", "1", "--mask")
    assert "transparent part is kept" in run(*asked, "hole.png").stderr
    for words in (("hole.png", "--invert-mask"), ("strokes.png",)):
        assert "transparent" not in run(*asked, *words).stderr


def test_an_opaque_image_has_no_transparent_part(run: Run, tmp_path: Path):
    PHOTO.convert("RGBA").save(tmp_path / "opaque.png")
    done = run("inpaint", "opaque.png", "a fox", "--mask", "alpha", "--dry-run")
    assert done.status == 4
    assert "opaque.png is opaque everywhere" in done.stderr


def test_a_mask_s_warnings_reach_the_shell_and_are_errors_if_strict(run: Run, tmp_path: Path):
    PHOTO.save(tmp_path / "photo.png")
    drawn((20, 20, 180, 20)).save(tmp_path / "line.png")
    asked = ("inpaint", "photo.png", "a fox", "--mask", "line.png", "--dry-run", "-s", "1")
    done = run(*asked)
    assert (done.status, done.stderr.count("warning: the mask is thin")) == (0, 1), done.stderr
    assert run(*asked, "--strict").status == 2
