"""A picture that is made in two passes: a small one first, then the same larger; a trial of what hires fix does."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import pipeline, samplers
from sdcli.diffusion.architectures import unet
from sdcli.diffusion.denoise import Step, denoise
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import draw_noise, initial_latents
from sdcli.diffusion.passes import Pass, passes
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import display
from tests import pairs

SIZE, STRENGTH = {"width": 128, "height": 192}, 0.5


def recipe_of(**options: Any) -> Recipe:
    return Recipe.from_dict({"model": "", **pairs.DEFAULTS, **SIZE, **options})


def twice(recipe: Recipe) -> tuple[Pass, ...]:
    """Half the size in all steps, then the size in half of them."""
    small = recipe.replace(width=recipe.width // 2, height=recipe.height // 2)
    return Pass(small), Pass(recipe, STRENGTH)


@pytest.fixture
def in_two_passes(monkeypatch) -> None:
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
def test_the_second_pass_goes_on_from_the_first(pair, in_two_passes, family, scheduler):
    """SDXL is told the size of each pass."""
    model, seeds = pair(family).model, (7, 8)
    recipes = [recipe_of(scheduler=scheduler, seed=seed) for seed in seeds]
    latents = pipeline.sample(model, recipes)
    assert latents.shape == (2, 4, 24, 16)
    assert torch.equal(latents, by_hand(model, recipes[0], seeds))


def test_the_steps_of_both_passes_are_one_run(pair, in_two_passes):
    seen: list[Step] = []
    pipeline.sample(pair("sd15").model, [recipe_of(scheduler="heun")], seen.append)
    assert [(step.index, step.total) for step in seen] == [(index, 6) for index in range(1, 7)]
    assert [step.latents.shape[2:] for step in seen] == [(12, 8)] * 4 + [(24, 16)] * 2


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def test_one_bar_is_drawn_over_both(pair, in_two_passes, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    said: list[str] = []
    with display.progress(4, stream=terminal) as on_step:

        def watch(step: Step) -> None:
            on_step(step)
            said.append(f"{step.index}/{step.total}")

        pipeline.sample(pair("sd15").model, [recipe_of()], watch)
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
    recipe = recipe_of(image="given", mask_image="given", strength=1.0)
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
