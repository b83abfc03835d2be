from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdcli.training import autoencoder as stage
from sdcli.training import loop
from sdcli.training.autoencoder import AutoencoderRun
from sdcli.training.settings import AutoencoderTraining
from sdcli.training.sources import World
from sdcli.training.team import Team
from sdcli.training.world import FEW

TINY = {**stage.ARCHITECTURE, "block_out_channels": (16, 16, 16, 16), "norm_num_groups": 4}
SETTINGS = AutoencoderTraining(
    steps=4, batch=2, crop=32, teacher_steps=2, teacher_scenes=4, warmup=1, cooldown=1, save_every=2, log_every=1
)
ALONE = Team(torch.device("cpu"))


@pytest.fixture(scope="module")
def world(sprites):
    return World(sprites, seed=1, vocabulary=FEW)


def patches_of(images: Tensor) -> np.ndarray:
    """Every 8×8×3 patch as a row, by slicing."""
    rows = [
        image[:, top : top + 8, left : left + 8].reshape(-1).numpy()
        for image in images
        for top in range(0, image.shape[1], 8)
        for left in range(0, image.shape[2], 8)
    ]
    return np.stack(rows).astype(np.float64)


def test_the_teacher_is_the_truncated_svd(world):
    images = stage.pictures(world, 1, 2)[:, :, 64:192, 64:192]
    teacher = stage.fit_teacher(images, 4)
    rows = patches_of(images)
    left, values, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    expected = (left[:, :4] * values[:4]) @ right[:4] + rows.mean(0)
    np.testing.assert_allclose(patches_of(teacher.decode(teacher.encode(images))), expected, atol=2e-3)
    codes = teacher.encode(images)
    np.testing.assert_allclose(codes.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(codes.square().mean((0, 2, 3)), 1, atol=1e-3)


def test_the_loss_of_a_reconstruction_by_hand():
    images = torch.zeros(1, 1, 2, 2)
    decoded = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # |error| 1/4, squares 1/4, vertical differences (1, 0) mean 1/2, horizontal the same.
    assert stage.reconstruction_loss(decoded, images, edge_weight=0.5).item() == pytest.approx(1.0)


def test_psnr_of_a_tenth_of_the_range():
    assert stage.psnr(0.2**2) == pytest.approx(20.0)


def test_the_batch_depends_only_on_the_step(world):
    one, again, other = (stage.crops(world, SETTINGS, step, ALONE) for step in (5, 5, 6))
    assert one.shape == (2, 3, 32, 32)
    assert one.min() >= -1
    assert one.max() <= 1
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_processes_have_different_crops(world):
    one, other = (stage.crops(world, SETTINGS, 5, Team(torch.device("cpu"), True, place, 2)) for place in (0, 1))
    assert one.shape == other.shape == (1, 3, 32, 32)
    assert not torch.equal(one, other)


def test_a_resumed_run_equals_an_uninterrupted_one(world):
    unbroken, first = (AutoencoderRun(world, SETTINGS, ALONE, TINY) for _ in range(2))
    expected = [unbroken.train_step() for _ in range(4)]
    losses = [first.train_step() for _ in range(2)]
    second = AutoencoderRun(world, SETTINGS, ALONE, TINY)
    second.load_state(first.state())
    second.step = 2
    losses += [second.train_step() for _ in range(2)]
    assert losses == expected
    for name, value in unbroken.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name]), name


def test_a_run_writes_a_log_with_psnr_and_a_sheet(world, tmp_path):
    run = AutoencoderRun(world, replace(SETTINGS, sheet_every=4), ALONE, TINY)
    run.shown = stage.pictures(world, 2, 6)
    entries = []
    assert loop.train(run, tmp_path, loop.Stop(), loop.Watcher(on_entry=entries.append))
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert ["psnr" in entry for entry in entries] == [False, True, False, True]
    with Image.open(tmp_path / "sheets" / "000004.png") as sheet:
        assert sheet.size == (6 * 160, 2 * 160)


def test_the_teacher_teaches_quickly(world):
    settings = AutoencoderTraining(batch=2, crop=64, teacher_steps=99, teacher_scenes=8, warmup=1)
    run = AutoencoderRun(world, settings, ALONE, TINY)
    losses = [run.train_step() for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_the_scaling_factor_gives_latents_unit_variance(world):
    vae = AutoencoderRun(world, SETTINGS, ALONE, TINY).vae
    images = stage.pictures(world, 2, 2)
    factor = stage.set_scaling_factor(vae, images)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    assert vae.config.scaling_factor == factor
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
