"""Image-to-image and inpainting give the latents that diffusers' own pipelines give, to 1e-4 anywhere."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import pipeline
from sdcli.diffusion.context import masked_image
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.models import loading
from sdcli.models.source import Source
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe
from tests import cases, pairs, tiny

pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")  # of diffusers' own dpm++-sde

TOLERANCE = 1e-4
KINDS = {
    ("sd15", "img2img"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd21-v", "img2img"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sdxl", "img2img"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("sd15", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sd21-v", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}

FAMILIES = ("sd15", "sd21-v", "sdxl")
"""Those of KINDS: that predict ε, that predict v, with pooled embeddings."""


def random_image(seed: int = 3, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def random_mask(seed: int = 4) -> Image.Image:
    """White in about half of the latents' cells."""
    cells = np.random.default_rng(seed).random((8, 8)) < 0.5
    return Image.fromarray(np.kron(cells, np.ones((8, 8))).astype(np.uint8) * 255)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    """`inpainting(family)`: a tiny 9-channel model as diffusers' pipeline and as sdcli's."""
    made: dict[str, pairs.Pair] = {}

    def make(family: str) -> pairs.Pair:
        if family not in made:
            folder = tiny.make_folder(family, tmp_path_factory.mktemp("inpaint"), in_channels=9)
            model = loading.load(Source(folder), name="inpaint", device=torch.device("cpu"), dtype=torch.float32)
            pipe = KINDS[family, "inpaint"].from_pretrained(folder, local_files_only=True)
            pipe.set_progress_bar_config(disable=True)
            made[family] = pairs.Pair(pipe, model)
        return made[family]

    return make


def theirs(made: pairs.Pair, kind: type, options: dict[str, Any], image: Image.Image, mask: Image.Image | None):
    asked = {**pairs.DEFAULTS, **options}
    made.set_scheduler(asked["scheduler"], asked.get("sigmas", "default"))
    extra = {"add_watermarker": False} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    parts = {key: value for key, value in made.pipe.components.items() if key != "image_encoder" or value is not None}
    pipe = kind(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    said = {} if mask is None else {"mask_image": mask, "width": 64, "height": 64}
    latents: Tensor = pipe(
        asked["prompt"],
        image=image,
        strength=asked["strength"],
        num_inference_steps=asked["steps"],
        guidance_scale=asked["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(asked["seed"]),
        output_type="latent",
        **said,
    ).images
    return latents


def difference(made: pairs.Pair, family: str, task: str, **options: Any) -> float:
    image, mask = random_image(), random_mask() if task == "inpaint" else None
    expected = theirs(made, KINDS[family, task], options, image, mask)
    recipe = Recipe.from_dict({"model": "", **pairs.DEFAULTS, "image": "given", **options})
    latents = pipeline.sample(made.model, [recipe], inputs=Inputs(InitialImage(image, mask, mask)))
    assert expected.isfinite().all()
    assert expected.std() > 0.1
    return float((latents - expected).abs().max())


# diffusers' pipelines leave noise with the others: see diffusion/midway.py and tests/test_denoise.py.
FROM_MIDWAY = tuple(name for name, row in schedulers.TABLE.items() if row.midway is None)


@pytest.mark.parametrize("scheduler", FROM_MIDWAY)
def test_image_to_image_with_every_scheduler(pair, scheduler):
    assert difference(pair("sd15"), "sd15", "img2img", scheduler=scheduler, steps=5, strength=0.6) <= TOLERANCE


@pytest.mark.parametrize("strength", [0.2, 0.55, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_image_to_image_of_every_strength(pair, family, strength):
    for scheduler in ("euler-a", "dpm++-2m"):
        assert difference(pair(family), family, "img2img", scheduler=scheduler, strength=strength, steps=5) <= TOLERANCE


# diffusers' pipelines leave noise with the others: see diffusion/midway.py and tests/test_denoise.py.
FROM_MIDWAY = tuple(name for name, row in schedulers.TABLE.items() if row.midway is None)


@pytest.mark.parametrize("scheduler", FROM_MIDWAY)
def test_inpainting_by_blending_with_every_scheduler(pair, scheduler):
    assert difference(pair("sd15"), "sd15", "inpaint", scheduler=scheduler, steps=5, strength=0.6) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "scheduler", "strength"),
    cases.product(FAMILIES, ["ddim", "euler-a", "heun", "dpm++-2m"], [0.5, 1.0], every=3),
)
def test_inpainting_by_blending(pair, family, scheduler, strength):
    assert difference(pair(family), family, "inpaint", scheduler=scheduler, strength=strength) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "scheduler", "strength"),
    cases.product(FAMILIES, ["ddim", "euler-a", "heun", "dpm++-2m"], [0.5, 1.0], every=3),
)
def test_inpainting_by_concatenation(inpainting, family, scheduler, strength):
    assert difference(inpainting(family), family, "inpaint", scheduler=scheduler, strength=strength) <= TOLERANCE


def test_the_context_is_diffusers_for_any_mask(inpainting):
    """Masks that are no whole cells, and grey."""
    made = inpainting("sd15")
    pixels = torch.rand((1, 3, 64, 64)) * 2 - 1
    mask = (torch.rand((1, 1, 64, 64)) < 0.5).float()
    ours = masked_image.encode(made.model, pixels, mask, [torch.Generator().manual_seed(1)])
    theirs_mask, theirs_latents = made.pipe.prepare_mask_latents(
        mask, pixels * (mask < 0.5), 1, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(1), False
    )
    torch.testing.assert_close(ours, torch.cat([theirs_mask, theirs_latents], dim=1), rtol=0, atol=1e-5)


def test_a_batch_is_its_pictures(pair):
    model = pair("sd15").model
    recipes = [
        Recipe.from_dict({"model": "", **pairs.DEFAULTS, "image": "given", "strength": 0.5, "seed": seed})
        for seed in (5, 6)
    ]
    inputs = Inputs(InitialImage(random_image(), random_mask(), random_mask()))
    both = pipeline.sample(model, recipes, inputs=inputs)
    alone = torch.cat([pipeline.sample(model, [each], inputs=inputs) for each in recipes])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1
