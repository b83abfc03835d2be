"""Pools, tasks and diffusion runs, on tiny models of real classes."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

from sdcli.diffusion.context import masked_image, segmentation
from sdcli.errors import ModelCorrupt
from sdcli.files.palette import Class
from sdcli.training import diffusion, parts
from sdcli.training.diffusion import DiffusionRun, draw_batch
from sdcli.training.masks import draw_mask, plan_mask
from sdcli.training.parts import LATENT_CHANNELS, SCHEDULER, Parts, read_tokenizer, tokenize
from sdcli.training.places import CLASSES
from sdcli.training.pool import Encoder, Pool, to_tensor
from sdcli.training.settings import DiffusionTraining
from sdcli.training.sources import World
from sdcli.training.tasks import Inpaint, Semantic, TextToImage
from sdcli.training.team import Team
from sdcli.training.tokenizer import write_tokenizer
from sdcli.training.world import FEW
from tests.training.conftest import TINY_TEXT_ENCODER
from tests.training.conftest import TINY_UNET as TINY
from tests.training.test_autoencoder import TINY as TINY_AUTOENCODER

SETTINGS = DiffusionTraining(steps=4, batch=2, warmup=1, cooldown=1, scenes=2, fresh=1, most_scenes=4)
ALONE = Team(torch.device("cpu"))
PALETTE = tuple(Class(index, name, colour) for index, (name, colour) in enumerate(CLASSES.items()))
TASKS = {"text": TextToImage(), "inpaint": Inpaint(LATENT_CHANNELS, 0.3), "semantic": Semantic(PALETTE)}


@pytest.fixture(autouse=True)
def _tiny_text_encoder(monkeypatch):
    monkeypatch.setattr(parts, "TEXT_ENCODER", TINY_TEXT_ENCODER)


@pytest.fixture(scope="module")
def world(sprites):
    return World(sprites, seed=1, vocabulary=FEW)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**TINY_AUTOENCODER, scaling_factor=0.5).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, ["an arctic fox in the snow", "a white owl at night"])
    return read_tokenizer(folder)


@pytest.fixture
def start(vae, tokenizer, world):
    def begin(task="text", team=ALONE, settings=SETTINGS):
        torch.manual_seed(0)
        held = parts.build(vae, tokenizer, TINY)
        parts.widen(held.unet, TASKS[task].channels)
        return DiffusionRun(held, pool_of(world, vae, task, team), settings, team, trains_text=task == "text")

    return begin


def pool_of(world, vae, task, team=ALONE):
    return Pool(world, TASKS[task], Encoder(vae, team), 1, team)


@pytest.mark.parametrize("task", TASKS)
def test_the_content_of_a_pool_depends_only_on_its_size(task, vae, world, tmp_path):
    at_once, in_parts, restored = (pool_of(world, vae, task) for _ in range(3))
    at_once.grow(5)
    in_parts.grow(1)
    in_parts.save(tmp_path)
    in_parts.grow(3)
    in_parts.save(tmp_path)
    restored.load(tmp_path)
    assert len(restored) == 3
    restored.grow(5)
    restored.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert restored.items == at_once.items
    for name, rows in at_once.take(range(5)).items():
        torch.testing.assert_close(restored.take(range(5))[name], rows, atol=0.02, rtol=0)


def test_processes_have_different_pictures(vae, world):
    one, other = (pool_of(world, vae, "text", Team(torch.device("cpu"), True, place, 2)) for place in (0, 1))
    one.grow(4)
    other.grow(4)
    assert not any(item in other.items for item in one.items)


def test_masked_latents_and_mask_equal_those_of_sdcli_and_diffusers(vae, tokenizer, world):
    exact = Team(torch.device("cpu"), autocasts=False)
    task = TASKS["inpaint"]
    item = world.draw(np.random.default_rng(5), 1)[0]
    picture = world.picture(item)
    kept = task.encode(Encoder(vae, exact), [picture], [np.random.default_rng(3)])
    context = task.context(kept)
    rng = np.random.default_rng(3)  # the mask at full resolution, drawn again
    mask = torch.from_numpy(draw_mask(plan_mask(len(picture.masks), rng), picture.masks, (256, 256), rng))
    mask = mask[None, None].float()
    pixels = to_tensor([picture.image])

    class Means:
        """The attributes of a model that a mask needs."""

        device, vae_scale_factor = torch.device("cpu"), 8

    unet = UNet2DConditionModel(**{**TINY, "in_channels": 1 + 2 * LATENT_CHANNELS})
    pipe = StableDiffusionInpaintPipeline(
        vae, parts.build_text_encoder(tokenizer), tokenizer, unet, DDIMScheduler(**SCHEDULER), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs = [
        pipe.prepare_mask_latents(mask, pixels * (mask < 0.5), 1, 256, 256, torch.float32, "cpu", g, False)
        for g in map(torch.Generator().manual_seed, range(16))
    ]
    assert torch.equal(context[:, :1], theirs[0][0])
    assert torch.equal(context[:, :1], masked_image.mask_latents(Means, mask))
    gaussian = vae.encode(pixels * (mask < 0.5)).latent_dist
    torch.testing.assert_close(context[:, 1:], gaussian.mean * 0.5, atol=2e-3, rtol=2e-3)
    mean = torch.stack([latents for _, latents in theirs]).mean(0)
    assert ((mean - context[:, 1:]).abs() / (gaussian.std * 0.5)).mean() < 0.3  # the mean of 16 draws
    assert context.shape == (1, task.channels, 32, 32)


def test_a_mask_around_a_subject_has_a_caption_of_that_subject(vae, world):
    pool = pool_of(world, vae, "inpaint")
    source = world.items()
    several = [scene for scene, _ in zip(source, range(400), strict=False) if len(scene.placements) > 1]
    described = [pool.task.describe(world, scene, np.random.default_rng(i)) for i, scene in enumerate(several)]
    alone = [(scene, one) for scene, one in zip(several, described, strict=True) if len(one.placements) == 1]
    assert 0.4 < len(alone) / len(several) < 0.7
    for scene, one in alone:
        assert one.placements[0] in scene.placements
        assert one.place == scene.place


def test_a_semantic_context_equals_that_of_inference(vae, world):
    task = TASKS["semantic"]
    picture = world.picture(world.draw(np.random.default_rng(5), 1)[0])
    context = task.context(task.encode(Encoder(vae, ALONE), [picture], [np.random.default_rng(0)]))
    expected = segmentation.encode(torch.from_numpy(picture.segmentation)[None], len(CLASSES), 8)
    assert torch.equal(context, expected)
    assert context.shape == (1, len(CLASSES), 32, 32)


@pytest.mark.parametrize("task", TASKS)
def test_the_batch_depends_only_on_the_step(task, start):
    run = start(task)
    run.pool.grow(2)
    one, again, other = (draw_batch(run.pool, 2, run.parts, SETTINGS, step) for step in (5, 5, 6))
    assert torch.equal(one.noise, again.noise)
    assert torch.equal(one.token_ids, again.token_ids)
    assert torch.equal(one.timesteps, again.timesteps)
    assert not torch.equal(one.noise, other.noise)
    assert one.token_ids.shape == (2, 77)
    assert 0 <= one.timesteps.min() <= one.timesteps.max() < 1000


def test_some_prompts_are_empty_and_most_timesteps_are_noisy(start):
    run = start()
    run.pool.grow(2)
    settings = DiffusionTraining(batch=1000, empty_prompts=0.1)
    batch = draw_batch(run.pool, 2, run.parts, settings, step=0)
    empty = (batch.token_ids == tokenize(run.parts.tokenizer, [""])).all(1).float().mean().item()
    assert 0.07 < empty < 0.13
    # Half of a logit-normal distribution lies above the sigmoid of its shift.
    assert (batch.timesteps > 1000 * torch.tensor(settings.timestep_shift).sigmoid()).float().mean() == (
        pytest.approx(0.5, abs=0.06)
    )


def test_the_last_timestep_is_pure_noise_and_v_recovers_the_latents():
    scheduler = DDIMScheduler(**SCHEDULER)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([300, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = diffusion.target_of(scheduler, latents, noise, timesteps)
    torch.testing.assert_close(noisy[1], noise[1])
    torch.testing.assert_close(velocity[1], -latents[1])
    alpha = scheduler.alphas_cumprod[300]
    torch.testing.assert_close(alpha.sqrt() * noisy[0] - (1 - alpha).sqrt() * velocity[0], latents[0])


@pytest.mark.parametrize(("kind", "which"), [("epsilon", 1), ("sample", 0)])
def test_other_models_keep_their_prediction_type(kind, which):
    scheduler = DDIMScheduler(prediction_type=kind)
    both = torch.randn(2, 2, 4, 8, 8)
    assert diffusion.target_of(scheduler, both[0], both[1], torch.tensor([3, 4])) is not None
    assert torch.equal(diffusion.target_of(scheduler, both[0], both[1], torch.tensor([3, 4])), both[which])


@pytest.mark.parametrize("task", ["inpaint", "semantic"])
def test_a_widened_unet_has_the_same_output(task, start):
    torch.manual_seed(0)
    narrow = UNet2DConditionModel(**TINY)
    latents, states = torch.randn(1, LATENT_CHANNELS, 8, 8), torch.randn(1, 77, TINY["cross_attention_dim"])
    before = narrow(latents, 500, states).sample
    channels = TASKS[task].channels
    wide = parts.widen(narrow, channels)
    context = torch.randn(1, channels, 8, 8)
    torch.testing.assert_close(wide(torch.cat([latents, context], 1), 500, states).sample, before)
    assert wide.config.in_channels == LATENT_CHANNELS + channels
    assert UNet2DConditionModel.from_config(wide.config).conv_in.weight.shape == wide.conv_in.weight.shape
    assert parts.widen(wide, channels) is wide
    with pytest.raises(ModelCorrupt):
        parts.widen(wide, channels + 1)


def test_the_loss_has_a_higher_weight_inside_the_mask(start):
    run = start("inpaint")
    run.pool.grow(2)
    batch = draw_batch(run.pool, 2, run.parts, SETTINGS, 0)
    mask = batch.kept["mask"].float()
    weights = run.pool.task.weights(batch.kept)
    torch.testing.assert_close(weights, torch.where(mask == 1, 1.0, 0.3))
    # A U-Net that gives nothing has the mean square of its target as loss.
    torch.nn.init.zeros_(run.parts.unet.conv_out.weight)
    torch.nn.init.zeros_(run.parts.unet.conv_out.bias)
    target = diffusion.target_of(run.parts.scheduler, batch.kept["latents"].float(), batch.noise, batch.timesteps)
    expected = (target.square() * weights).sum() / (LATENT_CHANNELS * weights.sum())
    loss = diffusion.loss_of(run.parts, run.pool, batch, ALONE, False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_equals_an_uninterrupted_one(task, start, tmp_path):
    unbroken, first = start(task), start(task)
    expected = [unbroken.train_step() for _ in range(4)]
    losses = [first.train_step() for _ in range(2)]
    first.keep(tmp_path)
    second = start(task)
    second.pool.load(tmp_path / "latents")
    second.load_state(first.state())
    second.step = 2
    losses += [second.train_step() for _ in range(2)]
    assert losses == expected
    assert second.report() == unbroken.report() == {"samples": 8, "scenes": 4}
    for name, value in unbroken.parts.unet.state_dict().items():
        assert torch.equal(value, second.parts.unet.state_dict()[name]), name
    for one, other in zip(unbroken.average.averages, second.average.averages, strict=True):
        assert torch.equal(one, other)


def test_only_a_new_text_encoder_is_trained(start):
    for task, trained in (("text", True), ("inpaint", False)):
        run = start(task)
        before = {name: value.clone() for name, value in run.parts.text_encoder.state_dict().items()}
        run.train_step()
        same = all(torch.equal(value, before[name]) for name, value in run.parts.text_encoder.state_dict().items())
        assert same is not trained


def test_the_new_channels_are_trained(start):
    run = start("semantic")
    run.train_step()
    assert run.parts.unet.conv_in.weight[:, LATENT_CHANNELS:].abs().sum() > 0


def test_parts_have_a_native_size(start):
    held: Parts = start().parts
    assert (held.side, held.cell) == (256, 8)
