"""img2img, inpaint and outpaint as a shell sees them, and what a recipe may say of images."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sdcli.errors import InputError, InvalidRecipe
from sdcli.files import canvas
from sdcli.models import located, registry
from sdcli.models.registry import ModelEntry
from sdcli.planning.command_line import command_of
from sdcli.recipe import checks, parts, recipe
from sdcli.recipe.recipe import Recipe
from tests import tiny
from tests.conftest import Run
from tests.test_light import HEAVY, modules_of

MINIMAL = {"model": "m", "prompt": "a fox", "steps": 20, "guidance_scale": 5.0, "scheduler": "ddim"}
MINIMAL |= {"width": 64, "height": 64, "seed": 1}


@pytest.fixture
def photo(tmp_path: Path) -> np.ndarray:
    """A picture of no multiple of 8, photo.png, and a mask of its size, mask.png; gives its pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (143, 201, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = Image.new("L", (201, 143))
    mask.paste(255, (50, 40, 120, 90))
    mask.save(tmp_path / "mask.png")
    return pixels


FAST = ("--steps", "2", "--seed", "7", "--dtype", "float32")


def recipe_in(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        said: dict[str, object] = json.loads(picture.text["sdcli"])["recipe"]
    return said


def pixels_in(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_inpaint_without_a_mask_says_what_a_mask_is(run: Run, photo):
    done = run("inpaint", "photo.png", "a fox")
    assert done.status == 2
    error, hint = done.stderr.splitlines()
    assert error == "error: sdcli inpaint needs --mask"
    assert "--mask FILE" in hint
    assert "--mask alpha" in hint


def test_inpaint_returns_what_is_not_masked_to_the_bit(run: Run, sd15: Path, photo, tmp_path: Path):
    done = run("inpaint", "photo.png", "a fox", "--mask", "mask.png", "-m", sd15, "-o", "out.png", *FAST)
    assert done.status == 0, done.stderr
    assert done.lines == ["out.png"]
    assert "note: working size 72×64, result 201×143" in done.stderr
    after = pixels_in(tmp_path / "out.png")
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[40 - 20 : 90 + 20, 50 - 20 : 120 + 20] = True  # five deviations of the blur
    assert (after == photo)[~mask].all()
    assert (after != photo)[40:90, 50:120].mean() > 0.9
    said = recipe_in(tmp_path / "out.png")
    assert (said["image"], said["mask_image"], said["strength"]) == ("photo.png", "mask.png", 1.0)
    assert (said["width"], said["height"]) == (72, 64)
    again = tiny.recipe_for(
        ModelEntry("m", folder=str(sd15)),
        {**said, "image": str(tmp_path / "photo.png"), "mask_image": str(tmp_path / "mask.png")},
    )
    assert again.to_dict() | {"image": "photo.png", "mask_image": "mask.png"} == said
    replayed = run("replay", "--verify", "out.png", "-m", sd15)
    assert replayed.status == 0, replayed.stderr
    assert replayed.lines == ["out.png"]


def test_a_u_net_of_nine_channels_inpaints_part_of_a_picture(run: Run, photo, tmp_path: Path):
    tiny.make_folder("sd15", tmp_path / "nine", in_channels=9)
    options = ("--mask", "mask.png", "--padding", "8", "--mask-blur", "0", "-m", "nine", "-o", "out.png", "--json")
    done = run("inpaint", "photo.png", "a fox", *options, *FAST)
    assert done.status == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["width"], line["height"]) == (201, 143)
    after = pixels_in(tmp_path / "out.png")
    outside = np.ones(photo.shape[:2], dtype=bool)
    outside[40:90, 50:120] = False
    assert (after == photo)[outside].all()
    assert (after != photo)[~outside].mean() > 0.9


def test_img2img_and_outpaint(run: Run, sd15: Path, photo, tmp_path: Path):
    done = run("img2img", "photo.png", "a fox", "-m", sd15, "-q", "-o", "again.png", *FAST)
    assert done.status == 0, done.stderr
    assert done.stderr == ""
    assert pixels_in(tmp_path / "again.png").shape == (143, 201, 3)
    assert recipe_in(tmp_path / "again.png")["strength"] == 0.6
    done = run("outpaint", "photo.png", "a fox", "--left", "60", "--bottom", "30", "-m", sd15, "-o", "wide.png", *FAST)
    assert done.status == 0, done.stderr
    wide = pixels_in(tmp_path / "wide.png")
    assert wide.shape == (173, 261, 3)
    assert (wide[: 143 - 20, 60 + 20 :] == photo[:-20, 20:]).all()


def test_an_image_that_does_not_fit_is_refused_before_torch(photo, sd15: Path, tmp_path: Path):
    Image.new("L", (100, 100), 255).save(tmp_path / "small.png")
    (tmp_path / "empty.png").write_bytes(b"")
    model = ["-m", str(sd15)]
    small = ["inpaint", "photo.png", "x", "--mask", "small.png", *model]
    assert modules_of(small, tmp_path, 4) & HEAVY <= {"PIL", "numpy"}
    assert modules_of(["img2img", "empty.png", "x", *model], tmp_path, 4) & HEAVY <= {"PIL", "numpy"}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["img2img", "--help"], 0),
        (["inpaint", "--help"], 0),
        (["outpaint", "--help"], 0),
        (["inpaint", "photo.png", "x"], 2),
        (["outpaint", "photo.png", "x"], 2),
        (["img2img", "photo.png"], 2),
    ],
)
def test_answers_and_refusals_import_nothing_heavy(arguments, status, tmp_path: Path):
    assert not modules_of(arguments, tmp_path, status) & HEAVY


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"strength": 0.5}, "strength"),
        ({"mask_image": "m.png"}, "mask_image"),
        ({"left": 8}, "left"),
        ({"image": "i.png", "strength": 0.01}, "strength"),
        ({"image": "i.png", "strength": 0}, "strength"),
        ({"image": "i.png", "strength": 1.5}, "strength"),
        ({"image": "i.png", "mask_blur": -1}, "mask_blur"),
        ({"image": "i.png", "padding": 2.5}, "padding"),
        ({"image": 3}, "image"),
        ({"image": "i.png", "mask_image": "m.png", "top": 8}, "mask_image"),
    ],
)
def test_what_a_recipe_cannot_say_of_images(said, field):
    with pytest.raises(InvalidRecipe) as refused:
        Recipe.from_dict({**MINIMAL, **said})
    assert refused.value.field == field


