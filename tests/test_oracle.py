"""A U-Net that knows the picture recovers it in every context, through every scheduler, to a closed form.

What it knows is what its context tells it, by fixed maps written here: so a context that does not arrive, arrives
in the wrong half of guidance or at the wrong place gives another picture. Guidance is linear in what is told, so that
the picture to be recovered is x_u + s (x_c − x_u).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Generator, Tensor

from sdcli.diffusion import pipeline
from sdcli.diffusion.model import ControlNet, LatentDiffusionModel
from sdcli.files.canvas import InitialImage
from sdcli.files.palette import Class
from sdcli.models import loading
from sdcli.models.source import Source
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe
from tests import cases, pairs, tiny
from tests.test_denoise import CONFIG, Recorder, levels

SEEDS = (7, 8)
SCALE = 3.0
STEPS, STRENGTH = 5, 0.6
SHAPE = (4, 8, 8)
CLASSES = (Class(0, "sky", (120, 180, 240)), Class(1, "sand", (240, 214, 154)), Class(2, "fox", (255, 128, 0)))
STAY_NOISY = {"set_alpha_to_one": False, "final_sigmas_type": "sigma_min"}
"""The ways in which a model's config has schedulers end at the least noise level of training."""
CAN_STAY_NOISY = [
    name for name, row in schedulers.TABLE.items() if row.ends_clean(CONFIG) and not row.ends_clean(STAY_NOISY)
]
BETWEEN_LEVELS = ("dpm2", "dpm++-sde")
"""Schedulers of diffusers that add noise at a whole step's level in their rounds between two levels."""

Told = Callable[[Tensor, Mapping[str, Any]], Tensor]


