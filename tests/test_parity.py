"""The same folder, recipe and seed give the latents that diffusers' own pipelines give, to 1e-4 anywhere."""

import inspect

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from sdcli.diffusion import pipeline
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe
from tests import cases, pairs, tiny

pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")  # of diffusers' own dpm++-sde

TOLERANCE = 1e-4
WITHOUT_SIGMAS = [name for name, row in schedulers.TABLE.items() if len(row.sigmas) == 1]
STOCHASTIC = [name for name, row in schedulers.TABLE.items() if row.stochastic]


@pytest.mark.parametrize(("family", "scheduler"), cases.product(tiny.FAMILIES, schedulers.NAMES, every=4))
def test_every_family_with_every_scheduler(pair, family, scheduler):
    assert pair(family).difference(scheduler=scheduler) <= TOLERANCE


@pytest.mark.parametrize(
    ("scheduler", "sigmas"),
    cases.product([name for name in schedulers.NAMES if name not in WITHOUT_SIGMAS], schedulers.SIGMAS[1:], every=3),
)
def test_every_spacing_of_sigmas(pair, scheduler, sigmas):
    assert pair("sd15").difference(scheduler=scheduler, sigmas=sigmas) <= TOLERANCE


@pytest.mark.parametrize("scheduler", schedulers.NAMES)
def test_zero_terminal_snr(pair, scheduler):
    """A model that starts from pure noise (Lin et al. 2023): v-prediction, rescaled betas, trailing timesteps.

    diffusers' classes that cannot rescale betas are given those that its function for it makes. The first sigma is
    about 4,000: schedulers of two evaluations a step multiply what float32 rounds there, differently on each processor.
    """
    made = pair("sd21-v")
    config = {**made.model.scheduler_config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rescales = (
        "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, pairs.SCHEDULERS[scheduler][0])).parameters
    )
    their_config = config if rescales else {**config, "trained_betas": rescaled_betas()}
    options = {"scheduler": scheduler, "guidance_rescale": 0.7}
    theirs = made.theirs(their_config, **options)
    assert theirs.std() > 0.1
    tolerance = 0.01 if scheduler in ("heun", "dpm2", "dpm2-a") else TOLERANCE
    assert (made.ours(config, **options) - theirs).abs().max() <= tolerance


def rescaled_betas() -> list[float]:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0).double()
    alphas_cumprod[-1] = 2**-24
    return (1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])).tolist()


OPTIONS = {
    "negative prompt": {"negative_prompt": "snow, the"},
    "skip one layer": {"clip_skip": 2},
    "skip a layer with a negative prompt": {"clip_skip": 2, "negative_prompt": "snow"},
    "rescale": {"guidance_rescale": 0.7},
    "no guidance": {"guidance_scale": 1.0},
    "strong guidance": {"guidance_scale": 14.5, "negative_prompt": "snow"},
    "upright, of odd latents": {"width": 72, "height": 104},
    "one step": {"steps": 1},
    "empty prompt": {"prompt": ""},
}


@pytest.mark.parametrize(("family", "option"), cases.product(tiny.FAMILIES, list(OPTIONS), every=3))
def test_every_family_with_every_option(pair, family, option):
    assert pair(family).difference(**{"steps": 2, **OPTIONS[option]}) <= TOLERANCE


@pytest.mark.parametrize("scheduler", ["ddim", "tcd"])
def test_eta(pair, scheduler):
    assert pair("sd15").difference(scheduler=scheduler, eta=0.6) <= TOLERANCE


def test_options_matter(pair):
    """The comparisons above would notice an option that is not passed on."""
    made = pair("sdxl")
    plain = made.ours(steps=2)
    for option in OPTIONS.values():
        other = made.ours(**{"steps": 2, **option})
        assert other.shape != plain.shape or not torch.allclose(other, plain, atol=1e-2), option


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_a_batch_is_diffusers_batch(pair, scheduler):
    """Two pictures with a generator each; the noise of dpm++-sde has a seed for each."""
    made = pair("sd15")
    made.set_scheduler(scheduler, "default")
    seeds = [pairs.SEED, pairs.SEED + 1]
    if scheduler == "dpm++-sde":
        made.pipe.scheduler.noise_sampler_seed = seeds
    theirs = made.pipe(
        [pairs.DEFAULTS["prompt"]] * 2,
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    recipes = [
        Recipe.from_dict({"model": "", **pairs.DEFAULTS, "scheduler": scheduler, "seed": seed}) for seed in seeds
    ]
    assert (pipeline.sample(made.model, recipes) - theirs).abs().max() <= TOLERANCE
