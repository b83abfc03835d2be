"""The loop, by closed forms: U-Nets whose answers are known, so that what comes out is known too."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sdcli.diffusion import samplers
from sdcli.diffusion.architectures import dit, unet
from sdcli.diffusion.context import Context
from sdcli.diffusion.denoise import Denoiser, denoise, start_at
from sdcli.diffusion.guidance import Guidance, guide
from sdcli.diffusion.noise import initial_latents
from sdcli.recipe import schedulers

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)
SHAPE = (4, 6, 5)
INEXACT = ("pndm", "v_prediction")  # averages v over steps, and v changes even along an exact path


def generators_of(*seeds: int) -> list[Generator]:
    return [Generator("cpu").manual_seed(seed) for seed in seeds]


def context_of(batch: int = 1, **options: Any) -> Context:
    return Context(prompt_embeds=torch.ones(batch, 7, 3), **options)


@dataclass
class Recorder:
    """A U-Net that keeps what it was called with and answers a little of its input and of its context."""

    dtype: torch.dtype = torch.float32
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, sample: Tensor, timestep: Tensor, *, return_dict: bool, **conditions: Any) -> tuple[Tensor]:
        assert not return_dict
        assert timestep.ndim == 0
        self.calls.append({"sample": sample, "timestep": float(timestep), **conditions})
        return (self.answer(sample, float(timestep), **conditions),)

    def answer(self, sample: Tensor, timestep: float, *, encoder_hidden_states: Tensor, **rest: Any) -> Tensor:
        assert len(encoder_hidden_states) == len(sample)
        return sample[:, :4] * (0.3 + 0.05 * encoder_hidden_states.mean((1, 2))[:, None, None, None])


@dataclass
class Oracle(Recorder):
    """A U-Net that knows the picture x_0 and answers the very noise, or the very v, that its input has in it.

    z_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al. 2020, eq. 4); between whole timesteps log σ runs straight.
    """

    x_0: Tensor = field(default_factory=lambda: torch.zeros(1))
    prediction_type: str = "epsilon"

    def answer(self, sample: Tensor, timestep: float, **conditions: Any) -> Tensor:
        alpha, sigma = levels(timestep)
        noise = (sample - alpha * self.x_0) / sigma
        return noise if self.prediction_type == "epsilon" else alpha * noise - sigma * self.x_0


def levels(timestep: float) -> tuple[float, float]:
    """√ᾱ and √(1 − ᾱ) at a timestep."""
    log_sigmas = np.log(np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD))
    ratio = float(np.exp(np.interp(timestep, np.arange(1000), log_sigmas)))
    return 1 / (ratio**2 + 1) ** 0.5, ratio / (ratio**2 + 1) ** 0.5


def bound(network: Any, context: Context, batch: int = 1, guidance_scale: float = 1.0, **options: Any) -> Denoiser:
    return unet.bind(network, context, Guidance(guidance_scale, **options), batch)


def run(
    name: str,
    network: Any,
    context: Context,
    seeds=(7,),
    *,
    steps=4,
    sigmas="default",
    config=CONFIG,
    guidance_scale=1.0,
    guidance_rescale=0.0,
    architecture: Any = unet,
    **options,
):
    scheduler = samplers.make(name, sigmas, config, noise_seeds=seeds)
    scheduler.set_timesteps(steps)
    generators = generators_of(*seeds)
    latents = initial_latents(generators, SHAPE, scheduler)
    denoiser = architecture.bind(network, context, Guidance(guidance_scale, guidance_rescale), len(seeds))
    chosen = {"timesteps": scheduler.timesteps, "generators": generators, **options}
    return denoise(denoiser, scheduler, latents, **chosen)


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [(name, kind) for name in schedulers.NAMES for kind in ("epsilon", "v_prediction") if (name, kind) != INEXACT],
)
def test_a_perfect_unet_recovers_the_picture(name, prediction_type):
    """Whatever the noise on the way, the last step goes to x_0; DEIS and TCD stop at the least noise level."""
    x_0 = torch.randn(2, *SHAPE, generator=Generator().manual_seed(1))
    oracle = Oracle(x_0=x_0, prediction_type=prediction_type)
    final = run(name, oracle, context_of(), (7, 8), config={**CONFIG, "prediction_type": prediction_type})
    expected = x_0
    if name in ("deis", "tcd"):
        alpha, sigma = levels(oracle.calls[0]["timestep"])
        noise = (oracle.calls[0]["sample"] - alpha * x_0) / sigma
        alpha, sigma = levels(0)
        expected = alpha * x_0 + sigma * noise
    assert (final - expected).abs().max() <= 1e-3


def test_pndm_comes_to_the_picture_of_a_v_model_in_many_steps():
    x_0 = torch.randn(1, *SHAPE, generator=Generator().manual_seed(1))
    config = {**CONFIG, "prediction_type": "v_prediction"}
    oracle = Oracle(x_0=x_0, prediction_type="v_prediction")
    errors = [
        (run("pndm", oracle, context_of(), steps=steps, config=config) - x_0).abs().max() for steps in (4, 20, 100)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


class Bent(Recorder):
    """A U-Net whose answer is bent, so that only a right solver follows the curve it makes of a picture's way."""

    def answer(self, sample: Tensor, timestep: float, **conditions: Any) -> Tensor:
        return torch.tanh(sample) * (0.5 + timestep / 2000)