def fixed(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def of_text(embeds: Tensor, shape: Sequence[int] = SHAPE) -> Tensor:
    """A picture for each of the prompts' embeddings, or of the one token of a class's, (B, L, D)."""
    return (embeds.mean(1) @ fixed(embeds.shape[2], math.prod(shape))).reshape(-1, *shape)


def of_labels(labels: Tensor) -> Tensor:
    """A picture for each of the classes (B,), and one for none of them, the 1001st."""
    return fixed(1001, math.prod(SHAPE))[labels].reshape(-1, *SHAPE)


def of_channels(channels: Tensor, seed: int = 2) -> Tensor:
    """A picture of as many channels (B, K, 8, 8) as there are."""
    return torch.einsum("bkhw,kc->bchw", channels, fixed(channels.shape[1], 4, seed=seed))


@dataclass
class Oracle(Recorder):
    """A U-Net that answers the very noise, or v, that lies over the picture which its context tells it."""

    told: Told = lambda beside, conditions: of_text(conditions["encoder_hidden_states"])
    prediction_type: str = "epsilon"
    channels: int = 4

    def __call__(self, sample: Tensor, timestep: Tensor, **conditions: Any) -> tuple[Tensor]:
        return super().__call__(sample, timestep.flatten()[0], **conditions)  # a DiT is told it once a picture

    def answer(self, sample: Tensor, timestep: float, **conditions: Any) -> Tensor:
        alpha, sigma = levels(timestep)
        x_0 = self.told(sample[:, 4:], conditions)
        noise = (sample[:, :4] - alpha * x_0) / sigma
        return noise if self.prediction_type == "epsilon" else alpha * noise - sigma * x_0


@dataclass(frozen=True)
class Case:
    """A context to recover a picture in: what is asked, and what is told in it besides the text.

    `beside` is the picture of whatever is no text, and counts where `text_share` does not. The loop starts from
    `noise`, over `image_latents` if strength leaves any of them; where `known` is 1 these are to be in the result.
    """

    said: dict[str, Any] = field(default_factory=dict)
    given: InitialImage | None = None
    told: Told = lambda beside, conditions: of_text(conditions["encoder_hidden_states"])
    channels: int = 4
    beside: Tensor = field(default_factory=lambda: torch.zeros(1))
    text_share: Tensor = field(default_factory=lambda: torch.ones(1))
    noise: Tensor = field(default_factory=lambda: drawn(0))
    draws: int = 1
    """How often each seed has been drawn from before the first step."""
    image_latents: Tensor | None = None
    known: Tensor = field(default_factory=lambda: torch.zeros(1))
    classes: tuple[Class, ...] = ()
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    model: LatentDiffusionModel | None = None
    """The model that the U-Net is put into, where it is no tiny SD 1.5; `halves` then say what its contexts tell."""
    halves: tuple[Tensor, Tensor] | None = None
    """The pictures of the conditional and the unconditional half."""


def drawn(before: int, shape: Sequence[int] = SHAPE) -> Tensor:
    """Each seed's noise after as many draws before it."""
    each = [Generator().manual_seed(seed) for seed in SEEDS]
    return torch.stack([[torch.randn(shape, generator=one) for _ in range(before + 1)][-1] for one in each])


def random_image(seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


CELLS = np.random.default_rng(4).random((8, 8)) < 0.5
MASK = Image.fromarray(np.kron(CELLS, np.ones((8, 8))).astype(np.uint8) * 255)
PAINTED = torch.from_numpy(CELLS).float()


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def z_of(model: LatentDiffusionModel, pixels: Tensor, before: int) -> Tensor:
    """The latents of an image by diffusers' own Gaussian and each seed's noise after as many draws."""
    with torch.no_grad():
        gaussian = model.vae.encode(pixels).latent_dist
    latents: Tensor = (gaussian.mean + gaussian.std * drawn(before)) * 0.18215
    return latents


def text_alone(model: LatentDiffusionModel, folder: Path) -> Case:
    return Case()


def image_to_image(model: LatentDiffusionModel, folder: Path) -> Case:
    image = random_image()
    z = z_of(model, pixels_of(image), 0)
    return Case({"image": "given", "strength": STRENGTH}, InitialImage(image), noise=drawn(1), draws=2, image_latents=z)


def held(model: LatentDiffusionModel, folder: Path) -> Case:
    image = random_image()
    z = z_of(model, pixels_of(image), 0)
    said = {"image": "given", "mask_image": "given", "strength": STRENGTH}
    return Case(said, InitialImage(image, MASK, MASK), noise=drawn(1), draws=3, image_latents=z, known=1 - PAINTED)


def held_from_noise(model: LatentDiffusionModel, folder: Path) -> Case:
    case = held(model, folder)
    return replace(case, said={**case.said, "strength": 1.0})


def by_mask(beside: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """What the text tells where the mask is, what the masked image shows elsewhere."""
    painted, z = beside[:, :1], beside[:, 1:]
    return painted * of_text(conditions["encoder_hidden_states"]) + (1 - painted) * z


def concatenated(model: LatentDiffusionModel, folder: Path) -> Case:
    image = random_image()
    shown = pixels_of(image) * torch.from_numpy(np.asarray(MASK) < 128)
    z, before = z_of(model, pixels_of(image), 0), z_of(model, shown, 2)
    said = {"image": "given", "mask_image": "given", "strength": STRENGTH}
    told = {"told": by_mask, "channels": 9, "beside": (1 - PAINTED) * before, "text_share": PAINTED}
    return Case(said, InitialImage(image, MASK, MASK), noise=drawn(1), draws=3, image_latents=z, **told)


def concatenated_from_noise(model: LatentDiffusionModel, folder: Path) -> Case:
    case = concatenated(model, folder)
    shown = pixels_of(random_image()) * torch.from_numpy(np.asarray(MASK) < 128)
    beside = (1 - PAINTED) * z_of(model, shown, 1)
    return replace(case, said={**case.said, "strength": 1.0}, noise=drawn(0), draws=2, beside=beside)


def segmentation_map(model: LatentDiffusionModel, folder: Path) -> Case:
    indices = np.random.default_rng(5).integers(0, 3, (64, 64), dtype=np.uint8)
    Image.fromarray(indices).save(folder / "map.png")
    shares = np.stack([(indices == index).reshape(8, 8, 8, 8).mean((1, 3)) for index in range(3)])
    return Case(
        {"segmentation_map": str(folder / "map.png")},
        told=lambda beside, conditions: of_text(conditions["encoder_hidden_states"]) + of_channels(beside),
        channels=4 + 3,
        beside=of_channels(torch.from_numpy(shares[None]).float()),
        classes=CLASSES,
    )


class PoolingNet:
    """A ControlNet whose residuals are the picture that it reads, in the latents' cells, and its colour on average."""

    config: Mapping[str, Any] = {"global_pool_conditions": False}

    def __call__(
        self, sample: Tensor, timestep: Tensor, *, controlnet_cond: Tensor, conditioning_scale: float, **rest: Any
    ) -> tuple[list[Tensor], Tensor]:
        cells = torch.nn.functional.avg_pool2d(controlnet_cond, 8).expand(len(sample), -1, -1, -1)
        return [cells * conditioning_scale], cells.mean((2, 3), keepdim=True) * conditioning_scale


def of_residuals(down: Sequence[Tensor], middle: Tensor) -> Tensor:
    return of_channels(down[0]) + of_channels(middle, seed=3)


def controlled(model: LatentDiffusionModel, folder: Path) -> Case:
    cells = []
    for number in (0, 1):
        random_image(number).save(folder / f"{number}.png")
        unit = np.asarray(random_image(number)).astype(np.float32) / 255
        cells.append(torch.from_numpy(unit.reshape(8, 8, 8, 8, 3).mean((1, 3))).permute(2, 0, 1)[None])
    summed = 0.5 * cells[0] + 1.5 * cells[1]
    return Case(
        {"control": [f"first={folder}/0.png:0.5", f"second={folder}/1.png:1.5"]},
        told=lambda beside, conditions: (
            of_text(conditions["encoder_hidden_states"])
            + of_residuals(conditions["down_block_additional_residuals"], conditions["mid_block_additional_residual"])
        ),
        beside=of_residuals([summed], summed.mean((2, 3), keepdim=True)),
        controlnets={name: ControlNet(PoolingNet()) for name in ("first", "second")},  # type: ignore[arg-type]
    )


FOX = 279


def label_attended_to(model: LatentDiffusionModel, folder: Path) -> Case:
    """A class as the one token of an LDM, whose latents are 16×16 of 3 channels; the 1001st token is none's."""
    model = load(tiny.make_ldm(folder / "ldm"))
    shape = (3, 16, 16)
    table = load_file(folder / "ldm" / "class_embedder" / "diffusion_pytorch_model.safetensors")["weight"]
    return Case(
        {"prompt": "", "label": "Arctic fox"},
        told=lambda beside, conditions: of_text(conditions["encoder_hidden_states"], shape),
        channels=3,
        noise=drawn(0, shape),
        model=model,
        halves=(of_text(table[FOX][None, None], shape), of_text(table[1000][None, None], shape)),
    )


def image_to_label(model: LatentDiffusionModel, folder: Path) -> Case:
    """The encoder of a VQModel gives latents, not a Gaussian: nothing is drawn but the noise."""
    case = label_attended_to(model, folder)
    assert case.model is not None
    with torch.no_grad():
        z = case.model.vae.encode(pixels_of(random_image())).latents
    said = {**case.said, "image": "given", "strength": STRENGTH}
    return replace(case, said=said, given=InitialImage(random_image()), image_latents=z)


def label_in_the_norms(model: LatentDiffusionModel, folder: Path) -> Case:
    """A class as its number, which DiT's norms look up; 1000 is none."""
    return Case(
        {"prompt": "", "label": "white fox"},
        told=lambda beside, conditions: of_labels(conditions["class_labels"]),
        model=load(tiny.make_dit(folder / "dit")),
        halves=(of_labels(torch.tensor([FOX])), of_labels(torch.tensor([1000]))),
    )


def load(folder: Path) -> LatentDiffusionModel:
    return loading.load(Source(folder), name="", device=torch.device("cpu"), dtype=torch.float32)


CONTEXTS = (
    text_alone,
    image_to_image,
    held,
    held_from_noise,
    concatenated,
    concatenated_from_noise,
    segmentation_map,
    controlled,
    label_attended_to,
    image_to_label,
    label_in_the_norms,
)


def sampled(model: LatentDiffusionModel, case: Case, oracle: Oracle, scheduler: str, config: dict[str, Any]) -> Tensor:
    parts = {"classes": case.classes, "controlnets": case.controlnets}
    model = case.model or model
    facts = replace(model.facts, in_channels=oracle.channels)
    model = replace(model, network=oracle, facts=facts, scheduler_config=config, **parts)
    asked = {**pairs.DEFAULTS, "steps": STEPS, "guidance_scale": SCALE, "scheduler": scheduler, **case.said}
    recipes = [Recipe.from_dict({"model": "", **asked, "seed": seed}) for seed in SEEDS]
    return pipeline.sample(model, recipes, inputs=tiny.inputs_of(model, recipes[0], case.given))


def guided_picture(pair: pairs.Pair, case: Case) -> Tensor:
    """x_u + s (x_c − x_u), with the embeddings that diffusers' pipeline makes."""
    if case.halves is not None:
        of_prompt, of_none = case.halves
    else:
        with torch.no_grad():
            embeds = pair.pipe.encode_prompt(pairs.DEFAULTS["prompt"], "cpu", 1, True)
        of_prompt, of_none = map(of_text, embeds)
    return case.text_share * (of_none + SCALE * (of_prompt - of_none)) + case.beside


def check_start(case: Case, call: Mapping[str, Any]) -> None:
    """The first latents are noise alone, or noise over the image at the level of the first timestep."""
    alpha, sigma = levels(call["timestep"])
    expected = case.noise
    if case.image_latents is not None and case.said["strength"] < 1:
        expected = alpha * case.image_latents + sigma * case.noise
    assert (call["sample"][: len(SEEDS), :4] - expected).abs().max() <= 2e-3
    strength = case.said.get("strength", 1.0)  # of 1000 timesteps, in steps of 200
    assert 1000 * strength - 200 <= call["timestep"] <= 1000 * strength + 1


def check_known(case: Case, call: Mapping[str, Any]) -> None:
    """What is held of the image lies under the one noise, at the level of the timestep, in every call but the first."""
    alpha, sigma = levels(call["timestep"])
    expected = alpha * case.image_latents + sigma * case.noise
    assert (case.known * (call["sample"][: len(SEEDS), :4] - expected)).abs().max() <= 2e-3


def noise_over(x_0: Tensor, call: Mapping[str, Any]) -> Tensor:
    """What lies over x_0 in the latents of a call, in units of its timestep's level."""
    alpha, sigma = levels(call["timestep"])
    noise: Tensor = (call["sample"][: len(SEEDS), :4] - alpha * x_0) / sigma
    return noise


PREDICTED = [*((name, "epsilon") for name in schedulers.NAMES), ("ddim", "v_prediction"), ("euler-a", "v_prediction")]


@pytest.mark.parametrize(("context", "predicted"), cases.product(CONTEXTS, PREDICTED, every=5))
def test_the_picture_that_a_context_tells_is_recovered(pair, tmp_path, context, predicted):
    scheduler, prediction_type = predicted
    made = pair("sd15")
    case = context(made.model, tmp_path)
    oracle = Oracle(told=case.told, channels=case.channels, prediction_type=prediction_type)
    config = {**CONFIG, "prediction_type": prediction_type}
    final = sampled(made.model, case, oracle, scheduler, config)
    check_start(case, oracle.calls[0])
    for call in oracle.calls[1:] if case.image_latents is not None and scheduler not in BETWEEN_LEVELS else ():
        check_known(case, call)
    expected = x_0 = guided_picture(made, case)
    if not schedulers.TABLE[scheduler].ends_clean(config):
        alpha, sigma = levels(0)
        expected = alpha * x_0 + sigma * noise_over(x_0, oracle.calls[0])
    if case.image_latents is not None:
        expected = case.known * case.image_latents + (1 - case.known) * expected
    assert (final - expected).abs().max() <= 1e-3


@pytest.mark.parametrize(("context", "scheduler"), cases.product(CONTEXTS, CAN_STAY_NOISY, every=3))
def test_the_noise_that_is_left_of_it_is_known(pair, tmp_path, context, scheduler):
    """The first noise, at the least level; of SDE-DPM-Solver++ what each step's own has left of it.

    That solver goes from noise n to r n + √(1 − r²) z with fresh z, where r is the ratio of σ/α behind and before the
    step (Lu et al. 2022, "DPM-Solver++", eq. 18, where every x_0 is the same). Euler's latents are x_0 + (σ/α) n.
    """
    made = pair("sd15")
    case = context(made.model, tmp_path)
    oracle = Oracle(told=case.told, channels=case.channels)
    final = sampled(made.model, case, oracle, scheduler, CONFIG | STAY_NOISY)
    x_0, last = guided_picture(made, case), oracle.calls[-1]
    alpha, sigma = levels(0)
    noise = noise_over(x_0, oracle.calls[0])
    if scheduler.endswith("-sde"):
        alpha_before, sigma_before = levels(last["timestep"])
        ratio = (sigma / alpha) / (sigma_before / alpha_before)
        fresh = drawn(case.draws + len(oracle.calls) - 1, final.shape[1:])
        noise = ratio * noise_over(x_0, last) + (1 - ratio**2) ** 0.5 * fresh
    if scheduler == "euler":
        alpha, sigma = 1.0, sigma / alpha
    expected = alpha * x_0 + sigma * noise
    if case.image_latents is not None:
        expected = case.known * case.image_latents + (1 - case.known) * expected
    assert (final - expected).abs().max() <= 1e-3
    assert ((1 - case.known) * sigma * noise).abs().max() > 0.05
