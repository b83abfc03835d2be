"""A picture that is made in two passes: a small one first, then the same larger."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import autoencode, pipeline, samplers
from sdcli.diffusion.architectures import unet
from sdcli.diffusion.context import masked_image
from sdcli.diffusion.denoise import Step, denoise
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import draw_noise, initial_latents
from sdcli.diffusion.passes import Pass, passes
from sdcli.errors import InvalidRecipe
from sdcli.files import images
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import display
from tests import pairs

SMALL = {"width": 64, "height": 96}
HIRES = {**SMALL, "hires": "128x192", "hires_strength": 0.5}


def recipe_of(**options: Any) -> Recipe:
    return Recipe.from_dict({"model": "", **pairs.DEFAULTS, **options})


@pytest.fixture
def in_two_passes(monkeypatch) -> None:
    """Half the size in all steps, then the size in half of them, for a recipe with an image too."""

    def twice(recipe: Recipe) -> tuple[Pass, ...]:
        small = recipe.replace(width=recipe.width // 2, height=recipe.height // 2)
        return Pass(small), Pass(recipe, 0.5)

    monkeypatch.setattr(pipeline, "passes", twice)


def by_hand(model: LatentDiffusionModel, recipe: Recipe, seeds: tuple[int, ...]) -> torch.Tensor:
    """Both passes written out, with the noise of each from the same streams."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents, guidance = None, Guidance(recipe.sampling.guidance_scale)
    for width, height in ((64, 96), (128, 192)):
        scheduler = samplers.make(recipe.sampling.scheduler, "default", model.scheduler_config)
        scheduler.set_timesteps(4)
        timesteps = scheduler.timesteps
        context = unet.encode(model, recipe.condition, (width, height), guidance)
        draws = initial_latents(generators, (4, height // 8, width // 8), scheduler)
        if latents is None:
            latents = draws
        else:
            timesteps = timesteps[2:]
            larger = torch.nn.functional.interpolate(latents, scale_factor=2, mode="bilinear")
            latents = scheduler.add_noise(larger, draw_noise(generators, larger.shape[1:]), timesteps[:1])
        denoiser = unet.bind(model.network, context, guidance, len(seeds))
        latents = denoise(denoiser, scheduler, latents, timesteps=timesteps, generators=generators)
    assert latents is not None
    return latents


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_second_pass_goes_on_from_the_first(pair, family, scheduler):
    """SDXL is told the size of each pass."""
    model, seeds = pair(family).model, (7, 8)
    recipes = [recipe_of(**HIRES, scheduler=scheduler, seed=seed) for seed in seeds]
    latents = pipeline.sample(model, recipes)
    assert latents.shape == (2, 4, 24, 16)
    assert torch.equal(latents, by_hand(model, recipes[0], seeds))


def test_the_steps_of_both_passes_are_one_run(pair):
    seen: list[Step] = []
    pipeline.sample(pair("sd15").model, [recipe_of(**HIRES, scheduler="heun")], seen.append)
    assert [(step.index, step.total) for step in seen] == [(index, 6) for index in range(1, 7)]
    assert [step.latents.shape[2:] for step in seen] == [(12, 8)] * 4 + [(24, 16)] * 2


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def test_one_bar_is_drawn_over_both(pair, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    said: list[str] = []
    with display.progress(4, stream=terminal) as on_step:

        def watch(step: Step) -> None:
            on_step(step)
            said.append(f"{step.index}/{step.total}")

        pipeline.sample(pair("sd15").model, [recipe_of(**HIRES)], watch)
    assert said == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    drawn = terminal.getvalue()
    assert "6/6" in drawn
    assert "4/4" not in drawn
    assert "decoding" in drawn[drawn.rindex("denoising") :]


def test_a_masked_picture_is_held_in_both_passes(pair, in_two_passes):
    """What the mask keeps comes back from the last pass, at the picture's size."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (192, 128, 3), dtype=np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, 64, 192))
    recipe = recipe_of(width=128, height=192, image="given", mask_image="given", strength=1.0)
    made = pipeline.run(pair("sd15").model, [recipe], inputs=Inputs(InitialImage(image, mask, mask)))[0].image
    kept, painted = (np.asarray(each.crop((64, 0, 128, 192))) for each in (image, made))
    assert made.size == image.size
    assert np.array_equal(kept, painted)


def test_a_picture_is_made_in_one_pass_unless_more_are_asked_for(pair):
    recipe = recipe_of()
    assert passes(recipe) == (Pass(recipe),)
    assert Pass(recipe).steps == 4
    assert Pass(recipe_of(image="x", strength=0.6, steps=8)).steps == 4
    assert Pass(recipe, 0.5).steps == 2


def test_hires_gives_two_passes():
    first, second = passes(recipe_of(**HIRES, hires_steps=6, hires_upscaler="lanczos"))
    assert first == Pass(recipe_of(**SMALL))
    assert second == Pass(recipe_of(width=128, height=192, steps=6), 0.5, "lanczos")
    assert (first.steps, second.steps) == (4, 3)


def test_lanczos_enlarges_the_decoded_picture(pair):
    """As img2img of the first pass's picture, enlarged by Pillow."""
    model = pair("sd15").model
    small = pipeline.run(model, [recipe_of(**SMALL)])[0].image
    generator = torch.Generator().manual_seed(pairs.SEED)
    for shape in ((4, 12, 8), (4, 24, 16)):  # the noise of both passes' starts
        draw_noise([generator], shape)
    larger = images.to_pixels(small.resize((128, 192), Image.Resampling.LANCZOS))
    known = masked_image.encode_image(model, larger, [generator])
    scheduler = samplers.make("ddim", "default", model.scheduler_config)
    scheduler.set_timesteps(4)
    latents = scheduler.add_noise(known, draw_noise([generator], known.shape[1:]), scheduler.timesteps[2:3])
    context = unet.encode(model, recipe_of().condition, (128, 192), Guidance(5.0))
    denoiser = unet.bind(model.network, context, Guidance(5.0), 1)
    wanted = denoise(denoiser, scheduler, latents, timesteps=scheduler.timesteps[2:], generators=[generator])
    assert torch.equal(pipeline.sample(model, [recipe_of(**HIRES, hires_upscaler="lanczos")]), wanted)


def test_the_first_pass_is_decoded_in_the_recipes_tiles(pair, monkeypatch):
    ways: list[str] = []
    decode = autoencode.decode_finite
    monkeypatch.setattr(autoencode, "decode_finite", lambda *given: ways.append(given[2]) or decode(*given))
    pipeline.sample(pair("sd15").model, [recipe_of(**HIRES, hires_upscaler="lanczos", tiling="tiles")])
    assert ways == ["tiles"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"hires": "0.5"}, "hires"),
        ({"hires": "1"}, "hires"),
        ({"hires": "9"}, "hires"),
        ({"hires": "nan"}, "hires"),
        ({"hires": "large"}, "hires"),
        ({"hires": "64x95"}, "hires"),
        ({"hires": "64x96"}, "hires"),
        ({"hires": "16385x96"}, "hires"),
        ({"hires": "2", "image": "x.png"}, "hires"),
        ({"hires": "2", "init_latents": "x.safetensors"}, "hires"),
        ({"hires": "2", "hires_strength": 0.1}, "hires_strength"),
        ({"hires": "2", "hires_upscaler": " "}, "hires_upscaler"),
        ({"hires_strength": 0.5}, "hires_strength"),
        ({"hires_steps": 5}, "hires_steps"),
    ],
)
def test_what_hires_cannot_be(options, field):
    with pytest.raises(InvalidRecipe) as caught:
        recipe_of(**SMALL, **options)
    assert caught.value.field == field


def test_a_factor_becomes_a_size_that_the_model_takes(run, sd15, tmp_path):
    words = ("a fox", "-m", sd15, "-W", "64", "-H", "72", "--steps", "2", "--seed", "1")
    done = run("generate", *words, "--hires", "1.3", "--json", "-o", "x.png")
    line = json.loads(done.lines[0])
    assert (line["width"], line["height"]) == (80, 96)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (80, 96)
        text, recipe = image.info["parameters"], json.loads(image.info["sdcli"])["recipe"]
    assert recipe["hires"] == "80x96"
    assert "Denoising strength: 0.6, Hires resize: 80x96, Hires steps: 1, Hires upscaler: Latent" in text
    assert "Size: 64x72" in text
    assert run("replay", "--verify", "x.png").status == 0
    assert "--hires 80x96" in run("info", "x.png").stdout.decode()
    assert run("img2img", "x.png", "a fox", "-m", sd15, "--hires", "2").status == 2
    refused = run("generate", *words, "--hires", "81x96")
    assert refused.status == 2
    assert "multiples of 8" in refused.stderr
