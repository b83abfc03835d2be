"""run(): the whole way from recipe to pixels, against diffusers' own pipelines on the same folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from sdcli.diffusion import autoencode, device, pipeline
from sdcli.errors import InvalidPicture, InvalidRecipe, OutOfMemory
from sdcli.files import images
from sdcli.models import assemble, registry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import tiny


def recipe_for(folder: Path | str, **options) -> Recipe:
    entry = registry.find(str(folder))
    defaults = {"prompt": "arctic fox", "model": str(folder), "seed": 7, "steps": 3, "scheduler": "ddim"}
    return tiny.recipe_for(entry, {**defaults, "dtype": "float32", "device": "cpu", **options})


def made(folder: Path | str, **options) -> list[pipeline.Result]:
    recipe = device.resolve_execution(recipe_for(folder, **options))
    model = assemble.load(Weights(registry.locate(registry.find(str(folder)))), recipe)
    return pipeline.run(model, [recipe])


@pytest.mark.parametrize("model", ["sd15", "kit"])
def test_the_picture_is_diffusers_own(model, request):
    folder = request.getfixturevalue("sd15") if model == "sd15" else registry.PACKAGE / "kit"
    ours = made(folder, negative_prompt="snow", guidance_scale=5.0)[0].image
    theirs_pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    theirs_pipeline.scheduler = DDIMScheduler.from_config(theirs_pipeline.scheduler.config)
    theirs_pipeline.set_progress_bar_config(disable=True)
    theirs = theirs_pipeline(
        "arctic fox",
        negative_prompt="snow",
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1  # the latents agree to 1e-4, which can tip a rounding


def test_the_same_recipe_gives_the_same_bytes(sd15):
    first, second = made(sd15)[0], made(sd15)[0]
    assert first.image.tobytes() == second.image.tobytes()
    assert first.recipe == second.recipe
    assert first.seconds > 0


def test_a_batch_holds_the_pictures_of_its_seeds(sd15):
    recipes = [device.resolve_execution(recipe_for(sd15, seed=seed, batch_size=2)) for seed in (7, 8)]
    model = assemble.load(Weights(Source(sd15)), recipes[0])
    together = pipeline.run(model, recipes)
    for result, recipe in zip(together, recipes, strict=True):
        alone = pipeline.run(model, [recipe])[0]
        difference = np.abs(np.asarray(result.image, dtype=int) - np.asarray(alone.image, dtype=int))
        assert result.recipe == recipe
        assert difference.max() <= 1
    assert together[0].image.tobytes() != together[1].image.tobytes()


def test_size_is_as_asked(sd15):
    result = made(sd15, width=128, height=72)[0]
    assert result.image.size == (128, 72)


def test_auto_is_resolved_to_what_runs_here(sd15):
    recipe = device.resolve_execution(recipe_for(sd15, device="auto", dtype="auto"))
    execution = recipe.execution
    assert "auto" not in (execution.device, execution.dtype)
    assert execution.threads == torch.get_num_threads()


def test_threads_are_set_and_recorded(sd15):
    before = torch.get_num_threads()
    try:
        recipe = device.resolve_execution(recipe_for(sd15, threads=before + 1))
        assert torch.get_num_threads() == recipe.execution.threads == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_here_is_refused(sd15):
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(InvalidRecipe):
        device.resolve_execution(recipe_for(sd15, device=absent))


def test_nan_latents_are_no_picture(sd15):
    recipe = device.resolve_execution(recipe_for(sd15))
    model = assemble.load(Weights(Source(sd15)), recipe)
    with torch.no_grad():
        model.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(InvalidPicture):
        pipeline.run(model, [recipe])


def test_an_allocation_beyond_the_machine_is_out_of_memory(sd15):
    recipe = device.resolve_execution(recipe_for(sd15))
    model = assemble.load(Weights(Source(sd15)), recipe)

    def greedy(*args, **kwargs):
        return torch.empty(2**60)

    model.vae.decode = greedy
    with pytest.raises(OutOfMemory):
        pipeline.run(model, [recipe])


def test_other_runtime_errors_are_not_explained_away(sd15):
    recipe = device.resolve_execution(recipe_for(sd15))
    model = assemble.load(Weights(Source(sd15)), recipe)

    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not fit")

    model.vae.decode = broken
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        pipeline.run(model, [recipe])


def test_pixels_are_checked_by_images(sd15):
    with pytest.raises(InvalidPicture):
        images.check_picture(torch.full((1, 3, 8, 8), -1.0))


def overflowing(model, threshold):
    """The model, whose VAE gives NaN for pictures whose latents' mean exceeds `threshold`, unless it is in float32."""
    decode = model.vae.decode

    def narrow(latents, return_dict):
        pixels = decode(latents, return_dict=return_dict)[0]
        if model.vae.dtype != torch.float32:
            pixels[latents.float().mean((1, 2, 3)) > threshold, :, 0, 0] = float("nan")
        return (pixels,)

    model.vae.decode = narrow
    return model


def test_a_decode_that_overflows_is_done_again_in_float32_alone(sd15):
    recipes = [device.resolve_execution(recipe_for(sd15, seed=seed, dtype="bfloat16")) for seed in (7, 8)]
    model = assemble.load(Weights(Source(sd15)), recipes[0])
    plain = pipeline.run(model, recipes)
    latents = pipeline.sample(model, recipes)
    means = latents.mean((1, 2, 3))
    overflowing(model, float(means.mean()))
    lost = int(means.argmax())
    wide = autoencode.decode_in_float32(model, latents[[lost]])
    results = pipeline.run(model, recipes)
    assert results[lost].warnings == (pipeline.RETRIED,)
    assert results[lost].image.tobytes() == images.to_image(wide[0]).tobytes()
    assert results[1 - lost].warnings == ()
    assert results[1 - lost].image.tobytes() == plain[1 - lost].image.tobytes()
    assert model.vae.dtype == torch.bfloat16


def test_what_is_nan_in_float32_too_is_no_picture(sd15):
    recipe = device.resolve_execution(recipe_for(sd15, dtype="bfloat16"))
    model = assemble.load(Weights(Source(sd15)), recipe)
    model.vae.decode = lambda latents, return_dict: (torch.full((1, 3, 64, 64), float("nan")),)
    with pytest.raises(InvalidPicture):
        pipeline.run(model, [recipe])


def test_a_flat_picture_is_told_and_strict_refuses_it(sd15, tmp_path, capfd, monkeypatch):
    from sdcli import cli

    monkeypatch.setattr(autoencode, "decode", lambda model, latents, way: torch.full((1, 3, 64, 64), 0.5))
    words = ["generate", "x", "-m", str(sd15), "--steps", "1", "--dtype", "float32", "-o", f"{tmp_path}/x.png"]
    assert cli.run([*words, "--strict", "--json"]) == 6
    out, err = capfd.readouterr()
    assert json.loads(out)["status"] == "failed"
    assert err.startswith("error: the picture has a single colour: #bfbfbf")
    assert not (tmp_path / "x.png").exists()
    assert cli.run([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["warnings"] == ["the picture has a single colour: #bfbfbf"]
    assert err == "warning: the picture has a single colour: #bfbfbf\n"
    assert cli.run([*words, "--strict", "--eta", "0.5", "--scheduler", "tcd", "--force"]) == 2