def test_a_strength_that_the_hint_names_is_taken():
    for steps in (1, 3, 7, 20, 1000):
        with pytest.raises(InvalidRecipe) as refused:
            Recipe.from_dict({**MINIMAL, "steps": steps, "image": "i.png", "strength": 0.0})
        least = float(refused.value.hint.split()[4])
        Recipe.from_dict({**MINIMAL, "steps": steps, "image": "i.png", "strength": least})


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ({"strength": 0.5}, "sdcli img2img i.png 'a fox' -W 64 -H 64 -s 1 --strength 0.5 --no-resize"),
        (
            {"mask_image": "m.png", "strength": 1.0, "invert_mask": True, "padding": 8},
            "sdcli inpaint i.png 'a fox' -W 64 -H 64 -s 1 --mask m.png --strength 1 --invert-mask --padding 8",
        ),
        ({"left": 8, "mask_blur": 0}, "sdcli outpaint i.png 'a fox' -W 64 -H 64 -s 1 --mask-blur 0 --left 8"),
    ],
)
def test_a_recipe_is_shown_as_its_command(said, command):
    plain = tiny.recipe_for(registry.find("kit"), {"prompt": "a fox", "model": "kit", "seed": 1})
    shown = command_of(
        located.find("kit"), [plain.replace(image="i.png", image_sha256="0" * 64, width=64, height=64, **said)]
    )
    assert shown == command


