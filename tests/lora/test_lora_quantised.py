"""LoRAs on quantised weights, which are added in each call and give what merging into float weights gives."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import loading
from sdcli.models.loading.lora import merge
from sdcli.models.loading.quantised import QuantisedLinear
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked
from tests import tiny_flow
from tests.test_generate import FAST

LAYERS = ("layers.0.feed_forward.w2", "noise_refiner.0.feed_forward.w2")
FLOATS = ("layers.0.attention.to_q", "cap_embedder.1")
"""Layers that are not quantised."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flow.make_folder("z-image", tmp_path_factory.mktemp("z-image"))


def load(folder: Path, quantize: str = "none") -> LatentDiffusionModel:
    return loading.load(Source(folder), name="", device=torch.device("cpu"), dtype=torch.float32, quantize=quantize)


def tensors_of(model: LatentDiffusionModel, seed: int, kind: str) -> dict[str, Tensor]:
    generator, found = Generator().manual_seed(seed), {}
    for name in (*LAYERS, *FLOATS):
        out, width = model.network.get_submodule(name).weight.shape
        down, up = torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator)
        roles = {"lora_down.weight": 0.3 * down, "lora_up.weight": 0.3 * up, "alpha": torch.tensor(1.0)}
        if kind == "dora":
            roles["dora_scale"] = 1 + torch.rand(out, 1, generator=generator)
        elif kind == "loha":
            roles = {f"hada_w{each}_a": 0.3 * up for each in (1, 2)} | {
                f"hada_w{each}_b": 0.3 * down for each in (1, 2)
            }
        found |= {f"transformer.{name}.{role}": each.contiguous() for role, each in roles.items()}
    return found


def addon(path: Path, tensors: dict[str, Tensor], scale: float) -> Addon:
    save_file({key: each.clone() for key, each in tensors.items()}, path)
    return Addon("lora", Asked(path.name, scale, scale), Source(path))


@pytest.mark.parametrize("kinds", [("lora",), ("lora", "lora"), ("dora",), ("lora", "loha")])
def test_outputs_are_those_of_changed_weights(folder, tmp_path, kinds):
    plain, model = load(folder), load(folder, "q8_0")
    addons = [
        addon(tmp_path / f"{seed}.safetensors", tensors_of(plain, seed, kind), 0.7) for seed, kind in enumerate(kinds)
    ]
    layers = {name: model.network.get_submodule(name) for name in LAYERS}
    assert all(isinstance(each, QuantisedLinear) for each in layers.values())
    samples = {name: torch.randn(3, each.in_features) for name, each in layers.items()}
    before = {name: each(samples[name]) for name, each in layers.items()}
    merged, made = merge(plain, Source(folder), addons), merge(model, Source(folder), addons)
    for name, layer in layers.items():
        stored = load(folder).network.get_submodule(name).weight
        expected = (
            samples[name] @ (merged.network.get_submodule(name).weight + layer.dequantised(torch.float32) - stored).T
        )
        expected = expected + (0 if layer.bias is None else layer.bias)
        # the norms of DoRA are those of other weights
        torch.testing.assert_close(layer(samples[name]), expected, atol=0.02 if "dora" in kinds else 1e-4, rtol=1e-3)
        assert not torch.allclose(layer(samples[name]), before[name], atol=0.1)
    for name in FLOATS:
        assert torch.equal(made.network.get_submodule(name).weight, merged.network.get_submodule(name).weight)
    taken_out = merge(made, Source(folder), [])
    assert all(torch.equal(layer(samples[name]), before[name]) for name, layer in layers.items())
    ends = {name: load(folder).network.get_submodule(name).weight for name in FLOATS}
    assert all(torch.equal(taken_out.network.get_submodule(name).weight, each) for name, each in ends.items())


def test_a_picture_of_a_quantised_folder(folder, tmp_path, run):
    addon(tmp_path / "a.safetensors", tensors_of(load(folder), 1, "lora"), 1)
    assert run("models", "quantize", folder, "out", "--quantize", "q8_0", "-q").status == 0
    size = ("-W", 64, "-H", 64, "--seed", 1, *FAST)
    digests = []
    for index, words in enumerate(
        (("-m", folder, "--quantize", "q8_0"), ("-m", "out"), ("-m", "out", "--lora", "a.safetensors"))
    ):
        lora = () if index == 2 else ("--lora", "a.safetensors:0.5")
        done = run("generate", "fox", *words, *lora, "-o", f"{index}.png", *size, "--json")
        assert done.status == 0, done.stderr
        digests.append(json.loads(done.lines[0])["pixels_sha256"])
    assert digests[0] == digests[1] != digests[2]
