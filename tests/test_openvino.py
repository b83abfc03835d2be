"""--engine openvino: the same pictures as by torch within tolerances, converted once, and what it refuses."""

import ctypes
import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdcli import cli
from sdcli.diffusion import autoencode, converted, halves, openvino_engine, pipeline
from sdcli.diffusion.device import resolve_execution
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.models import assemble, located
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe import parts
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny, tiny_flow

SLOW = pytest.mark.slow
ASKED = {**pairs.DEFAULTS, "model": "x", "steps": 3, "negative_prompt": "blue", "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """One cache for the module: what is converted is used by the tests after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def made(folder, **options) -> tuple[LatentDiffusionModel, Tensor, Tensor]:
    """A loaded model, and the latents and pixels of a picture."""
    recipe = Recipe.from_dict({**ASKED, **options})
    model = assemble.load(Weights(Source(folder)), recipe)
    latents = pipeline.sample(model, [recipe])
    with torch.inference_mode():
        return model, latents, autoencode.decode(model, latents)


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_float32_is_that_of_torch(family, sd15, tmp_path):
    folder = sd15 if family == "sd15" else tiny.make_folder(family, tmp_path / family)
    (_, *theirs), (model, *ours) = made(folder), made(folder, engine="openvino")
    assert all(each.is_meta for part in (model.network, model.vae.decoder) for each in part.parameters())
    assert (ours[0] - theirs[0]).abs().max() < 1e-3
    assert (ours[1] - theirs[1]).abs().max() < 1e-3


@pytest.mark.slow
def test_bfloat16_is_as_near_to_float32_as_that_of_torch(sd15):
    exact, torchs, ours = (made(sd15, **each)[1] for each in ({}, {"dtype": "bfloat16"}, BFLOAT16))
    assert (ours - exact).norm() < 2 * (torchs - exact).norm()


BFLOAT16 = {"dtype": "bfloat16", "engine": "openvino"}


def test_it_is_converted_once_and_used_for_other_sizes(sd15, monkeypatch):
    made(sd15, engine="openvino", steps=1)

    def convert(*arguments):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino_engine, "_convert", convert)
    other = {"width": 72, "height": 88, "guidance_scale": 1.0, "steps": 1}
    assert (made(sd15, engine="openvino", **other)[2] - made(sd15, **other)[2]).abs().max() < 1e-3


def test_layers_before_the_context_are_computed_for_one_half():
    network = UNet2DConditionModel(
        block_out_channels=(32, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=8,
    ).eval()  # fmt: skip
    sample, timestep, context = torch.randn(1, 4, 6, 6).repeat(2, 1, 1, 1), torch.tensor(500.0), torch.randn(2, 3, 8)
    with torch.inference_mode():
        both = network(sample, timestep, context, return_dict=False)[0]
        network.forward = openvino_engine._Forward(network, "network", "small", "cpu", shares=True)
        sample[1] += 1  # is not read
        with halves.computed_once(network):
            once = network(sample, timestep, context, return_dict=False)[0]
    assert (once - both).abs().max() < 1e-4


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2): where signal handlers run."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map of Linux")
def test_signals_are_handled_after_several_models():
    """OpenVINO installs a stack for signal handlers; if it were freed with a model, the next signal would crash."""
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for each in (first, second):
        each.forward = openvino_engine._Forward(each, "linear", str(id(each)), "cpu")
        with torch.inference_mode():
            each(torch.ones(1, 1))
    del first
    gc.collect()
    del second
    gc.collect()
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    if stack.start:
        regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        writable = [tuple(int(end, 16) for end in where.split("-")) for where, rights, *_ in regions if "w" in rights]
        assert any(low <= stack.start and stack.start + stack.size <= high for low, high in writable)


TRANSFORMERS = (
    *("sd3", "sd3-without-t5", "flux-dev", "flux-schnell", "flux2-klein", "flux2-base", "pixart-alpha", "pixart-sigma"),
    *("chroma", "krea2", "sana"),
)


@pytest.mark.parametrize("family", [TRANSFORMERS[0], *(pytest.param(each, marks=SLOW) for each in TRANSFORMERS[1:])])
def test_a_transformer_is_converted_for_all_sizes(family, tmp_path):
    folder = tiny_flow.make_folder(family, tmp_path / family)
    for size in ({}, {"width": 96, "height": 160}):
        theirs, ours = (sampled(folder, engine=engine, **size) for engine in ("torch", "openvino"))
        assert (theirs - ours).abs().max() < 1e-4 * theirs.std()


@pytest.mark.slow
def test_a_dit_is_that_of_torch(tmp_path):
    folder = tiny.make_dit(tmp_path / "dit")
    theirs, ours = (sampled(folder, label="0", prompt="", engine=engine) for engine in ("torch", "openvino"))
    assert (theirs - ours).abs().max() < 1e-4 * theirs.std()


def sampled(folder, **options) -> Tensor:
    """The latents of two steps, with the settings of the model."""
    asked = {"model": str(folder), "prompt": "a fox", "seed": 1, "width": 64, "height": 64, "steps": 2, "threads": 1}
    found = resolve.resolve(located.find(str(folder)), {**asked, "device": "cpu", "dtype": "float32", **options})
    return pipeline.sample(assemble.load(found.weights, found.recipe), [found.recipe])