V_MODEL = {**CONFIG, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SOLVERS = [name for name, row in schedulers.TABLE.items() if not row.stochastic and name not in ("ddim", "tcd")]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_of_one_equation_agree(name, zero_snr):
    """Deterministic schedulers solve the differential equation that DDIM does at η = 0 (Song et al. 2021, eq. 14)."""
    few, many = ((bent_run(name, steps, zero_snr) - bent_run("ddim", 500, zero_snr)).abs().max() for steps in (5, 50))
    assert many <= 0.1
    assert many < 0.4 * few


@functools.cache
def bent_run(name: str, steps: int, zero_snr: bool) -> Tensor:
    return run(name, Bent(), context_of(), steps=steps, config={**V_MODEL, "rescale_betas_zero_snr": zero_snr})


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_a_batch_is_its_pictures(name):
    """Picture i has its own stream of noise, initial and ancestral, whoever is beside it."""
    negative = torch.zeros(1, 7, 3)
    context = context_of(negative_prompt_embeds=negative)
    together = run(name, Recorder(), context, (7, 8, 9), guidance_scale=3.0)
    alone = torch.cat([run(name, Recorder(), context, (seed,), guidance_scale=3.0) for seed in (7, 8, 9)])
    assert together.shape == (3, *SHAPE)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", schedulers.NAMES)
def test_steps_are_counted_as_asked(name, steps):
    seen: list[Any] = []
    final = run(name, network := Recorder(), context_of(), steps=steps, on_step=seen.append)
    assert [step.index for step in seen] == list(range(1, steps + 1))
    assert {step.total for step in seen} == {steps}
    assert torch.equal(seen[-1].latents, final)
    assert (np.diff([step.timestep for step in seen]) < 1e-3).all()
    evaluations = {"heun": 2 * steps - 1, "dpm2": 2 * steps - 1, "dpm2-a": 2 * steps - 1, "dpm++-sde": 2 * steps - 1}
    assert len(network.calls) == {**evaluations, "pndm": steps + (steps > 1)}.get(name, steps)


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2-a"])
def test_a_step_of_two_evaluations_is_reported_after_the_second(name):
    network = Recorder()
    evaluations: list[int] = []
    run(name, network, context_of(), steps=5, on_step=lambda step: evaluations.append(len(network.calls)))
    assert evaluations == [2, 4, 6, 8, 9]


def test_a_tail_of_pndms_evaluations_counts_as_steps():
    scheduler = samplers.make("pndm", "default", CONFIG)
    scheduler.set_timesteps(4)
    seen: list[Any] = []
    options = {"timesteps": scheduler.timesteps[2:], "generators": generators_of(3)}
    denoise(bound(Recorder(), context_of()), scheduler, torch.ones(1, *SHAPE), on_step=seen.append, **options)
    assert [(step.index, step.total) for step in seen] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("config", [{}, {"skip_prk_steps": False}, {"skip_prk_steps": True}])
def test_pndm_is_plms_whatever_the_model_says(config):
    """One evaluation a step and one more, as of A1111's PLMS; with Runge-Kutta there would be nine more."""
    network = Recorder()
    run("pndm", network, context_of(), steps=5, config={**CONFIG, **config})
    assert len(network.calls) == 6


def test_initial_latents_are_each_generators_first_noise():
    scheduler = samplers.make("euler", "default", CONFIG)
    scheduler.set_timesteps(4)
    latents = initial_latents(generators_of(7, 8), SHAPE, scheduler)
    sigma = ((1 - ALPHAS_CUMPROD[751]) / ALPHAS_CUMPROD[751]) ** 0.5
    for seed, each in zip((7, 8), latents, strict=True):
        noise = torch.randn(SHAPE, generator=Generator().manual_seed(seed))
        assert torch.allclose(each, noise * (sigma**2 + 1) ** 0.5, rtol=1e-5)
    assert latents.dtype == torch.float32


def test_guidance_is_one_call_with_the_unconditional_half_first():
    context = context_of(2, negative_prompt_embeds=torch.zeros(2, 7, 3))
    network = Recorder()
    run("ddim", network, context, (7, 8), guidance_scale=4.0)
    assert len(network.calls) == 4
    for call in network.calls:
        assert call["encoder_hidden_states"].mean((1, 2)).tolist() == [0, 0, 1, 1]
        assert torch.equal(call["sample"][:2], call["sample"][2:])


def test_guidance_by_hand():
    """Unconditional 0.3 z, conditional 0.35 z: guided by s, that is the answer to a context of s."""
    context = context_of(negative_prompt_embeds=torch.zeros(1, 7, 3))
    guided = run("ddim", Recorder(), context, guidance_scale=4.0)
    expected = run("ddim", Recorder(), Context(prompt_embeds=torch.full((1, 7, 3), 4.0)))
    assert torch.allclose(guided, expected, atol=1e-5)


def test_guidance_rescale_by_numpy():
    unconditional, conditional = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 5))
    guided = unconditional + 6 * (conditional - unconditional)
    spread = conditional.std((1, 2, 3), ddof=1) / guided.std((1, 2, 3), ddof=1)
    expected = 0.7 * guided * spread[:, None, None, None] + 0.3 * guided
    both = torch.from_numpy(np.concatenate([unconditional, conditional]))
    assert np.abs(guide(both, Guidance(6.0, 0.7)).numpy() - expected).max() <= 1e-12
    assert np.abs(guide(both, Guidance(6.0)).numpy() - guided).max() <= 1e-12
    assert np.abs(guide(both, Guidance(1.0)).numpy() - conditional).max() <= 1e-12


