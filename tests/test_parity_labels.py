"""Models of classes give what diffusers' own pipeline, or a loop written out of its parts, gives."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import autoencode, pipeline
from sdcli.files.canvas import InitialImage
from sdcli.models import loading
from sdcli.models.loading.weights import read_headers
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe
from tests import tiny

CPU = torch.device("cpu")
FOX, CRANE = 279, 517
SAID = {"model": "", "width": 64, "height": 64, "seed": 7, "device": "cpu", "dtype": "float32"}


def load(folder, dtype=torch.float32):
    return loading.load(Source(folder), name="tiny", device=CPU, dtype=dtype)


def recipe(label=FOX, **said):
    return Recipe.from_dict(
        {**SAID, "label": str(label), "steps": 4, "scheduler": "ddim", "guidance_scale": 4.0, **said}
    )


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return tiny.make_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    return tiny.make_ldm(tmp_path_factory.mktemp("ldm"))


def theirs_of_dit(folder, label, steps, guidance_scale, scheduler):
    pipe = diffusers.DiTPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    generator = torch.Generator("cpu").manual_seed(7)
    made = pipe([label], guidance_scale=guidance_scale, generator=generator, num_inference_steps=steps)
    return np.asarray(made.images[0]).astype(int)


@pytest.mark.parametrize("label", [FOX, CRANE])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize(
    ("scheduler", "name"), [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpm++-2m")]
)
def test_dit_draws_the_pixels_of_diffusers(dit, label, guidance_scale, scheduler, name):
    asked = recipe(label, guidance_scale=guidance_scale, scheduler=name)
    ours = np.asarray(pipeline.run(load(dit), [asked])[0].image).astype(int)
    theirs = theirs_of_dit(dit, label, 4, guidance_scale, scheduler)
    assert theirs.std() > 5
    assert abs(ours - theirs).max() <= 1


def test_dit_by_the_class_name_of_older_diffusers(dit, tmp_path):
    """As facebook/DiT-XL-2-256 is: its config says Transformer2DModel, and holds keys of that class's other uses."""
    folder = tiny.make_dit(tmp_path / "old")
    index, config = folder / "model_index.json", folder / "transformer" / "config.json"
    index.write_text(index.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    config.write_text(
        config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel")[:-2].rstrip()
        + ',"cross_attention_dim": null}'
    )
    assert torch.equal(pipeline.sample(load(folder), [recipe()]), pipeline.sample(load(dit), [recipe()]))


def theirs_of_ldm(folder, label, steps, guidance_scale):
    """A loop of diffusers' parts alone, in the words of the paper: (1 + w) ε(z, y) − w ε(z)."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    weights = read_headers([folder / "class_embedder" / "diffusion_pytorch_model.safetensors"])
    from safetensors.torch import load_file

    table = load_file(next(iter(weights.values())).file)["weight"]
    scheduler.set_timesteps(steps)
    z = torch.randn((1, 3, 16, 16), generator=torch.Generator("cpu").manual_seed(7))
    with torch.inference_mode():
        for t in scheduler.timesteps:
            of_class = unet(z, t, encoder_hidden_states=table[label][None, None]).sample
            of_none = unet(z, t, encoder_hidden_states=table[1000][None, None]).sample
            guided = guidance_scale * of_class - (guidance_scale - 1) * of_none
            z = scheduler.step(guided, t, z, eta=0.0).prev_sample
    return z


@pytest.mark.parametrize("label", [FOX, CRANE])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_ldm_ends_in_the_latents_of_a_loop_of_diffusers_parts(ldm, label, guidance_scale):
    ours = pipeline.sample(load(ldm), [recipe(label, guidance_scale=guidance_scale)])
    theirs = theirs_of_ldm(ldm, label, 4, guidance_scale)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


def test_ldm_decodes_the_nearest_codes(ldm):
    model = load(ldm)
    latents = pipeline.sample(model, [recipe()])
    vae = diffusers.VQModel.from_pretrained(ldm / "vae")
    codes = vae.quantize.embedding.weight
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 3)
    nearest = codes[((flat[:, None] - codes[None]) ** 2).sum(-1).argmin(1)].reshape(1, 16, 16, 3).permute(0, 3, 1, 2)
    with torch.inference_mode():
        theirs = vae.decode(nearest, force_not_quantize=True).sample
        unquantised = vae.decode(latents, force_not_quantize=True).sample
    ours = autoencode.decode(model, latents)
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - unquantised).abs().max() > 0.01


@pytest.mark.parametrize("make", [tiny.make_dit, tiny.make_ldm])
def test_the_label_matters_and_a_batch_is_its_pictures(make, tmp_path):
    model = load(make(tmp_path / "model"))
    recipes = [recipe(seed=seed) for seed in (5, 6)]
    both = pipeline.sample(model, recipes)
    alone = torch.cat([pipeline.sample(model, [each]) for each in recipes])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)
    assert (both[0] - pipeline.sample(model, [recipe(CRANE, seed=5)])).abs().max() > 1e-3


@pytest.mark.parametrize("make", [tiny.make_dit, tiny.make_ldm])
def test_bfloat16_draws_nearly_the_same(make, tmp_path):
    folder = make(tmp_path / "model")
    wide, narrow = (
        np.asarray(pipeline.run(load(folder, dtype), [recipe()])[0].image).astype(int)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert abs(wide - narrow).mean() < 16
    assert load(folder, torch.bfloat16).network.dtype == torch.bfloat16


@pytest.mark.parametrize("make", [tiny.make_dit, tiny.make_ldm])
def test_an_image_is_redrawn_as_a_class(make, tmp_path):
    """The context and the latents to start from are told apart: each goes with each of the other."""
    from sdcli.files.inputs import Inputs

    inputs = Inputs(InitialImage(Image.effect_noise((64, 64), 80).convert("RGB")))
    said = {"image": "given", "steps": 5}
    little, much = (
        pipeline.run(load(make(tmp_path / str(strength))), [recipe(strength=strength, **said)], inputs=inputs)[0].image
        for strength in (0.2, 1.0)
    )
    assert little.tobytes() != much.tobytes()
