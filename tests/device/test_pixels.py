"""Every family and context on the device, against the CPU's pixels in float32.

The latents tell more than the pixels, for a tiny random VAE draws with little contrast: their greatest difference is
measured in standard deviations of the CPU's. float32 is what torch makes of it by default, which in CUDA's convolutions
is TF32; without TF32 the tolerance is that of another order of summation.
"""

import pytest
import torch

from sdcli.diffusion import pipeline
from sdcli.diffusion.device import devices
from tests.device.making import CASES, SHARED, TEXT, Studio, apart
from tests.device.where import DEVICE

TOLERANCES = {  # least PSNR in dB, greatest difference of latents in standard deviations
    "float32": (45.0, 0.05),
    "float16": (35.0, 0.10),
    "bfloat16": (25.0, 0.50),
}


def check(found: dict[str, float], dtype: str, record_property, name: str = "") -> None:
    for key, value in found.items():
        record_property(key, value)
    least, most = TOLERANCES[dtype]
    if name == "ldm" and dtype != "float32":
        least = 15.0  # the nearest code of its VQ-VAE jumps where latents are about as near to two
    assert found["psnr"] > least or found["max"] <= 2
    assert found["latents"] < most


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_device_makes_the_cpu_s_picture(studio: Studio, device, name, dtype, record_property):
    recipe = studio.recipe(name, device=device, dtype=dtype)
    record_property("dtype", recipe.execution.dtype)
    made = studio.make(recipe)[0]
    assert made.image.size == (64, 64)
    check(apart(made, studio.reference(name)), recipe.execution.dtype, record_property, name)


@pytest.mark.parametrize("name", ["sd15-ddim", "sdxl", "dit", "ldm", "inpaint", "control"])
def test_float16_too(studio: Studio, device, name, record_property):
    recipe = studio.recipe(name, device=device, dtype="float16")
    check(apart(studio.make(recipe)[0], studio.reference(name)), "float16", record_property, name)


@pytest.mark.parametrize("name", ["sd15-ddim", "sdxl", "dit", "inpaint-plain-u-net", "control"])
def test_without_tf32_float32_is_the_cpu_s_to_rounding(studio: Studio, device, name, record_property, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    made = studio.make(studio.recipe(name, device=device))[0]
    found = apart(made, studio.reference(name))
    check(found, "float32", record_property)
    assert found["latents"] < 1e-3


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", ["sd15-euler-a", "sdxl", "dit", "inpaint", "control", "segmentation"])
def test_a_batch_holds_the_pictures_of_its_seeds(studio: Studio, device, name, count, record_property):
    recipe = studio.recipe(name, device=device)
    seeds = list(range(7, 7 + count))
    together = studio.make(recipe, seeds)
    assert len({each.image.tobytes() for each in together}) == count
    last = studio.make(recipe.replace(seed=seeds[-1]))[0]
    check(apart(together[-1], last), "float32", record_property)
    check(apart(together[0], studio.reference(name)), "float32", record_property)


def test_the_same_recipe_gives_the_same_bytes(studio: Studio, device):
    for dtype in ("float32", "auto"):
        recipe = studio.recipe("sdxl", device=device, dtype=dtype)
        assert studio.make(recipe)[0].image.tobytes() == studio.make(recipe)[0].image.tobytes()


def test_auto_is_this_device(studio: Studio, device):
    execution = studio.recipe("sd15-ddim", device="auto", dtype="auto").execution
    assert execution.device == devices()[0]
    if DEVICE != "cpu":
        assert execution.device == device
        assert execution.dtype in ("bfloat16", "float16")


@pytest.mark.parametrize(("dtype", "count"), [("float32", 1), ("auto", 1), ("float32", 4)])
def test_kit_draws_the_cpu_s_picture(studio: Studio, device, dtype, count, record_property):
    asked = {**SHARED, **TEXT, "prompt": "a red fox in the snow", "model": "kit", "width": 256, "height": 256}
    asked |= {"scheduler": "dpm++-2m", "steps": 6}
    recipe = studio.resolved({**asked, "device": device, "dtype": dtype})
    reference = studio.resolved({**asked, "device": "cpu", "dtype": "float32"})
    made, kept = studio.make(recipe, list(range(7, 7 + count)))[0], _kit_on_cpu(studio, reference)
    found = apart(made, kept)
    for key, value in found.items():
        record_property(key, value)
    record_property("dtype", recipe.execution.dtype)
    assert found["psnr"] > {"float32": 40.0}.get(recipe.execution.dtype, 20.0)


def _kit_on_cpu(studio: Studio, recipe) -> pipeline.Result:
    kept = vars(studio).setdefault("kit", {})
    if recipe not in kept:
        kept[recipe] = studio.make(recipe)[0]
    return kept[recipe]
