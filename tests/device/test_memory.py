"""Weights that wait in main memory: the same pictures as with everything on the device, in less of its memory."""

from pathlib import Path

import pytest
import torch

from sdcli.diffusion import autoencode, device, pipeline, tiling
from sdcli.models import assemble
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import tiny_flow
from tests.device.where import DEVICE

FAMILIES = ("z-image", "flux-dev", "flux2-klein", "sd3", "qwen-image")
ON_CUDA = pytest.mark.skipif(DEVICE != "cuda", reason="its memory is only counted by CUDA")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {family: tiny_flow.make_folder(family, root / family) for family in FAMILIES}


def recipe_for(folder: Path, place: str, **options) -> Recipe:
    asked = {
        "model": str(folder),
        "prompt": "a fox",
        "seed": 7,
        "steps": 2,
        "scheduler": "euler",
        "guidance_scale": 1.0,
    }
    asked |= {"width": 128, "height": 128, "dtype": "float32", "device": place, **options}
    return device.resolve_execution(Recipe.from_dict(asked))


def load(folder: Path, recipe: Recipe, offload: str):
    return assemble.load(Weights(Source(folder)), recipe, offload=offload)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", ["model", "group"])
def test_weights_that_wait_make_the_same_picture(folders, device, family, offload):
    recipe = recipe_for(folders[family], device)
    plain, moved = (load(folders[family], recipe, each) for each in ("none", offload))
    first, second = (pipeline.run(each, [recipe])[0] for each in (plain, moved))
    assert (first.latents - second.latents).abs().max() <= 1e-4 * first.latents.std()
    again = pipeline.run(moved, [recipe])[0]
    assert torch.equal(again.latents, second.latents)
    assert {each.device.type for each in moved.network.parameters()} == {"cpu"}


@ON_CUDA
@pytest.mark.parametrize("offload", ["model", "group"])
def test_weights_that_wait_take_no_memory_between_pictures(folders, device, offload):
    recipe = recipe_for(folders["flux-dev"], device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = load(folders["flux-dev"], recipe, offload)
    pipeline.run(model, [recipe])
    weights = sum(each.numel() * each.element_size() for each in model.network.parameters())
    assert torch.cuda.memory_allocated() - before < weights / 4


@ON_CUDA
def test_a_picture_that_does_not_fit_is_decoded_in_tiles(folders, device):
    recipe = recipe_for(folders["z-image"], device)
    model = load(folders["z-image"], recipe, "none")
    latents = torch.randn((1, *model.latent_space.shape(2048, 2048)), device=device)
    _, _, whole = autoencode.decode_that_fits(model, latents, "off")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    taken = torch.cuda.memory_reserved()
    try:
        torch.cuda.set_per_process_memory_fraction((taken + 256 * 2**20) / total)
        pixels, _, way = autoencode.decode_that_fits(model, latents, "off")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (whole, way) == ("off", "tiles")
    assert pixels.isfinite().all()
    assert tiling.TILE < 2048