def test_cells_of_a_table_are_read():
    assert recipe.parse_value("strength", "0.5") == 0.5
    assert recipe.parse_value("padding", "8") == 8
    assert recipe.parse_value("image", "8") == "8"
    with pytest.raises(InvalidRecipe):
        recipe.parse_value("padding", "some")


def test_a_recipe_with_an_image_makes_the_round_trip():
    flat = {**MINIMAL, "image": "i.png", "mask_image": "alpha", "padding": 4, "strength": 1, "invert_mask": True}
    made = Recipe.from_dict(flat)
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.initial.strength == 1.0


def test_u_nets_take_what_they_take(tmp_path: Path, photo):
    nine = ModelEntry("nine", folder=str(tiny.make_folder("sd15", tmp_path / "nine", in_channels=9)))
    for said in ({}, {"image": str(tmp_path / "photo.png")}):
        with pytest.raises(InvalidRecipe, match="mask and a masked image") as refused:
            tiny.recipe_for(nine, {"prompt": "x", "model": "nine", **said})
        assert "sdcli inpaint" in refused.value.hint
    with pytest.raises(InvalidRecipe, match="8 channels, and 4 of them are unknown"):
        checks.check_channels(8, 4, masked=True)


def test_a_changed_image_is_not_taken_for_the_recipe_s(photo, sd15: Path, tmp_path: Path):
    said = {"prompt": "x", "model": "m", "image": str(tmp_path / "photo.png"), "image_sha256": "0" * 64}
    with pytest.raises(InputError, match="has changed since"):
        tiny.recipe_for(ModelEntry("m", folder=str(sd15)), said)


@pytest.mark.parametrize(
    ("options", "size", "worked_at"),
    [
        (("-W", "96", "-H", "64"), (96, 64), (96, 64)),
        (("-W", "96"), (96, 72), (96, 72)),
        (("-W", "96", "-H", "64", "--no-resize"), (201, 143), (96, 64)),
        (("--resize",), (72, 64), (72, 64)),
        ((), (201, 143), (72, 64)),
    ],
)
def test_img2img_can_change_the_size(run: Run, sd15: Path, photo, tmp_path: Path, options, size, worked_at):
    done = run("img2img", "photo.png", "a fox", "-m", sd15, "-o", "out.png", *FAST, *options)
    assert done.status == 0, done.stderr
    assert pixels_in(tmp_path / "out.png").shape == (size[1], size[0], 3)
    said = recipe_in(tmp_path / "out.png")
    assert (said["width"], said["height"], said.get("resize", False)) == (*worked_at, size == worked_at)
    if size == worked_at and size != (201, 143):
        assert f"note: photo.png is 201×143, and used at {size[0]}×{size[1]}" in done.stderr
    command = next(line for line in run("info", "out.png").lines if line.startswith("command:")).split(None, 2)[2]
    again = run(*shlex.split(command), "-o", "again.png")
    assert again.status == 0, again.stderr
    assert (pixels_in(tmp_path / "again.png") == pixels_in(tmp_path / "out.png")).all()
    assert run("replay", "--verify", "out.png").status == 0


def test_an_image_is_cropped_and_not_distorted():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    given = canvas.prepare(wide, None, parts.Initial(image="x", resize=True))
    part = canvas.working(given, None, (64, 64))
    assert (part.getpixel((9, 9)), part.getpixel((54, 9))) == ((0, 0, 255), (0, 0, 255))
    picture = Image.new("RGB", (64, 64))
    assert canvas.put_back(picture, given, None) is picture


@pytest.mark.parametrize("said", [{"mask_image": "m.png"}, {"left": 8}])
def test_what_is_repainted_in_part_keeps_its_size(said):
    with pytest.raises(InvalidRecipe) as refused:
        Recipe.from_dict({**MINIMAL, "image": "i.png", "resize": True, **said})
    assert refused.value.field == "resize"