def test_guidance_rescale_changes_the_picture():
    context = context_of(negative_prompt_embeds=torch.zeros(1, 7, 3))
    plain = run("ddim", Recorder(), context, guidance_scale=6.0)
    rescaled = run("ddim", Recorder(), context, guidance_scale=6.0, guidance_rescale=0.7)
    assert not torch.allclose(plain, rescaled, atol=1e-2)


@pytest.mark.parametrize(
    ("guidance_scale", "options"),
    [
        (1.0, {"negative_prompt_embeds": torch.zeros(1, 7, 3)}),
        (0.0, {"negative_prompt_embeds": torch.zeros(1, 7, 3)}),
        (7.0, {}),
        (7.0, {"negative_prompt_embeds": torch.zeros(1, 7, 3), "timestep_cond": torch.ones(1, 16)}),
    ],
)
def test_the_unconditional_half_is_skipped(guidance_scale, options):
    network = Recorder()
    run("ddim", network, context_of(**options), (7, 8), guidance_scale=guidance_scale)
    for call in network.calls:
        assert len(call["sample"]) == 2
        assert call["encoder_hidden_states"].mean((1, 2)).tolist() == [1, 1]
        embedded = call.get("timestep_cond")
        assert embedded.tolist() == [[1.0] * 16] * 2 if "timestep_cond" in options else embedded is None


