import pytest
import torch
from diffusers import DDIMScheduler

from sdcli.training.autoencoder import AutoencoderRun
from sdcli.training.text_to_image import (
    SCHEDULER,
    UNET,
    Latents,
    TextToImageRun,
    TextToImageTraining,
    draw_batch,
    tokenize,
)
from sdcli.training.tokenizer import load_tokenizer, write_tokenizer
from tests.training.test_autoencoder import SETTINGS as AUTOENCODER_SETTINGS
from tests.training.test_autoencoder import TINY as TINY_AUTOENCODER

TINY = {**UNET, "block_out_channels": (16, 16, 16), "attention_head_dim": (1, 1, 1), "norm_num_groups": 4}
SETTINGS = TextToImageTraining(steps=4, batch=2, warmup=1, cooldown=1, scenes=2, fresh=1, most_scenes=4)


@pytest.fixture(scope="module")
def vae(sprites):
    return AutoencoderRun(sprites, AUTOENCODER_SETTINGS, TINY_AUTOENCODER).vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, ["an arctic fox in the snow", "a white owl at night"])
    return load_tokenizer(folder)


@pytest.fixture
def start(vae, tokenizer, sprites):
    return lambda: TextToImageRun(tokenizer, Latents(vae, sprites, seed=1), SETTINGS, TINY)


def test_latents_depend_on_their_number_only(vae, sprites, tmp_path):
    at_once, in_parts = Latents(vae, sprites, 1), Latents(vae, sprites, 1)
    at_once.grow(3)
    in_parts.grow(1)
    in_parts.save(tmp_path / "latents.pt")
    restored = Latents(vae, sprites, 1)
    restored.load(tmp_path / "latents.pt")
    restored.grow(3)
    assert restored.scenes == at_once.scenes
    assert at_once.encoded[0].shape == (4, 32, 32)
    torch.testing.assert_close(torch.stack(restored.encoded), torch.stack(at_once.encoded), atol=0.02, rtol=0)


def test_the_batch_of_a_step_depends_on_the_step_alone(start):
    run = start()
    run.pool.grow(2)
    one, again, other = (draw_batch(run.pool, 2, run.tokenizer, SETTINGS, step) for step in (5, 5, 6))
    assert torch.equal(one.noise, again.noise)
    assert torch.equal(one.token_ids, again.token_ids)
    assert torch.equal(one.timesteps, again.timesteps)
    assert not torch.equal(one.noise, other.noise)
    assert one.token_ids.shape == (2, 77)
    assert 0 <= one.timesteps.min() <= one.timesteps.max() < 1000


def test_some_prompts_are_empty_and_most_timesteps_are_noisy(start):
    run = start()
    run.pool.grow(2)
    settings = TextToImageTraining(batch=1000, empty_prompts=0.1)
    batch = draw_batch(run.pool, 2, run.tokenizer, settings, step=0)
    empty = (batch.token_ids == tokenize(run.tokenizer, [""])).all(1).float().mean().item()
    assert 0.07 < empty < 0.13
    # Half of a logit-normal distribution lies above the sigmoid of its shift.
    assert (batch.timesteps > 1000 * torch.tensor(settings.timestep_shift).sigmoid()).float().mean() == (
        pytest.approx(0.5, abs=0.06)
    )


def test_the_last_timestep_is_pure_noise_and_v_gives_the_latents_back():
    scheduler = DDIMScheduler(**SCHEDULER)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([300, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(noisy[1], noise[1])
    torch.testing.assert_close(velocity[1], -latents[1])
    alpha = scheduler.alphas_cumprod[300]
    torch.testing.assert_close(alpha.sqrt() * noisy[0] - (1 - alpha).sqrt() * velocity[0], latents[0])


def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(start, tmp_path):
    unbroken, first = start(), start()
    expected = [unbroken.train_step() for _ in range(4)]
    losses = [first.train_step() for _ in range(2)]
    first.save(tmp_path)
    second = start()
    second.restore(tmp_path)
    losses += [second.train_step() for _ in range(2)]
    assert losses == expected
    assert second.report() == unbroken.report() == {"samples": 8, "scenes": 4}
    for name, value in unbroken.unet.state_dict().items():
        assert torch.equal(value, second.unet.state_dict()[name]), name
    for one, other in zip(unbroken.average.averages, second.average.averages, strict=True):
        assert torch.equal(one, other)
