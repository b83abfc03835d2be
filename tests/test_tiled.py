"""Pictures that are larger than a network takes at once, in tiles; and images that are enlarged and redrawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import pipeline, tiled
from sdcli.diffusion.denoise import Evaluation
from sdcli.errors import InvalidRecipe
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny

LARGE = {"width": 192, "height": 128}
FAST = ("--steps", "2", "--seed", "1")


def recipe_of(**options: Any) -> Recipe:
    return Recipe.from_dict({"model": "", **pairs.DEFAULTS, **LARGE, **options})


def test_tiles_see_parts_of_z_and_give_all_of_the_prediction(pair):
    space = pair("sd15").model.latent_space
    tiles = tiled.tiles_of(recipe_of(tile=64), space)
    assert len(tiles) == 3 * 4
    z = torch.randn(2, 4, 16, 24)
    seen = []

    def f(latents, timestep, evaluation):
        seen.append(latents.shape[2:])
        return 3 * latents

    blended = tiled.blended([f] * len(tiles), tiles)(z, torch.tensor(1.0), Evaluation(0, 1))
    assert torch.allclose(blended, 3 * z)
    assert set(seen) == {(8, 8)}
    assert len(tiled.tiles_of(recipe_of(tile=192), space)) == 1
    assert len(tiled.tiles_of(recipe_of(), space)) == 1


def test_a_tile_is_asked_with_its_own_size(pair):
    """SDXL is told the size of what it sees, and a transformer's noise levels depend on it."""
    contexts = pipeline.encode_conditions(pair("sdxl").model, recipe_of(tile=64))
    assert contexts[0].add_time_ids.tolist() == [[64, 64, 0, 0, 64, 64]]
    assert pipeline.encoded_by(recipe_of(tile=64)) != pipeline.encoded_by(recipe_of())


@pytest.mark.parametrize("tile", [64, 128])
def test_each_prediction_is_that_of_the_tile_alone(pair, tile):
    model, asked = pair("sd15").model, []
    network = model.network.forward

    def forward(sample, *args, **options):
        asked.append(tuple(sample.shape))
        return network(sample, *args, **options)

    model.network.forward = forward
    try:
        latents = pipeline.sample(model, [recipe_of(tile=tile, steps=1)])
    finally:
        del model.network.forward
    assert latents.shape == (1, 4, 16, 24)
    side = tile // 8
    assert set(asked) == {(2, 4, side, side)}
    assert len(asked) == {64: 12, 128: 2}[tile]
    assert not torch.equal(latents, pipeline.sample(model, [recipe_of(steps=1)]))


def test_an_enlarged_image_is_redrawn_at_its_new_size(pair):
    """With hardly any noise, the picture is about the image enlarged by Lanczos's filter, as the VAE decodes it."""
    model = pair("sd15").model
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    recipe = recipe_of(image="x", enlarge="140x100", width=144, height=104, tile=64, strength=0.25)
    made = pipeline.run(model, [recipe], inputs=Inputs(InitialImage(image)))[0].image
    assert made.size == (140, 100)
    whole = pipeline.run(model, [recipe.replace(tile=192)], inputs=Inputs(InitialImage(image)))[0].image
    assert whole.size == made.size
    assert not np.array_equal(whole, made)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"enlarge": "2"}, "enlarge"),
        ({"upscaler": "x"}, "upscaler"),
        ({"image": "x", "enlarge": "0.5"}, "enlarge"),
        ({"image": "x", "enlarge": "wide"}, "enlarge"),
        ({"image": "x", "enlarge": "2", "upscaler": ""}, "upscaler"),
        ({"image": "x", "enlarge": "2", "mask_image": "m"}, "enlarge"),
        ({"image": "x", "enlarge": "2", "resize": True}, "enlarge"),
        ({"image": "x", "enlarge": "400x300"}, "enlarge"),
        ({"tile": 8}, "tile"),
    ],
)
def test_what_is_invalid(options, field):
    with pytest.raises(InvalidRecipe) as caught:
        recipe_of(**options)
    assert caught.value.field == field


