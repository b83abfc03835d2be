"""Quantising on loading, and writing quantised folders."""

import json

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from sdcli.making.maker import LocalMaker, Task
from sdcli.models import loading, located
from sdcli.models.loading import quantised
from sdcli.models.source import Source
from sdcli.planning import resolve
from sdcli.recipe.parts import QUANTIZATIONS
from tests import tiny
from tests.test_generate import FAST, two_lines
from tests.test_split_files import folders as folders

CPU = torch.device("cpu")
SIZE = ("-W", 64, "-H", 64, "--seed", 1, *FAST)


def load(folder, quantize="none"):
    return loading.load(Source(folder), name="", device=CPU, dtype=torch.float32, quantize=quantize)


def layers(module):
    return {name: each for name, each in module.named_modules() if isinstance(each, quantised.QuantisedLinear)}


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_layers_have_gguf_s_values(folders, name):
    plain, model = load(folders("z-image")), load(folders("z-image"), name)
    found = layers(model.network)
    assert {"layers.0.feed_forward.w2", "noise_refiner.0.feed_forward.w2"} <= set(found)
    assert not [path for path in found if not path.startswith(("layers.", "noise_refiner.", "context_refiner."))]
    for path, layer in found.items():
        weight = plain.network.get_submodule(path).weight.numpy()
        kind = Kind[name.upper()]
        expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        ours = quantised.dequantise(layer.weight, layer.dtype_name, torch.float32)
        torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert layers(model.text_encoders[0].model)
    assert not layers(model.vae)


def test_clip_and_the_ends_of_a_network_stay(folders):
    model = load(folders("flux-dev"), "q8_0")
    clip, t5 = model.text_encoders
    assert not layers(clip.model)
    assert layers(t5.model)
    assert not [name for name in layers(model.network) if "blocks." not in name]


def test_a_picture_records_it(folders, run, tmp_path):
    folder = folders("z-image")
    for name, options in (("q8", ("--quantize", "int8")), ("whole", ())):
        assert run("generate", "fox", "-m", folder, *options, "-o", f"{name}.png", *SIZE).status == 0
    q8, whole = (json.loads(run("info", f"{name}.png", "--json").stdout) for name in ("q8", "whole"))
    assert q8["recipe"]["quantize"] == "q8_0"
    assert "quantize" not in whole["recipe"]
    assert q8["pixels_sha256"] != whole["pixels_sha256"]
    assert run("replay", "--verify", "q8.png").stdout == b"q8.png\n"


@pytest.mark.parametrize("family", ["z-image", "flux-dev", "qwen-image", "sd3-without-t5"])
def test_a_written_folder_is_the_quantised_model(folders, run, tmp_path, family):
    folder = folders(family)
    done = run("models", "quantize", folder, "out", "--quantize", "q4_1", "-q")
    assert (done.status, done.stdout, done.stderr) == (0, b"out\n", "")
    ours, theirs = load(tmp_path / "out"), load(folder, "q4_1")
    modules = [(ours.network, theirs.network), (ours.vae, theirs.vae)]
    modules += [(a.model, b.model) for a, b in zip(ours.text_encoders, theirs.text_encoders, strict=True)]
    for one, other in modules:
        mine, expected = one.state_dict(), other.state_dict()
        assert [name for name in expected if not torch.equal(mine[name], expected[name])] == []
    assert run("generate", "fox", "-m", "out", "-o", "a.png", *SIZE).status == 0


def test_stable_diffusion(tmp_path, run):
    """Its layers in blocks are quantised, convolutions are not."""
    folder = tiny.make_folder("sdxl", tmp_path / "sdxl")
    assert layers(load(folder, "q8_0").network)
    assert run("models", "quantize", folder, "out", "-q").status == 0
    ours, theirs = load(tmp_path / "out").network.state_dict(), load(folder, "q8_0").network.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("family", ["z-image", "flux-dev"])
def test_a_dry_run_knows_the_memory(folders, run, tmp_path, family):
    """The bytes of the weights, within those of tables of positions, which are computed."""
    folder = folders(family)
    assert run("models", "quantize", folder, "out", "--quantize", "q4_0", "-q").status == 0
    for model, options in ((folder, ("--quantize", "q4_0")), (tmp_path / "out", ())):
        planned = run("generate", "fox", "-m", model, *options, "--dry-run", "--json", *SIZE)
        weights = json.loads(planned.stdout)["memory"]["weights"]
        loaded = load(folder, "q4_0")
        modules = (loaded.network, loaded.vae, *(each.model for each in loaded.text_encoders))
        places = {each.data_ptr(): each.nbytes for module in modules for each in module.parameters()}
        assert weights == sum(places.values())


def test_a_maker_keeps_quantised_models_apart(folders):
    folder = folders("z-image")
    maker, pixels = LocalMaker(keep=2), []
    for quantize in ("none", "q8_0", "none"):
        flat = {"model": str(folder), "prompt": "fox", "steps": 1, "seed": 1, "width": 64, "height": 64}
        resolved = resolve.resolve(located.find(str(folder)), {**flat, "quantize": quantize})
        (picture,) = maker.make(Task(resolved.weights, [resolved.recipe]))
        pixels.append(picture.pixels_sha256)
    assert pixels[0] == pixels[2] != pixels[1]


def test_what_cannot_be(run, sd15):
    done = run("generate", "fox", "-m", sd15, "--quantize", "q3")
    assert (done.status, "q8_0" in two_lines(done)[1]) == (2, True)
    done = run("models", "quantize", sd15, "out", "--quantize", "q3")
    assert (done.status, "q8_0" in two_lines(done)[1]) == (2, True)
