"""Previews of latents: the linear maps, and their fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import autoencode
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.diffusion.preview import LinearMap, fit, linear_map, preview
from sdcli.models import loading, located

SD = LatentSpace(scaling_factor=0.18215)
PUBLISHED = {
    "sd": SD,
    "sdxl": LatentSpace(scaling_factor=0.13025),
    "sd3": LatentSpace(16, scaling_factor=1.5305, shift_factor=0.0609),
    "flux": LatentSpace(16, scaling_factor=0.3611, shift_factor=0.1159),
    "flux2": LatentSpace(128, 16, patch=2, mean=(0.0,) * 128, std=(1.0,) * 128),
    "kit": LatentSpace(8, scaling_factor=0.25628),
}


@pytest.mark.parametrize("space", PUBLISHED.values(), ids=PUBLISHED)
def test_each_published_latent_space_has_a_map_of_its_channels(space):
    factors = linear_map(space).factors
    assert len(factors) == space.channels // space.patch**2
    assert all(len(row) == 3 for row in factors)


@pytest.mark.parametrize(
    "space", [LatentSpace(4, scaling_factor=0.5), LatentSpace(16, mean=(0.0,) * 16, std=(1.0,) * 16, has_frames=True)]
)
def test_an_unknown_latent_space_has_no_preview(space):
    assert preview(torch.zeros(space.channels, 4, 4), space) is None


def test_a_preview_is_the_linear_map_of_each_latent():
    latents = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    made = np.asarray(preview(latents, SD))
    factors = np.array(linear_map(SD).factors)
    for row, column in np.ndindex(5, 3):
        colour = np.clip((latents[:, row, column].numpy() @ factors + 1) / 2, 0, 1) * 255
        assert np.abs(made[row, column] - colour).max() <= 0.51


def test_what_is_not_finite_is_black():
    latents = torch.zeros(4, 2, 2)
    latents[0, 0, 0] = torch.nan
    picture = preview(latents, SD)
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert picture.getpixel((1, 1)) == (128, 128, 128)


def test_patches_are_undone():
    space = PUBLISHED["flux2"]
    patched = torch.randn(128, 2, 3, generator=torch.Generator().manual_seed(0))
    plain = space.denormalize(patched[None])[0]  # mean 0 and standard deviation 1: only the patches are undone
    one_by_one = LatentSpace(32, 8)
    factors = linear_map(space)
    pixels = (plain.permute(1, 2, 0) @ torch.tensor(factors.factors) + torch.tensor(factors.bias)).numpy()
    assert preview(patched, space).size == (6, 4)
    assert plain.shape == (one_by_one.channels, 4, 6)
    assert np.abs(np.asarray(preview(patched, space)) - np.clip((pixels + 1) / 2, 0, 1) * 255).max() <= 0.51


def test_a_fit_finds_the_map_that_made_the_pixels():
    wanted = LinearMap(((0.1, 0.2, 0.3), (-0.3, 0.0, 0.1)), (0.05, -0.05, 0.0))
    latents = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = (
        torch.einsum("nchw,cr->nrhw", latents, torch.tensor(wanted.factors)) + torch.tensor(wanted.bias)[:, None, None]
    )
    found, error = fit(latents, pixels.repeat_interleave(8, 2).repeat_interleave(8, 3))
    assert np.allclose(found.factors, wanted.factors, atol=1e-6)
    assert np.allclose(found.bias, wanted.bias, atol=1e-6)
    assert error < 1e-6


def test_kits_map_resembles_its_pictures():
    """If kit is trained again, `python -m sdcli.training.preview kit` prints its map."""
    source = located.find("kit").source
    kit = loading.load(source, name="kit", device=torch.device("cpu"), dtype=torch.float32, stage="vae")
    picture = Image.new("RGB", (64, 64), (250, 120, 40))
    picture.paste((20, 60, 200), (0, 0, 32, 64))
    latents = autoencode.encode_picture(kit, picture)
    made = np.asarray(preview(latents[0], kit.latent_space).resize((2, 1), Image.Resampling.BOX)).astype(int)
    assert np.abs(made - [[(20, 60, 200), (250, 120, 40)]]).max() < 50
