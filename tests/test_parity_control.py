"""ControlNets give the latents that diffusers' own pipelines give, to 1e-4 anywhere, with one and with several."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import pipeline
from sdcli.diffusion.model import ControlNet
from sdcli.files.canvas import InitialImage
from sdcli.models.loading import controlnet
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe
from tests import cases, pairs, tiny

TOLERANCE = 1e-4
KINDS = {
    ("sd15", "text"): diffusers.StableDiffusionControlNetPipeline,
    ("sd15", "image"): diffusers.StableDiffusionControlNetImg2ImgPipeline,
    ("sd15", "mask"): diffusers.StableDiffusionControlNetInpaintPipeline,
    ("sdxl", "text"): diffusers.StableDiffusionXLControlNetPipeline,
    ("sdxl", "image"): diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two ControlNets and two pictures, `0.png` and `1.png`, for each of two families."""
    made: Path = tmp_path_factory.mktemp("control")
    for family in ("sd15", "sdxl"):
        for number in (0, 1):
            tiny.make_controlnet(family, made / f"{family}-{number}", seed=10 + number)
    tiny.make_controlnet("sd15", made / "sd15-pooled", global_pool_conditions=True)
    tiny.make_controlnet("sd15", made / "sd15-bgr", controlnet_conditioning_channel_order="bgr")
    for number in (0, 1):
        random_image(number).save(made / f"{number}.png")
    return made


def random_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def random_mask() -> Image.Image:
    cells = np.random.default_rng(4).random((8, 8)) < 0.5
    return Image.fromarray(np.kron(cells, np.ones((8, 8))).astype(np.uint8) * 255)


def theirs(made: pairs.Pair, folder: Path, family: str, task: str, controls: list[Any], **options: Any) -> Tensor:
    """`controls`: name, scale, start and end of each; the n-th reads `n.png`."""
    asked = {**pairs.DEFAULTS, **options}
    made.set_scheduler(asked["scheduler"], "default")
    names, scales, starts, ends = zip(*controls, strict=True)
    nets = [diffusers.ControlNetModel.from_pretrained(folder / f"{family}-{name}") for name in names]
    pictures = [Image.open(folder / f"{number}.png") for number in range(len(nets))]
    several = len(nets) > 1
    extra = {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}
    kind = KINDS[family, task]
    pipe = kind(**made.pipe.components, controlnet=nets if several else nets[0], **extra)
    pipe.set_progress_bar_config(disable=True)
    guides = pictures if several else pictures[0]
    passed: dict[str, Any] = {"image": guides, "width": 64, "height": 64}
    if task != "text":
        passed = {"image": random_image(7), "control_image": guides, "strength": asked["strength"]}
    if task == "mask":
        passed |= {"mask_image": random_mask(), "width": 64, "height": 64}
    latents: Tensor = pipe(
        asked["prompt"],
        num_inference_steps=asked["steps"],
        guidance_scale=asked["guidance_scale"],
        controlnet_conditioning_scale=list(scales) if several else scales[0],
        control_guidance_start=list(starts) if several else starts[0],
        control_guidance_end=list(ends) if several else ends[0],
        generator=torch.Generator("cpu").manual_seed(asked["seed"]),
        output_type="latent",
        **passed,
    ).images
    return latents


def ours(made: pairs.Pair, folder: Path, family: str, task: str, controls: list[Any], **options: Any) -> Tensor:
    said = [
        f"{folder}/{family}-{name}={folder}/{number}.png:{scale}:{start}-{end}"
        for number, (name, scale, start, end) in enumerate(controls)
    ]
    extra = {} if task == "text" else {"image": "given"}
    recipe = Recipe.from_dict({"model": "", **pairs.DEFAULTS, **options, **extra, "control": said})
    nets = {
        f"{folder}/{family}-{name}": ControlNet(
            controlnet.load(Source(folder / f"{family}-{name}"), device=torch.device("cpu"), dtype=torch.float32)
        )
        for name, *_ in controls
    }
    mask = random_mask() if task == "mask" else None
    given = None if task == "text" else InitialImage(random_image(7), mask, mask)
    model = replace(made.model, controlnets=nets)
    return pipeline.sample(model, [recipe], inputs=tiny.inputs_of(model, recipe, given))


def difference(made: pairs.Pair, *arguments: Any, **options: Any) -> float:
    expected = theirs(made, *arguments, **options)
    assert expected.isfinite().all()
    assert expected.std() > 0.1
    return float((ours(made, *arguments, **options) - expected).abs().max())


ONE = [("0", 1.0, 0.0, 1.0)]
TWO = [("0", 0.7, 0.0, 0.6), ("1", 1.3, 0.3, 1.0)]


@pytest.mark.parametrize(
    ("family", "scheduler", "controls"),
    cases.product(
        ["sd15", "sdxl"], ["ddim", "euler-a", "heun", "dpm++-2m"], [ONE, [("1", 0.5, 0.25, 0.75)], TWO], every=3
    ),
)
def test_text_to_image(pair, folder, family, scheduler, controls):
    assert difference(pair(family), folder, family, "text", controls, scheduler=scheduler) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "scheduler", "controls"),
    cases.product(["sd15", "sdxl"], ["ddim", "euler-a", "heun"], [ONE, TWO], every=2),
)
def test_image_to_image(pair, folder, family, scheduler, controls):
    options = {"scheduler": scheduler, "strength": 0.6, "steps": 5}
    assert difference(pair(family), folder, family, "image", controls, **options) <= TOLERANCE


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(pair, folder, strength):
    assert difference(pair("sd15"), folder, "sd15", "mask", TWO, strength=strength) <= TOLERANCE


@pytest.mark.parametrize("name", ["pooled", "bgr"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_what_a_controlnet_s_config_says(pair, folder, name, guidance_scale):
    controls = [(name, 0.8, 0.0, 1.0)]
    assert difference(pair("sd15"), folder, "sd15", "text", controls, guidance_scale=guidance_scale) <= TOLERANCE


def test_everything_that_is_said_matters(pair, folder):
    """The comparisons above would notice a picture, a scale or a range that is not passed on."""
    made = pair("sd15")
    plain = made.ours()
    found = [
        ours(made, folder, "sd15", "text", controls)
        for controls in (ONE, [("1", 1.0, 0.0, 1.0)], [("0", 0.5, 0.0, 1.0)], [("0", 1.0, 0.5, 1.0)], ONE + ONE, TWO)
    ]
    for place, each in enumerate(found):
        assert all((each - other).abs().max() > 1e-2 for other in [plain, *found[:place]])
    nothing = ours(made, folder, "sd15", "text", [("0", 0.0, 0.0, 1.0)])
    torch.testing.assert_close(nothing, plain, rtol=0, atol=1e-5)


def test_a_batch_is_its_pictures(pair, folder):
    model = pair("sd15").model
    net = controlnet.load(Source(folder / "sd15-0"), device=torch.device("cpu"), dtype=torch.float32)
    model = replace(model, controlnets={"net": ControlNet(net)})
    said = {"model": "", **pairs.DEFAULTS, "control": f"net={folder}/0.png"}
    recipes = [Recipe.from_dict({**said, "seed": seed}) for seed in (5, 6)]
    inputs = tiny.inputs_of(model, recipes[0])
    both = pipeline.sample(model, recipes, inputs=inputs)
    alone = torch.cat([pipeline.sample(model, [each], inputs=inputs) for each in recipes])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1
