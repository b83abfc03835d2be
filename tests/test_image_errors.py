"""What a shell sees where a picture, a mask or a model does not fit: two lines, a status, and no file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.conftest import Run
from tests.test_inputs import bomb, jpeg

SIZE = (96, 72)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the command runs: good pictures, masks that do not fit, and files that are no whole pictures."""
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.new("L", SIZE, 255).save(tmp_path / "white.png")
    Image.new("L", SIZE, 0).save(tmp_path / "black.png")
    Image.new("L", (50, 40), 255).save(tmp_path / "small.png")
    whole = jpeg()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bomb.png").write_bytes(bomb())
    return tmp_path


def files_in(place: Path) -> list[str]:
    """All that lies there, but for the caches that libraries keep below a home."""
    return sorted(str(each.relative_to(place)) for each in place.rglob("*") if ".cache" not in each.parts)


def check_refusal(run: Run, place: Path, arguments: list[str | Path], status: int, *said: str) -> None:
    before = files_in(place)
    done = run(*arguments, "-o", "out.png")
    assert (done.status, done.stdout) == (status, b""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    for each in said:
        assert each in done.stderr
    assert files_in(place) == before


BAD = {
    "cut.jpg": "cut.jpg is truncated or damaged",
    "empty.png": "empty.png is empty",
    "bomb.png": "bomb.png has too many pixels",
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "arguments",
    [
        ["img2img", "{}", "a fox"],
        ["inpaint", "photo.png", "a fox", "--mask", "{}"],
        ["synthesize", "{}", "a fox", "--control", "net"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_file_that_is_no_whole_picture(run: Run, place: Path, sd15: Path, arguments, bad):
    tiny.make_controlnet("sd15", place / "net")
    check_refusal(run, place, [*(each.format(bad) for each in arguments), "-m", sd15], 4, BAD[bad])


@pytest.mark.parametrize(
    ("bad", "arguments"),
    [
        ("cut.jpg", ["outpaint", "cut.jpg", "a fox", "--left", "8"]),
        ("empty.png", ["inpaint", "empty.png", "a fox", "--mask", "white.png"]),
        ("cut.jpg", ["generate", "a fox", "--control", "net=cut.jpg"]),
        *((bad, ["encode", bad]) for bad in BAD),
    ],
)
def test_wherever_a_picture_is_read(run: Run, place: Path, sd15: Path, bad, arguments):
    tiny.make_controlnet("sd15", place / "net")
    check_refusal(run, place, [*arguments, "-m", sd15], 4, BAD[bad])


def test_a_mask_of_another_size_than_the_image(run: Run, place: Path, sd15: Path):
    asked = ["inpaint", "photo.png", "a fox", "--mask", "small.png", "-m", sd15]
    check_refusal(run, place, asked, 4, "the mask is 50×40 and the image 96×72", "--fit-mask")


@pytest.mark.parametrize("mask", [["black.png"], ["white.png", "--invert-mask"]])
def test_a_mask_with_nothing_to_repaint(run: Run, place: Path, sd15: Path, mask):
    asked = ["inpaint", "photo.png", "a fox", "-m", sd15, "--mask", *mask]
    check_refusal(run, place, asked, 4, "the mask has nothing to repaint", "--invert-mask")


@pytest.mark.parametrize(
    "arguments", [["generate", "a fox"], ["img2img", "photo.png", "a fox"], ["synthesize", "photo.png", "a fox"]]
)
def test_a_u_net_that_only_inpaints_says_so(run: Run, place: Path, arguments):
    tiny.make_folder("sd15", place / "nine", in_channels=9)
    takes = "this model's U-Net takes a mask and a masked image's latents, so it can only inpaint"
    check_refusal(run, place, [*arguments, "-m", "nine"], 2, takes, "sdcli inpaint")


def test_kit_takes_no_map(run: Run, place: Path):
    check_refusal(run, place, ["synthesize", "photo.png", "a fox", "-m", "kit"], 2, "segmentation map")
