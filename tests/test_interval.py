"""Guidance in an interval of noise levels: a loop written here, every architecture, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from sdcli import cli
from sdcli.diffusion import pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.models import loading, registry
from sdcli.models.source import Source
from sdcli.recipe.interval import Interval
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny, tiny_flow
from tests.test_denoise import ALPHAS_CUMPROD

CPU = torch.device("cpu")
GUIDED = ("sd15", "sdxl", "dit", "z-image", "sd3", "qwen-image", "flux2-base", "flux-schnell")


@torch.inference_mode()
def ddim(model: LatentDiffusionModel, recipe: Recipe, low: float, high: float) -> tuple[Tensor, int]:
    """The latents by eq. 12 of Song et al. 2021, one call of the U-Net for each half, and the number of calls."""
    (context,) = pipeline.encode_conditions(model, recipe)
    z = torch.randn((1, 4, 8, 8), generator=Generator().manual_seed(recipe.seed)).double()
    steps, calls = recipe.sampling.steps, 0
    for t in reversed(range(1, 1001, 1000 // steps)):

        def predict(embeds: Tensor | None, t: int = t, z: Tensor = z) -> Tensor:
            nonlocal calls
            calls += 1
            return model.network(z.float(), t, encoder_hidden_states=embeds, return_dict=False)[0].double()

        noise = predict(context.prompt_embeds)
        if low <= t / 1000 <= high:
            away = predict(context.negative_prompt_embeds)
            noise = away + recipe.sampling.guidance_scale * (noise - away)
        before = t - 1000 // steps
        now, then = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[before] if before >= 0 else ALPHAS_CUMPROD[0]
        z = (z - (1 - now) ** 0.5 * noise) / now**0.5 * then**0.5 + (1 - then) ** 0.5 * noise
    return z, calls


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.8), (0.0, 0.5), (0.701, 1.0), (0.0, 1.0)])
def test_a_loop_of_its_own(pair, low, high):
    model = pair("sd15").model
    asked = {**pairs.DEFAULTS, "model": "x", "steps": 10, "guidance_interval": f"{low}-{high}", "negative_prompt": "a"}
    recipe = Recipe.from_dict(asked)
    rows: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    try:
        ours = pipeline.sample(model, [recipe])
    finally:
        hook.remove()
    theirs, calls = ddim(model, recipe, low, high)
    assert (ours - theirs).abs().max() < 1e-4
    assert len(rows) == 10
    assert sum(rows) == calls


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models of each architecture, loaded when they are needed."""
    made: dict[str, tuple] = {}

    def of(family: str) -> tuple:
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "model"
            if family == "dit":
                tiny.make_dit(folder)
            else:
                (tiny_flow if family in tiny_flow.FAMILIES else tiny).make_folder(family, folder)
            made[family] = folder, loading.load(Source(folder), name="", device=CPU, dtype=torch.float32)
        return made[family]

    return of


@pytest.mark.parametrize("family", GUIDED)
def test_every_architecture_guides_inside_and_is_conditional_outside(models, family):
    folder, model = models(family)
    text = {"label": "279"} if family == "dit" else {"prompt": "arctic fox"}
    text |= {"negative_prompt": "blue"} if family not in ("dit", "flux2-base") else {}
    scale = {"true_cfg_scale": 3.0} if family == "flux-schnell" else {"guidance_scale": 3.0}
    asked = {"model": str(folder), **text, **scale, "steps": 4, "seed": 7, "width": 64, "height": 64}
    times: list[float] = []
    rows: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda *call: rows.append(_rows(*call)), with_kwargs=True)

    def sample(interval: str | None) -> tuple[Tensor, int]:
        rows.clear()
        recipe = tiny.recipe_for(registry.find(str(folder)), {**asked, "guidance_interval": interval})
        latents = pipeline.sample(model, [recipe], lambda step: times.append(step.timestep / 1000))
        return latents, sum(rows)

    try:
        (whole, both), (same, again), (plain, one) = map(sample, (None, "0-1", "0-0.0001"))
        part, some = sample(f"0-{sorted(times[:4])[1] + 0.001:.4f}")  # two of four steps
    finally:
        hook.remove()
    assert torch.equal(whole, same)
    assert both == again == 2 * one
    assert one < some < both
    assert not torch.equal(plain, whole)
    assert not torch.equal(part, whole)
    assert not torch.equal(part, plain)


def _rows(module: torch.nn.Module, arguments: tuple, options: dict) -> int:
    """How many pictures one call of a network has."""
    sample = arguments[0] if arguments else options["hidden_states"]
    return len(sample)


def test_ends_are_inside():
    interval = Interval.parse("0.25-.5")
    assert [interval.covers(time) for time in (0.2, 0.25, 0.3, 0.5, 0.51)] == [False, True, True, True, False]


@pytest.mark.parametrize("text", ["", "0.5", "0.8-0.1", "0.2-0.2", "0-1.5", "-0.1-0.5", "a-b", "0.1,0.8", "0.1-٠.8"])
def test_what_is_no_interval(text, capfd):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict({**pairs.DEFAULTS, "model": "x", "guidance_interval": text})
    assert caught.value.field == "guidance_interval"
    assert "0.1-0.8" in caught.value.hint


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_interval_is_read_back(one, other):
    low, high = sorted((round(one, 4), round(other, 4)))
    if low < high:
        read = Interval.parse(f"{np.format_float_positional(low)}-{np.format_float_positional(high)}")
        assert (read.low, read.high) == (low, high)


def test_an_interval_without_guidance_is_a_warning(capfd):
    words = ["generate", "a fox", "--guidance-scale", "1", "--guidance-interval", "0.1-0.8", "--dry-run"]
    assert cli.run(words) == 0
    assert "guidance_interval has no effect" in capfd.readouterr().err


def test_most_recipes_have_none():
    recipe = Recipe.from_dict({**pairs.DEFAULTS, "model": "x"})
    assert "guidance_interval" not in recipe.to_dict()
    assert recipe.replace(guidance_interval="0.1-0.8").to_dict()["guidance_interval"] == "0.1-0.8"
