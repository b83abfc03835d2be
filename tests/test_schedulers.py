"""The table of schedulers: what it says of diffusers' classes, what it refuses, and what it makes."""

import importlib
import inspect
from types import MappingProxyType

import diffusers
import numpy as np
import pytest
import torch

from sdcli.diffusion.samplers import make
from sdcli.errors import ExitStatus, InvalidRecipe
from sdcli.recipe.schedulers import NAMES, SIGMAS, TABLE, a1111_name, check, from_a1111
from tests import cases, pairs, tiny

CONFIGS = {family: {**tiny.NOISE_SCHEDULE, **config} for family, config in tiny.SCHEDULERS.items()}
SD15 = CONFIGS["sd15"]


def class_of(name: str) -> type:
    row = TABLE[name]
    return getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{row.module}"), row.class_name)


def parameters(name: str) -> set[str]:
    return set(inspect.signature(class_of(name)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_classes_take(name):
    row = TABLE[name]
    assert row.sigmas == tuple(each for each in SIGMAS if each == "default" or f"use_{each}_sigmas" in parameters(name))
    assert ("noise_sampler_seed" in parameters(name)) == row.brownian
    assert ("rescale_betas_zero_snr" in parameters(name)) == row.zero_snr
    assert ("eta" in inspect.signature(class_of(name).step).parameters) == row.takes_eta
    assert set(row.options) <= parameters(name)
    assert class_of(name) is getattr(diffusers, row.class_name)


def stepped(name: str, seed: int, prediction_type: str = "epsilon", steps: int = 4) -> torch.Tensor:
    """Latents after `steps` steps with a U-Net that answers a tenth of its input, all noise drawn from `seed`."""
    made = make(name, "default", {**SD15, "prediction_type": prediction_type}, noise_seeds=[seed])
    made.set_timesteps(steps)
    latents = torch.ones(1, 4, 4, 4) * made.init_noise_sigma
    taken = inspect.signature(made.step).parameters
    given = {"generator": [torch.Generator().manual_seed(seed)], "eta": 0.0}
    options = {key: value for key, value in given.items() if key in taken}
    for timestep in made.timesteps:
        noise_pred = made.scale_model_input(latents, timestep) / 10
        latents = made.step(noise_pred, timestep, latents, return_dict=False, **options)[0]
    return latents


@pytest.mark.parametrize("name", NAMES)
def test_the_stochastic_ones_draw_noise_and_the_others_do_not(name):
    first = stepped(name, 1)
    assert first.isfinite().all()
    assert torch.equal(first, stepped(name, 1))
    assert torch.equal(first, stepped(name, 2)) == (not TABLE[name].stochastic)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_which_follow_a_model_that_predicts_x_0(name):
    if "sample" in TABLE[name].predictions:
        assert stepped(name, 1, "sample").isfinite().all()
    else:
        with pytest.raises((NotImplementedError, ValueError), match="prediction_type"):
            stepped(name, 1, "sample")


@pytest.mark.parametrize(
    ("solver", "family"),
    cases.product(
        [(name, sigmas) for name in NAMES for sigmas in TABLE[name].sigmas], ["sd15", "sdxl", "sd-turbo"], every=3
    ),
)
def test_make_is_from_config(solver, family):
    name, sigmas = solver
    class_name, extra = pairs.SCHEDULERS[name]
    if sigmas != "default":
        extra = {**extra, f"use_{sigmas}_sigmas": True}
    theirs = getattr(diffusers, class_name).from_config(CONFIGS[family], **extra)
    ours = make(name, sigmas, MappingProxyType(CONFIGS[family]), noise_seeds=[pairs.SEED])
    theirs.set_timesteps(6)
    ours.set_timesteps(6)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for key in parameters(name) - {"noise_sampler_seed"}:
        assert ours.config[key] == theirs.config[key], key
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    if hasattr(theirs, "sigmas"):
        assert torch.equal(ours.sigmas, theirs.sigmas)


def test_defaults_of_another_class_are_not_taken_over():
    """What a loaded scheduler's config holds by default only, diffusers leaves to the next class's default."""
    pndm = diffusers.PNDMScheduler.from_config(SD15)
    assert pndm.config["timestep_spacing"] == "leading"
    assert make("dpm++-2m", "default", pndm.config).config["timestep_spacing"] == "linspace"


def test_default_sigmas_are_the_models():
    config = {**CONFIGS["sdxl"], "use_karras_sigmas": True}
    assert make("euler", "default", config).config["use_karras_sigmas"]
    beta = make("euler", "beta", config)
    assert (beta.config["use_karras_sigmas"], beta.config["use_beta_sigmas"]) == (False, True)


def test_the_row_wins_over_the_models_config():
    config = {**SD15, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    made = make("dpm++-2m", "default", config).config
    assert (made["algorithm_type"], made["solver_order"]) == ("dpmsolver++", 2)


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_the_brownian_noise_of_a_picture_is_its_seeds(sigmas):
    """A batch's noise is that of its pictures alone, and stays within its path: no warning of torchsde's."""

    def final(seeds):
        made = make("dpm++-sde", sigmas, SD15, noise_seeds=seeds)
        made.set_timesteps(4)
        latents = torch.ones(len(seeds), 4, 4, 4) * made.init_noise_sigma
        for timestep in made.timesteps:
            latents = made.step(latents / 100, timestep, latents, return_dict=False)[0]
        return latents

    together = final([5, 6])
    assert torch.allclose(together[0], final([5])[0], atol=1e-5)
    assert torch.allclose(together[1], final([6])[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-1)


def refused(*arguments, **options) -> InvalidRecipe:
    with pytest.raises(InvalidRecipe) as caught:
        check(*arguments, **options)
    assert caught.value.exit_status is ExitStatus.USAGE
    return caught.value


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "euler-a", "lcm", "tcd"])
def test_sigmas_that_a_scheduler_lacks(name):
    check(name, "default", 0.0)
    error = refused(name, "karras", 0.0)
    assert error.field == "sigmas"
    assert error.message == f"the scheduler {name} does not support karras sigmas"
    assert "dpm++-2m" in error.hint
    assert "ddim" not in error.hint


def test_eta_where_none_is_taken():
    for name in NAMES:
        if name in ("ddim", "tcd"):
            check(name, "default", 0.5)
        else:
            error = refused(name, "default", 0.5)
            assert error.field == "eta"
            assert error.hint == "use --eta 0, or one of ddim, tcd"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_has_the_betas_of_a_zero_snr_model(name, prediction_type):
    """By Algorithm 1 of Lin et al. 2023 in numpy; the classes that cannot rescale betas are given them."""
    config = {**SD15, "rescale_betas_zero_snr": True, "prediction_type": prediction_type}
    check(name, "default", 0.0, config, steps=4)
    root = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    ours = make(name, "default", config, noise_seeds=[1]).alphas_cumprod.double().numpy()
    assert ours[:-1] == pytest.approx(expected[:-1], rel=2e-3)
    assert 0 <= ours[-1] <= 2**-23


def test_beta_sigmas_are_not_for_a_schedule_that_starts_at_pure_noise():
    zero_snr = {**SD15, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert refused("euler", "beta", 0.0, zero_snr, 20).field == "sigmas"
    check("euler", "karras", 0.0, zero_snr, 20)
    check("euler", "beta", 0.0, {**SD15, "prediction_type": "v_prediction"}, 20)


@pytest.mark.parametrize("name", ["pndm", "euler-a", "dpm2", "dpm2-a", "dpm++-sde"])
def test_a_model_that_predicts_x_0(name):
    error = refused(name, "default", 0.0, {**SD15, "prediction_type": "sample"})
    assert error.field == "scheduler"


@pytest.mark.parametrize(
    ("name", "config", "steps", "hint"),
    [
        ("lcm", {"original_inference_steps": 8}, 9, "steps must be between 1 and 8"),
        ("tcd", {}, 51, "steps must be between 1 and 50"),
        ("ddim", {"num_train_timesteps": 100}, 99, "steps must be between 1 and 98"),
        ("pndm", {}, 999, "steps must be between 1 and 998"),
        ("ddim", {"timestep_spacing": "trailing"}, 61, "the nearest numbers of steps are 60 and 62"),
        ("euler", {"timestep_spacing": "trailing"}, 122, "the nearest numbers of steps are 120 and 123"),
    ],
)
def test_steps_that_a_scheduler_gets_wrong(name, config, steps, hint):
    check(name, "default", 0.0, config)
    error = refused(name, "default", 0.0, config, steps=steps)
    assert (error.field, error.hint) == ("steps", hint)


@pytest.mark.parametrize(("name", "spacing"), cases.product(NAMES, ["linspace", "leading", "trailing"], every=3))
def test_steps_that_pass_give_as_many_timesteps_in_range(name, spacing):
    """What `check` lets through makes whole schedules; the refused 61 and 122 of 1000 are diffusers' own errors."""
    config = {**SD15, "timestep_spacing": spacing}
    for steps in (1, 2, 3, 50, 61, 62, 122, 998):
        try:
            check(name, "default", 0.0, config, steps)
        except InvalidRecipe:
            continue
        made = make(name, "default", config, noise_seeds=[1])
        made.set_timesteps(steps)
        assert made.timesteps.min() >= 0
        assert made.timesteps.max() <= 999
        expected = {"pndm": steps + (steps > 1)}.get(name, steps * made.order - (made.order - 1))
        assert len(made.timesteps) == expected, steps


def test_trailing_steps_are_diffusers_error():
    """The day this fails, diffusers has fixed it, and the refusal can go."""
    made = make("ddim", "default", {**SD15, "timestep_spacing": "trailing"})
    made.set_timesteps(61)
    assert len(made.timesteps) == 62
    assert made.timesteps[-1] == -1


@pytest.mark.parametrize(
    ("name", "sigmas", "theirs"),
    [
        ("dpm++-2m", "karras", "DPM++ 2M Karras"),
        ("dpm++-2m-sde", "exponential", "DPM++ 2M SDE Exponential"),
        ("euler-a", "default", "Euler a"),
        ("ddim", "default", "DDIM"),
        ("unipc", "default", "UniPC"),
        ("dpm++-sde", "karras", "DPM++ SDE Karras"),
        ("pndm", "default", "PLMS"),
        ("dpm2-a", "karras", "DPM2 a Karras"),
    ],
)
def test_names_that_other_tools_write(name, sigmas, theirs):
    assert a1111_name(name, sigmas) == theirs
    assert from_a1111(theirs) == (name, sigmas)


def test_every_name_is_found_again():
    for name in NAMES:
        for sigmas in TABLE[name].sigmas:
            assert from_a1111(a1111_name(name, sigmas)) == (name, sigmas)


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "expected"),
    [
        ("DPM++ 2M", "Karras", ("dpm++-2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpm++-2m", "default")),
        ("Euler", "Beta", ("euler", "beta")),
        ("Euler a", "Karras", None),
        ("DPM++ 2S a", "", None),
        ("Restart", "", None),
        ("Euler", "SGM Uniform", None),
        ("", "", None),
    ],
)
def test_schedule_types(sampler, schedule_type, expected):
    assert from_a1111(sampler, schedule_type) == expected


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)
    assert len({row.a1111 for row in TABLE.values()}) == len(NAMES)
