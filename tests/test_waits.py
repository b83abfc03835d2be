"""The loop never waits for a device: shown without one, by tensors that have no data.

The model lies on torch's meta device, which refuses to give up a value, and every copy between it and the CPU while the
loop runs is noted: on a GPU each of them would have the host wait until all that was launched before has been done.
"""

import copy
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdcli.diffusion import pipeline
from sdcli.diffusion.context import Context
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files.inputs import Inputs
from sdcli.recipe.recipe import Recipe
from tests import cases, tiny
from tests.device.making import Studio

PLAIN = ("ddim", "pndm", "lms", "euler", "heun", "dpm2", "dpm++-2m", "dpm++-2s", "deis", "tcd")
DRAWING = ("ddpm", "euler-a", "dpm2-a", "dpm++-2m-sde", "dpm++-3m-sde", "dpm++-sde", "lcm")
# UniPC of diffusers computes its coefficients on the device, of numbers that it brings there in every step.
CONTEXTS = ("sdxl", "sd21-v", "dit", "ldm", "img2img", "img2img-sdxl", "inpaint", "inpaint-plain-u-net")
CONTEXTS += ("inpaint-plain-euler", "segmentation", "control", "control-sdxl")


class Copies(TorchDispatchMode):
    """Notes each operation that brings tensors from one device to another, by the line that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        taken = {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        given = {each.device.type for each in tree_leaves(made) if isinstance(each, torch.Tensor)}
        if func.name().partition(".")[0] in ("aten::to", "aten::_to_copy", "aten::copy_") and len(taken | given) > 1:
            place = [each for each in traceback.extract_stack() if "/torch/" not in each.filename][-2]
            self.found[f"{Path(place.filename).stem}.{place.name}"] += 1
        return made


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


def copies(studio: Studio, monkeypatch: pytest.MonkeyPatch, name: str, **options) -> Counter:
    """The copies between the host and the device from the first call of the U-Net to the last one."""
    recipe = studio.recipe(name, device="cpu", **{"steps": 3, **options})
    on_cpu, loop, seen = studio.model(recipe), pipeline.denoise, Copies()
    meta = torch.device("meta")
    parts = {part: copy.deepcopy(getattr(on_cpu, part)).to(meta) for part in ("network", "vae")}
    nets = {key: replace(each, net=copy.deepcopy(each.net).to(meta)) for key, each in on_cpu.controlnets.items()}
    model = replace(on_cpu, **parts, controlnets=nets, device=meta)

    def encode(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs) -> Context:
        encoded = vars(encode_condition(on_cpu, recipe, inputs))
        return Context(**{key: each.to(meta) for key, each in encoded.items() if isinstance(each, torch.Tensor)})

    def listen(*args, **kwargs) -> torch.Tensor:
        with ExitStack() as stack:

            def begin(*_) -> None:
                hook.remove()
                stack.enter_context(seen)

            hook = model.network.register_forward_pre_hook(begin)
            return loop(*args, **kwargs)

    encode_condition = pipeline.encode_condition
    monkeypatch.setattr(pipeline, "encode_condition", encode)
    monkeypatch.setattr(pipeline, "denoise", listen)
    assert pipeline.sample(model, [recipe], inputs=tiny.inputs_of(on_cpu, recipe)).device == meta
    return seen.found


@pytest.mark.parametrize("scheduler", cases.product(PLAIN, every=5))
def test_the_host_runs_ahead_of_the_device(studio: Studio, monkeypatch, scheduler):
    assert not copies(studio, monkeypatch, "sd15-ddim", scheduler=scheduler)


@pytest.mark.parametrize("scheduler", cases.product(DRAWING, every=5))
def test_noise_drawn_on_the_host_is_all_that_is_brought_to_the_device(studio: Studio, monkeypatch, scheduler):
    assert copies(studio, monkeypatch, "sd15-ddim", scheduler=scheduler).keys() <= {
        "torch_utils.randn_tensor",
        "samplers.noise",
    }


@pytest.mark.parametrize("name", cases.product(CONTEXTS, every=2))
def test_no_context_asks_for_what_the_device_knows(studio: Studio, monkeypatch, name):
    assert not copies(studio, monkeypatch, name, steps=2)