@pytest.fixture
def here(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def test_upscale_redraws(run, sd15, here):
    words = ("--redraw", "0.5", "--redraw-model", sd15, "--prompt", "stone", "--tile", "64", *FAST)
    done = run("upscale", "a.png", *words, "--json")
    line = json.loads(done.lines[0])
    assert (line["path"], line["width"], line["height"]) == ("a-upscaled.png", 140, 100)
    with Image.open(here / "a-upscaled.png") as image:
        recipe = json.loads(image.info["sdcli"])["recipe"]
        text = image.info["parameters"]
    asked = {key: recipe[key] for key in ("prompt", "enlarge", "width", "height", "tile", "strength")}
    wanted = {"prompt": "stone", "enlarge": "140x100", "width": 144, "height": 104, "tile": 64, "strength": 0.5}
    assert asked == wanted
    assert "Denoising strength: 0.5, SD upscale overlap: 16, SD upscale upscaler: Lanczos" in text
    assert run("replay", "--verify", "a-upscaled.png").status == 0
    command = run("info", "a-upscaled.png").lines[-1]
    assert "--strength 0.5" in command
    assert "--enlarge 140x100 --tile 64" in command
    assert "-W" not in command
    # its own prompt and model are used the next time
    again = run("upscale", "a-upscaled.png", "--size", "150x120", "--redraw", "0.5", "-s", "3", "-o", "b.png", "-q")
    assert again.status == 0, again.stderr
    with Image.open(here / "b.png") as image:
        found = json.loads(image.info["sdcli"])["recipe"]
        assert (image.size, found["prompt"], found["model"], found["steps"]) == ((150, 120), "stone", str(sd15), 2)
        assert found["tile"] == 64  # the model's own size


def test_a_control_image_is_divided_like_the_picture(run, sd15, here):
    tiny.make_controlnet("sd15", here / "edges")
    asked = ("a.png", "x", "-m", sd15, "--enlarge", "2", *FAST, "--strength", "0.5")
    assert run("img2img", *asked, "-o", "a1.png").status == 0
    done = run("img2img", *asked, "--control", "./edges=a.png", "-o", "a2.png")
    assert done.status == 0, done.stderr
    with Image.open(here / "a1.png") as without, Image.open(here / "a2.png") as with_control:
        assert without.size == with_control.size == (140, 100)
        assert not np.array_equal(without, with_control)


def test_a_second_pass_in_tiles(run, sd15, here):
    done = run("generate", "x", "-m", sd15, "-W", "64", "-H", "64", "--hires", "2", "--tile", "64", *FAST, "--json")
    line = json.loads(done.lines[0])
    assert (line["width"], line["warnings"]) == (128, [])


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["--prompt", "x"], 2, "--prompt has no effect without --redraw"),
        (["--redraw", "0.3"], 4, "a.png has no prompt in its metadata"),
        (["--redraw", "0.3", "--prompt", "x", "--tile", "68"], 2, "multiples of 8"),
        (["--redraw", "0.3", "--prompt", "x", "--size", "60x60"], 2, "does not enlarge"),
        (["--redraw", "0.3", "--prompt", "x", "--size", "8000x8000"], 2, "64 megapixels"),
        (["--redraw", "0.3", "--prompt", "x", "-m", "no-such"], 3, "no upscaler 'no-such'"),
        (["--redraw", "7", "--prompt", "x"], 2, "strength is 7"),
    ],
)
def test_what_redrawing_refuses(run, sd15, here, words, status, error):
    model = [] if "--redraw" not in words or "--prompt" not in words else ["--redraw-model", str(sd15)]
    done = run("upscale", "a.png", *words, *model)
    assert done.status == status
    assert error in done.stderr
    assert sorted(each.name for each in here.iterdir() if each.is_file()) == ["a.png"]