def test_class_labels_reach_both_halves_as_whole_numbers():
    """And of a transformer that predicts its variance too, the noise alone is used."""

    class Classes(Recorder):
        def __call__(self, sample: Tensor, *, timestep: Tensor, class_labels: Tensor, return_dict: bool):
            assert (sample.dtype, timestep.shape, return_dict) == (torch.bfloat16, (len(sample),), False)
            self.calls.append({"class_labels": class_labels})
            return (torch.cat([0.1 * sample, torch.full_like(sample, 1e6)], dim=1),)

    network = Classes(dtype=torch.bfloat16)
    context = Context(class_labels=torch.tensor([279]), negative_class_labels=torch.tensor([1000]))
    final = run("ddim", network, context, (7, 8), guidance_scale=3.0, architecture=dit)
    assert final.abs().max() < 100
    for call in network.calls:
        assert call["class_labels"].tolist() == [1000, 1000, 279, 279]
        assert call["class_labels"].dtype == torch.int64
    run("ddim", network, context, (7, 8), architecture=dit)
    assert network.calls[-1]["class_labels"].tolist() == [279, 279]


def test_every_condition_reaches_both_halves():
    """One picture's context stands for a batch of two."""
    network = Recorder()
    context = context_of(
        negative_prompt_embeds=torch.zeros(1, 7, 3),
        pooled_prompt_embeds=torch.ones(1, 5),
        negative_pooled_prompt_embeds=torch.zeros(1, 5),
        add_time_ids=torch.tensor([[64, 128, 0, 0, 64, 128]]),
        concat_latents=torch.full((1, 5, *SHAPE[1:]), 9.0),
    )
    run("euler", network, context, (7, 8), guidance_scale=3.0)
    for call in network.calls:
        assert call["sample"].shape == (4, 4 + 5, *SHAPE[1:])
        assert (call["sample"][:, 4:] == 9).all()
        assert call["added_cond_kwargs"]["text_embeds"].mean(1).tolist() == [0, 0, 1, 1]
        assert call["added_cond_kwargs"]["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 4


def test_a_context_for_each_picture():
    context = Context(prompt_embeds=torch.tensor([1.0, 2.0])[:, None, None].expand(2, 7, 3))
    together = run("ddim", Recorder(), context, (7, 8))
    first = run("ddim", Recorder(), Context(prompt_embeds=torch.full((1, 7, 3), 1.0)), (7,))
    second = run("ddim", Recorder(), Context(prompt_embeds=torch.full((1, 7, 3), 2.0)), (8,))
    assert torch.allclose(together, torch.cat([first, second]), atol=1e-6)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_only_the_unet_works_in_its_dtype(name):
    """In bfloat16 the U-Net is given and gives bfloat16; the latents are float32 all along, and so is time."""
    seen: list[Any] = []
    network = Recorder(torch.bfloat16)
    context = context_of(
        negative_prompt_embeds=torch.zeros(1, 7, 3),
        pooled_prompt_embeds=torch.ones(1, 5),
        negative_pooled_prompt_embeds=torch.zeros(1, 5),
        add_time_ids=torch.tensor([[1016, 1017, 0, 0, 1016, 1017]]),
    )
    final = run(name, network, context, guidance_scale=3.0, on_step=seen.append)
    assert {step.latents.dtype for step in seen} == {final.dtype} == {torch.float32}
    for call in network.calls:
        taken = call["sample"], call["encoder_hidden_states"], call["added_cond_kwargs"]["text_embeds"]
        assert {each.dtype for each in taken} == {torch.bfloat16}
        assert call["added_cond_kwargs"]["time_ids"].tolist()[0][1] == 1017
    exact = run(name, Recorder(), context, guidance_scale=3.0)
    assert (final - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_deterministic_schedulers_draw_nothing(name):
    generators = generators_of(7)
    run(name, Recorder(), context_of(), generators=generators)
    untouched = torch.equal(generators[0].get_state(), generators_of(7)[0].get_state())
    assert untouched == (name == "dpm++-sde" or not schedulers.TABLE[name].stochastic)


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_eta_draws_noise(name):
    plain, noisy = (run(name, Recorder(), context_of(), eta=eta) for eta in (0.0, 0.8))
    assert not torch.allclose(plain, noisy, atol=0.1)


@pytest.mark.parametrize("name", ["ddim", "euler", "euler-a", "heun", "dpm2", "dpm++-2m", "dpm++-2s", "unipc", "deis"])
def test_a_tail_of_the_timesteps_starts_midway(name):
    """From latents noised to the level of the third of four steps, two steps are left, and they recover x_0."""
    x_0 = torch.randn(1, *SHAPE, generator=Generator().manual_seed(1))
    scheduler = samplers.make(name, "default", CONFIG)
    scheduler.set_timesteps(4)
    tail = scheduler.timesteps[2 * scheduler.order :]
    noise = torch.randn(1, *SHAPE, generator=Generator().manual_seed(2))
    latents = scheduler.add_noise(x_0, noise, tail[:1])
    seen: list[Any] = []
    oracle = Oracle(x_0=x_0)
    options = {"timesteps": tail, "generators": generators_of(3), "on_step": seen.append}
    final = denoise(bound(oracle, context_of()), scheduler, latents, **options)
    assert [(step.index, step.total) for step in seen] == [(1, 2), (2, 2)]
    least = levels(0) if name == "deis" else (1.0, 0.0)
    assert (final - (least[0] * x_0 + least[1] * noise)).abs().max() <= 1e-3


@pytest.mark.parametrize("left", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", ["lms", "pndm"])
def test_multistep_methods_start_midway(name, left):
    """Their first steps combine as many predictions as there are, wherever they start: x_0 is recovered."""
    x_0 = torch.randn(1, *SHAPE, generator=Generator().manual_seed(1))
    scheduler = samplers.make(name, "default", CONFIG)
    scheduler.set_timesteps(20)
    first = scheduler.timesteps.unique().flip(0)[20 - left]
    tail = start_at(scheduler, left / 20)
    assert tail[0] == first
    noise = torch.randn(1, *SHAPE, generator=Generator().manual_seed(2))
    latents = scheduler.add_noise(x_0, noise, tail[:1])
    seen: list[Any] = []
    options = {"timesteps": tail, "generators": generators_of(3), "on_step": seen.append}
    final = denoise(bound(Oracle(x_0=x_0), context_of()), scheduler, latents, **options)
    assert [(step.index, step.total) for step in seen] == [(index + 1, left) for index in range(left)]
    assert (final - x_0).abs().max() <= 1e-3


def test_timesteps_that_occur_twice():
    """Beta sigmas in 50 steps round to the same first timestep twice; no step is left out."""
    seen: list[Any] = []
    x_0 = torch.ones(1, *SHAPE)
    scheduler = samplers.make("dpm++-2m", "beta", CONFIG)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    final = run("dpm++-2m", Oracle(x_0=x_0), context_of(), steps=50, sigmas="beta", on_step=seen.append)
    assert len(seen) == 50
    assert (final - x_0).abs().max() <= 0.02


def test_no_graph_is_kept():
    network = Recorder()
    final = run("ddim", network, Context(prompt_embeds=torch.ones(1, 7, 3, requires_grad=True)))
    assert not final.requires_grad
    assert not network.calls[0]["sample"].requires_grad
