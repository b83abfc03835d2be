"""Sizes are bounded by area before work begins, and large pictures are worked on in little memory."""

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.errors import InputError, InvalidRecipe
from sdcli.files import canvas, images, maps, pictures
from sdcli.files.palette import Class
from sdcli.recipe.bounds import MAX_IMAGE_PIXELS, MAX_PIXELS, check_area
from sdcli.recipe.parts import Initial
from sdcli.recipe.recipe import Recipe
from tests.conftest import Run
from tests.test_metadata import chunk
from tests.test_pictures import encoded
from tests.test_recipe import MINIMAL

SIDE = 2000


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has this size."""
    data = encoded()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return data[:8] + header + data[33:]


def test_a_recipe_is_bounded_by_its_area():
    assert Recipe.from_dict({**MINIMAL, "width": 16384, "height": 1024}).width == 16384
    with pytest.raises(InvalidRecipe, match=r"the size is 16384×1032, 16\.9 megapixels") as refused:
        Recipe.from_dict({**MINIMAL, "width": 16384, "height": 1032})
    assert "the limit is 16.8 megapixels, such as 4096×4096" in refused.value.hint
    assert refused.value.field == "width"


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 10**9))
def test_the_bound_is_exact(width, height, most):
    try:
        check_area(width, height, most)
    except InvalidRecipe:
        assert width * height > most
    else:
        assert width * height <= most


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["generate", "a", "-W", "16384", "-H", "16384"], 2, "16384×16384, 268.4 megapixels"),
        (["img2img", "photo.png", "a", "-W", "8192", "-H", "8192"], 2, "8192×8192, 67.1 megapixels"),
        (["img2img", "photo.png", "a", "-W", "16384"], 2, "16384×9832, 161.1 megapixels"),
        (
            ["outpaint", "photo.png", "a", "--left", "14000", "--top", "14000"],
            2,
            "image is 14020×14012, 196.4 megapixels",
        ),
        (["outpaint", "photo.png", "a", "--right", "16384", "--bottom", "16000"], 2, "megapixels"),
        (["img2img", "large.png", "a"], 4, "too many pixels: 10000×9500, 95 megapixels"),
        (["inpaint", "photo.png", "a", "--mask", "large.png"], 4, "too many pixels"),
        (["encode", "large.png"], 4, "too many pixels"),
        (["info", "large.png"], 4, "too many pixels"),
    ],
)
def test_what_is_too_large_is_refused_at_once(run: Run, tmp_path: Path, arguments, status, told):
    (tmp_path / "photo.png").write_bytes(encoded())
    (tmp_path / "large.png").write_bytes(png_of(10_000, 9_500))
    done = run(*arguments)
    assert done.status == status
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr


def test_jobs_are_bounded_too(run: Run, tmp_path: Path):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a fox", "width": 16384, "height": 8192}\n')
    done = run("batch", "jobs.jsonl", "-o", "out", "--dry-run")
    assert "134.2 megapixels" in done.stderr + done.stdout.decode()


def test_images_are_bounded_where_pillow_warns():
    assert Image.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS > MAX_PIXELS
    side = 10_000
    with pytest.raises(InputError, match="too many pixels"):
        pictures.decode(png_of(MAX_IMAGE_PIXELS // side + 1, side), "x")
    with pytest.raises(InputError, match="damaged"):  # the header is fine
        pictures.decode(png_of(MAX_IMAGE_PIXELS // side, side), "x")


def test_the_sides_of_an_extended_image_are_left_top_right_bottom():
    extended = canvas.prepare(Image.new("RGB", (10, 10)), None, Initial(image="x", left=1, top=2, right=3, bottom=4))
    assert extended.image.size == (14, 16)
    with pytest.raises(InvalidRecipe) as refused:
        canvas.prepare(Image.new("RGB", (10, 10)), None, Initial(image="x", top=16_000, right=9_000))
    assert refused.value.field == "top"


@given(st.integers(1, 100), st.integers(101, 60_000), st.booleans(), st.sampled_from([256, 512, 1024]))
def test_a_strip_is_not_worked_on_at_many_times_the_native_area(short, long, upright, native):
    own = (short, long) if upright else (long, short)
    size = canvas.good_size(own, {}, (native, native), 8)
    assert min(size.values()) >= 64
    assert size["width"] * size["height"] <= 2.2 * native**2
    assert (size["width"] <= size["height"]) == upright or size["width"] == size["height"]


def test_the_smallest_strip():
    assert canvas.good_size((1, 500), {}, (256, 256), 8) == {"width": 64, "height": 2048}


@contextmanager
def bytes_per_pixel(most: float) -> Iterator[None]:
    """What numpy takes for a picture of SIDE × SIDE pixels."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / SIDE**2
    finally:
        tracemalloc.stop()
    assert peak < most


def classes(count: int = 150) -> tuple[Class, ...]:
    rng = np.random.default_rng(0)
    return tuple(Class(i, f"c{i}", tuple(map(int, rng.integers(0, 256, 3)))) for i in range(count))


@pytest.mark.parametrize("mode", ["classes", "snap", "unknown", "indices", "deep indices"])
def test_a_map_takes_a_few_bytes_for_each_pixel(mode):
    known = classes()
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 150, (SIDE, SIDE), dtype=np.uint8)
    if mode == "classes":
        picture = maps.colours(indices, known)
    elif mode in ("snap", "unknown"):
        picture = Image.fromarray(rng.integers(0, 4, (SIDE, SIDE, 3), dtype=np.uint8) * 60)
    else:
        picture = Image.fromarray(indices.astype(np.uint16) if mode == "deep indices" else indices)
    of = maps.MapPicture(picture, "map.png", "")
    with bytes_per_pixel(40 if mode == "unknown" else 24):
        if mode == "unknown":
            with pytest.raises(InputError, match="a colour of no class"):
                maps.classify(of, known)
        else:
            made = maps.classify(of, known, snap=mode == "snap")
    assert mode in ("snap", "unknown") or (made.indices == indices).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pasting_and_hashing_take_few_bytes_for_each_pixel(mode):
    image = Image.new(mode, (SIDE, SIDE), "red")
    mask = Image.linear_gradient("L").resize((SIDE, SIDE))
    picture = Image.new("RGB", (SIDE, SIDE), "blue")
    given_ = canvas.InitialImage(image, mask, mask)
    with bytes_per_pixel(16):
        result = canvas.put_back(picture, given_, None)
        images.pixels_sha256(result)
        canvas.working(given_, None, (64, 64))
    assert result.getpixel((5, SIDE - 1))[:3] == (0, 0, 255)  # type: ignore[index]


@pytest.mark.parametrize("height", [1, 255, 256, 257, 700])
def test_rows_come_together_exactly(height):
    rng = np.random.default_rng(height)
    before = rng.integers(0, 256, (height, 9, 4), dtype=np.uint8)
    image = Image.fromarray(before)
    white: Callable[[], Image.Image] = lambda: Image.new("RGBA", image.size, "white")  # noqa: E731
    opaque = Image.alpha_composite(white(), image).convert("RGB")
    assert canvas.working(canvas.InitialImage(image), None, image.size).tobytes() == opaque.tobytes()
    mask = Image.fromarray(rng.integers(0, 256, (height, 9), dtype=np.uint8))
    picture = Image.fromarray(rng.integers(0, 256, (height, 9, 3), dtype=np.uint8))
    whole = canvas._mixed(image, picture, mask)
    assert canvas.put_back(picture, canvas.InitialImage(image, mask, mask), None).tobytes() == whole.tobytes()
