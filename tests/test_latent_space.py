"""z(x) as f sees it: scaled, shifted or standardised as the VAE's config says, and back, on real autoencoders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from PIL import Image
from torch import Generator

from sdcli.diffusion import autoencode
from sdcli.diffusion.context import masked_image
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.models import loading, registry
from sdcli.models.source import Source
from tests import tiny

MEAN, STD = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
CONFIGS = {
    "scaled": {"scaling_factor": 0.25},
    "shifted": {"scaling_factor": 1.5305, "shift_factor": 0.0609},  # SD 3's numbers
    "standardised": {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},  # as Playground 2.5's
    "standardised alone": {"scaling_factor": 1.0, "latents_mean": MEAN, "latents_std": STD, "shift_factor": None},
}


def expected(kind: str, z: np.ndarray) -> np.ndarray:
    """As diffusers' pipelines of SD 3 and SDXL have it, in numpy."""
    said = CONFIGS[kind]
    if said.get("latents_mean"):
        mean, std = (np.reshape(each, (1, 4, 1, 1)) for each in (MEAN, STD))
        return (z - mean) * said["scaling_factor"] / std
    return (z - (said.get("shift_factor") or 0.0)) * said["scaling_factor"]


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    """A tiny SD 1.5 whose VAE has another latent space."""
    folder = tiny.make_folder("sd15", tmp_path_factory.mktemp("space") / "model")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **CONFIGS[kind]}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return loading.load(Source(folder), name="", device=torch.device("cpu"), dtype=torch.float32)


def test_planning_knows_the_space_that_the_loaded_model_has(folder, model):
    assert registry.read_facts(Source(folder)).latent_space == model.latent_space
    assert model.latent_space.shape(128, 64) == (4, 8, 16)


def test_pictures_go_in_and_out_as_in_diffusers_pipelines(kind, model):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(picture) / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        gaussian = model.vae.encode(pixels).latent_dist
        z = gaussian.mean.numpy().astype(np.float64)
    found = autoencode.encode_picture(model, picture)
    assert np.abs(found.numpy() - expected(kind, z)).max() <= 1e-5
    noise = torch.randn(4, 8, 8, generator=Generator().manual_seed(3))
    drawn = masked_image.encode_image(model, pixels, [Generator().manual_seed(3)])
    assert np.abs(drawn.detach().numpy() - expected(kind, (gaussian.mean + gaussian.std * noise).numpy())).max() <= 1e-4
    with torch.no_grad():
        theirs = model.vae.decode(gaussian.mean).sample
    with torch.inference_mode():
        assert (autoencode.decode(model, found) - theirs).abs().max() <= 1e-4


def test_a_space_is_there_and_back(kind, model):
    latents = torch.randn(2, 4, 3, 5, generator=Generator().manual_seed(1))
    z = model.latent_space.denormalize(latents)
    assert np.abs(expected(kind, z.double().numpy()) - latents.numpy()).max() <= 1e-5
    assert torch.allclose(model.latent_space.normalize(z), latents, atol=1e-6)


def test_what_a_config_leaves_unsaid_is_the_class_s_own():
    config = {"latent_channels": 4, "block_out_channels": [8, 8, 8, 8]}
    assert LatentSpace.of(config).scaling_factor == 0.18215
    assert LatentSpace.of({**config, "_class_name": "AutoencoderTiny"}).scaling_factor == 1.0
    tiny_vae = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    assert LatentSpace.of(tiny_vae.config) == LatentSpace(channels=4, vae_scale_factor=8, scaling_factor=1.0)
