import hashlib

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from sdcli.errors import ExitStatus, InvalidPicture
from sdcli.files.images import check_picture, flatness, pixels_sha256, to_image

reals = st.floats(-3, 3, width=32)
pixel_arrays = npst.arrays(np.float32, st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)), elements=reals)


def diffusers_image(pixels: torch.Tensor) -> Image.Image:
    return VaeImageProcessor().postprocess(pixels[None], output_type="pil")[0]


@given(pixel_arrays)
def test_bytes_are_those_of_diffusers(array):
    pixels = torch.from_numpy(array)
    ours, theirs = to_image(pixels), diffusers_image(pixels)
    assert (ours.mode, ours.size) == ("RGB", theirs.size)
    assert ours.tobytes() == theirs.tobytes()


def test_every_level_and_every_tie_round_as_in_diffusers():
    levels = torch.linspace(-1, 1, 511 * 3).reshape(3, 1, 511)  # 8-bit values and the halves between them
    assert to_image(levels).tobytes() == diffusers_image(levels).tobytes()


def test_channels_rows_and_columns_stay_in_place():
    pixels = torch.full((3, 2, 3), -1.0)
    pixels[0, 0, 0], pixels[1, 0, 2], pixels[2, 1, 1] = 1, 0.5, 7
    image = to_image(pixels)
    assert [image.getpixel(at) for at in ((0, 0), (2, 0), (1, 1))] == [(255, 0, 0), (0, 191, 0), (0, 0, 255)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(dtype)
    assert to_image(pixels).tobytes() == diffusers_image(pixels.float()).tobytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4)])
def test_what_is_no_number_is_no_picture(bad, shape):
    pixels = torch.zeros(shape)
    check_picture(pixels)
    pixels[..., -1, -1, -1] = bad
    with pytest.raises(InvalidPicture) as caught:
        check_picture(pixels)
    assert caught.value.exit_status == ExitStatus.INVALID_PICTURE
    assert "float32" in caught.value.hint


def test_black_all_over_is_failure_and_nearly_black_is_night():
    night = torch.full((3, 4, 4), -1.0)
    with pytest.raises(InvalidPicture, match="black"):
        check_picture(night)
    night[2, 1, 1] = -1 + 2 / 255
    check_picture(night)


def test_one_black_picture_in_a_batch_is_found():
    batch = torch.zeros(3, 3, 4, 4)
    check_picture(batch)
    batch[1] = -4
    with pytest.raises(InvalidPicture, match="black"):
        check_picture(batch)


def test_pixels_sha256_is_of_mode_size_and_bytes_alone():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.info["parameters"] = "anything"
    assert pixels_sha256(image) == hashlib.sha256(b"RGB 2x1\n" + bytes([1, 2, 3, 1, 2, 3])).hexdigest()
    others = [Image.new("RGB", (1, 2), (1, 2, 3)), Image.new("RGB", (2, 1), (1, 2, 4)), image.convert("RGBA")]
    assert len({pixels_sha256(each) for each in [image, *others]}) == 4


def test_flat_pictures_are_told():
    flat = Image.new("RGB", (8, 8), (1, 2, 255))
    assert flatness(flat) == "the picture has a single colour: #0102ff"
    flat.putpixel((0, 0), (9, 2, 255))  # a standard deviation of 8·√63/64 = 0.99
    assert flatness(flat) == "the picture has nearly a single colour: its channels deviate by at most 1.0 out of 255"
    flat.putpixel((0, 0), (1, 2, 205))  # 50·√63/64 = 6.2
    assert flatness(flat) is None