@pytest.mark.slow
def test_other_weights_are_converted_too(sd15, tmp_path):
    other = tiny.make_folder("sd15", tmp_path / "other")
    state = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0.9 * each for name, each in load_file(state).items()}, state)
    assert (made(other, engine="openvino")[1] - made(other)[1]).abs().max() < 1e-3
    assert (made(other)[1] - made(sd15)[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("key", "value"),
    [("compile", True), ("cache", "deepcache"), ("token_merging", 0.5), ("control", ["x=y.png"]), ("quantize", "q8_0"),
     ("device", "cuda"), ("dtype", "float16"), ("skip_layer_guidance", "7,8,9")],
)  # fmt: skip
def test_what_only_torch_runs_is_refused(key, value):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict({**ASKED, key: value, "engine": "openvino"})
    assert caught.value.field == key


@pytest.mark.parametrize("family", ["lumina2", *(pytest.param(each, marks=SLOW) for each in ("qwen-image", "z-image"))])
def test_a_transformer_that_cannot_be_converted_is_refused(family, tmp_path):
    folder = tiny_flow.make_folder(family, tmp_path / family)
    with pytest.raises(InvalidRecipe, match="the transformer of"):
        assemble.load(Weights(Source(folder)), Recipe.from_dict({**ASKED, "engine": "openvino"}))


def test_a_missing_package_is_named(sd15, monkeypatch):
    monkeypatch.setattr(openvino_engine, "find_spec", lambda name: None)
    with pytest.raises(InvalidRecipe) as caught:
        assemble.load(Weights(Source(sd15)), Recipe.from_dict({**ASKED, "engine": "openvino"}))
    assert "pip install 'sdcli[openvino]'" in caught.value.hint


def test_the_recipe_names_the_engine(sd15, tmp_path, capfd):
    assert "engine" not in Recipe.from_dict(ASKED).to_dict()
    place = str(tmp_path / "fox.png")
    words = ["generate", "a fox", "-m", str(sd15), "-W", "64", "-H", "64", "--steps", "1", "--dtype", "float32"]
    assert cli.run([*words, "--engine", "openvino", "-o", place]) == 0
    capfd.readouterr()
    assert cli.run(["info", "--json", place]) == 0
    assert json.loads(capfd.readouterr().out)["recipe"]["engine"] == "openvino"


def test_a_note_says_that_the_model_is_converted_first(sd15, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["generate", "a fox", "-m", str(sd15), "--dtype", "float32", "--engine", "openvino", "--dry-run"]
    assert cli.run(words) == 0
    assert "converts it for OpenVINO" in capfd.readouterr().err
    converted.place("network", Weights(Source(sd15)).identity, "float32", "a call").mkdir(parents=True)
    assert cli.run(words) == 0
    assert "OpenVINO" not in capfd.readouterr().err
    assert cli.run([*words, "--dtype", "bfloat16"]) == 0
    assert "converts it for OpenVINO" in capfd.readouterr().err


@pytest.mark.slow
def test_a_refiner_runs_by_openvino_too(tmp_path):
    base, refiner = tiny.make_folder("sdxl", tmp_path / "base"), tiny.make_refiner(tmp_path / "refiner")
    asked = {**ASKED, "model": str(base), "refiner": str(refiner), "width": 64, "height": 64, "threads": 1, "steps": 4}
    made = []
    for engine in ("torch", "openvino"):
        found = resolve.resolve(located.find(str(base)), {**asked, "engine": engine})
        model = assemble.load(found.weights, found.recipe)
        made.append(pipeline.sample(model, [found.recipe]))
    assert all(each.is_meta for each in model.refiner.network.parameters())
    assert (made[0] - made[1]).abs().max() < 1e-3


@pytest.mark.parametrize("device", ["xpu", "npu"])
def test_a_device_that_openvino_does_not_find_is_refused(device):
    if parts.OF_OPENVINO[device] in {each.partition(".")[0] for each in openvino_engine._core().available_devices}:
        pytest.skip("it is here")
    recipe = Recipe.from_dict({**ASKED, "device": device, "engine": "openvino", "dtype": "auto"})
    with pytest.raises(InvalidRecipe, match=f"OpenVINO finds no {device}"):
        resolve_execution(recipe)


@pytest.mark.parametrize("device", ["xpu", "npu"])
def test_only_openvino_uses_its_devices(device):
    with pytest.raises(InvalidRecipe, match="needs engine openvino"):
        Recipe.from_dict({**ASKED, "device": device})


def test_an_npu_has_no_float32():
    with pytest.raises(InvalidRecipe, match="does not compute in float32"):
        Recipe.from_dict({**ASKED, "device": "npu", "engine": "openvino", "dtype": "float32"})


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.bfloat16, ("CPU", "bf16", True)),
        ("xpu", torch.bfloat16, ("GPU", "f16", False)),
        ("xpu", torch.float32, ("GPU", "f32", False)),
        ("npu", torch.bfloat16, ("NPU", "f16", False)),
    ],
)
def test_each_device_is_asked_by_its_name_and_for_a_precision_that_it_has(monkeypatch, device, dtype, expected):
    """Without these devices: what the core is asked to compile."""
    asked = []

    class Core:
        def compile_model(self, model, name, options):
            asked.append((name, options["INFERENCE_PRECISION_HINT"], "INFERENCE_NUM_THREADS" in options))

    class Model:
        def reshape(self, shapes):
            assert shapes == {0: [1, 4, 8, 8]}

        def get_ordered_ops(self):
            return []

    monkeypatch.setattr(openvino_engine, "_core", Core)
    openvino_engine._compiled(Model(), [torch.zeros(1, 4, 8, 8)], dtype, device)
    assert asked == [expected]
