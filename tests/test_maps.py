"""Reading segmentation maps: whatever way a file says its classes, and what is said of one that does not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.errors import InputError
from sdcli.files import maps, palette
from sdcli.files.inputs import Inputs
from sdcli.files.palette import Class
from sdcli.planning import layouts
from sdcli.recipe.parts import Layout

CLASSES = (
    Class(0, "sky", (120, 180, 240)),
    Class(1, "sand", (240, 214, 154)),
    Class(2, "fox", (255, 128, 0)),
    Class(3, "sea", (0, 0, 90)),
)
TABLE = np.array([each.color for each in CLASSES], dtype=np.uint8)


def read(path: str, *, snap: bool = False, recorded: str | None = None) -> maps.SegmentationMap:
    return maps.classify(maps.open_map(path, recorded), CLASSES, snap=snap)


def random_indices(seed: int = 1, size: tuple[int, int] = (40, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(CLASSES), (size[1], size[0]), dtype=np.uint8)


def colour_picture(indices: np.ndarray) -> Image.Image:
    return Image.fromarray(TABLE[indices])


def with_palette(indices: np.ndarray, table: np.ndarray) -> Image.Image:
    picture = Image.fromarray(indices, "P")
    picture.putpalette(table.astype(np.uint8).tobytes())
    return picture


def shuffled(indices: np.ndarray) -> Image.Image:
    """The same colours in another order of the palette: its indices mean nothing."""
    order = np.array([2, 0, 3, 1])
    return with_palette(np.argsort(order)[indices].astype(np.uint8), TABLE[order])


WRITERS = {
    "colours": (colour_picture, "png"),
    "opaque colours with alpha": (lambda indices: colour_picture(indices).convert("RGBA"), "png"),
    "lossless WebP": (colour_picture, "webp"),
    "greys of 8 bits": (lambda indices: Image.fromarray(indices), "png"),
    "greys of 16 bits": (lambda indices: Image.fromarray(indices.astype(np.uint16)), "png"),
    "a palette in order": (lambda indices: with_palette(indices, TABLE), "png"),
    "a palette in another order": (shuffled, "png"),
    "a palette of other colours": (lambda indices: with_palette(indices, 255 - TABLE), "png"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_of_writing_a_map_is_read(kind, tmp_path: Path):
    make, suffix = WRITERS[kind]
    indices = random_indices()
    file = tmp_path / f"map.{suffix}"
    make(indices).save(file, **({"lossless": True} if suffix == "webp" else {}))
    found = read(str(file))
    np.testing.assert_array_equal(found.indices, indices)
    assert (found.indices.dtype, found.snapped, found.size) == (np.uint8, 0, (40, 24))


def test_a_bilevel_picture_holds_the_indices_0_and_1(tmp_path: Path):
    indices = random_indices() % 2
    Image.fromarray(indices * 255).convert("1").save(tmp_path / "map.png")
    np.testing.assert_array_equal(read(str(tmp_path / "map.png")).indices, indices)


def test_a_map_lies_as_its_exif_says(tmp_path: Path):
    indices = random_indices()
    picture = colour_picture(indices)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn it right by 90°
    picture.save(tmp_path / "map.png", exif=exif)
    np.testing.assert_array_equal(read(str(tmp_path / "map.png")).indices, np.rot90(indices, -1))


def test_a_colour_of_no_class_is_named_with_its_place_its_number_and_the_nearest(tmp_path: Path):
    pixels = np.array(colour_picture(random_indices()))
    pixels[5:7, 9:12] = (250, 120, 4)
    pixels[20, 3] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    with pytest.raises(InputError) as refused:
        read(str(tmp_path / "map.png"))
    assert "#fa7804, in 6 pixels, the first at 9, 5, and 1 more colour of none in 1 pixel" in refused.value.message
    assert "the nearest class is fox, #ff8000" in refused.value.hint
    assert "--snap" in refused.value.hint


@given(st.integers(0, 2**31))
def test_snapping_takes_the_nearest_class_and_leaves_the_others(tmp_path_factory, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    pixels[0, :4] = TABLE
    file = tmp_path_factory.mktemp("snap") / "map.png"
    Image.fromarray(pixels).save(file)
    found = read(str(file), snap=True)
    distances = ((pixels[:, :, None].astype(int) - TABLE.astype(int)) ** 2).sum(-1)
    np.testing.assert_array_equal(found.indices, distances.argmin(-1))
    assert found.snapped == (distances.min(-1) > 0).sum()


def test_a_palette_s_colours_count_where_they_may_be_snapped(tmp_path: Path):
    picture = with_palette(random_indices(), TABLE[::-1] ^ 1)
    picture.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read(str(tmp_path / "map.png")).indices, random_indices())
    snapped = read(str(tmp_path / "map.png"), snap=True)
    np.testing.assert_array_equal(snapped.indices, 3 - random_indices())


def test_a_palette_half_of_whose_colours_are_classes_is_one_of_colours(tmp_path: Path):
    table = TABLE.copy()
    table[3] = (9, 9, 9)
    with_palette(random_indices(), table).save(tmp_path / "map.png")
    with pytest.raises(InputError, match="#090909"):
        read(str(tmp_path / "map.png"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_index_of_no_class_is_named(dtype, tmp_path: Path):
    indices = random_indices().astype(dtype)
    indices[2, 7:9] = 200
    Image.fromarray(indices).save(tmp_path / "map.png")
    with pytest.raises(InputError) as refused:
        read(str(tmp_path / "map.png"), snap=True)
    assert "index 200 of no class, in 2 pixels, the first at 7, 2" in refused.value.message
    assert "0 … 3" in refused.value.hint


def test_transparent_pixels_are_of_no_class(tmp_path: Path):
    picture = colour_picture(random_indices()).convert("RGBA")
    picture.putpixel((3, 4), (120, 180, 240, 128))
    picture.save(tmp_path / "map.png")
    with pytest.raises(InputError, match="transparent in 1 pixel, the first at 3, 4"):
        read(str(tmp_path / "map.png"), snap=True)


@pytest.mark.parametrize(("data", "said"), [(b"", "empty"), (b"no picture", "not a picture"), (None, "cannot read")])
def test_a_file_that_is_no_picture(data, said, tmp_path: Path):
    if data is not None:
        (tmp_path / "map.png").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read(str(tmp_path / "map.png"))


def test_a_changed_file_is_refused(tmp_path: Path):
    colour_picture(random_indices()).save(tmp_path / "map.png")
    with pytest.raises(InputError, match="has changed since"):
        read(str(tmp_path / "map.png"), recorded="0" * 64)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_a_map_grows_by_whole_pixels(width, height, times):
    indices = random_indices(width * height, (width, height))
    grown = maps.fit(indices, (width * times, height * times))
    np.testing.assert_array_equal(grown, indices.repeat(times, 0).repeat(times, 1))


def test_a_map_of_another_shape_is_cut_and_not_stretched():
    indices = np.arange(16, dtype=np.uint8)[None].repeat(8, 0)
    np.testing.assert_array_equal(maps.fit(indices, (8, 8)), indices[:, 4:12])


def test_a_map_has_the_colours_of_its_classes():
    indices = random_indices()
    np.testing.assert_array_equal(np.asarray(maps.colours(indices, CLASSES)), TABLE[indices])


def test_what_is_said_of_a_map_that_is_used_otherwise_than_it_is(tmp_path: Path):
    pixels = np.array(colour_picture(random_indices()))
    pixels[0, 0] = 9
    file = tmp_path / "map.png"
    Image.fromarray(pixels).save(file)
    layout = Layout(segmentation_map=str(file), snap=True)
    found = Inputs(maps={CLASSES: read(str(file), snap=True)})
    assert list(layouts.notes(layout, found, (80, 40))) == [
        f"{file}: 1 of 960 pixels were replaced by the nearest class",
        f"{file} is 40×24, and used at 80×40, without 8 pixels of its height",
    ]
    assert len(list(layouts.notes(layout, found, (40, 24)))) == 1


def test_the_shipped_palette_is_ade20k_s():
    """Spot checks against the benchmark's list (objectInfo150) and ControlNet's colours."""
    classes = palette.shipped("ade20k")
    assert len(classes) == 150
    named = {each.name: each for each in classes}
    assert [classes[index].name for index in (0, 1, 2, 149)] == ["wall", "building", "sky", "flag"]
    assert named["sky"].color == (6, 230, 230)
    assert named["tree"].color == (4, 200, 3)
    assert named["person"].color == (150, 5, 61)
    assert (named["sea"].index, named["sea"].hex) == (26, "#0907e6")
    shared = {each.color for each in classes if sum(other.color == each.color for other in classes) > 1}
    assert shared == {(140, 140, 140)}


def test_a_palette_image_without_a_palette_is_damaged(tmp_path):
    Image.new("P", (32, 32)).save(tmp_path / "map.icns")  # which has none, as Pillow reads it
    with pytest.raises(InputError, match="damaged"):
        maps.open_map(str(tmp_path / "map.icns"))
