"""Merged LoRAs give the latents of diffusers' `load_lora_weights`, and the weights of the lycoris-lora package."""

from pathlib import Path
from typing import Any

import lycoris.modules as lycoris
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdcli.diffusion import pipeline
from sdcli.models import lora_file
from sdcli.models.loading.lora import merge
from sdcli.models.loading.lora_change import changed, changed_vector
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked
from sdcli.recipe.recipe import Recipe
from tests import cases, pairs, tiny
from tests.lora import files

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny.make_folder(family, tmp_path_factory.mktemp(family)) for family in ("sd15", "sd21-v", "sdxl")}


def ours(folder: Path, *loras: tuple[Path, float]) -> Tensor:
    made = pairs.load(folder)
    addons = [Addon("lora", Asked(path.name, scale, scale), Source(path)) for path, scale in loras]
    model = merge(made.model, Source(folder), addons)
    return pipeline.sample(model, [Recipe.from_dict({"model": "tiny", **pairs.DEFAULTS})])


def theirs(folder: Path, *loras: tuple[Path, float]) -> Tensor:
    made = pairs.load(folder)
    plain = made.theirs()
    for index, (path, _) in enumerate(loras):
        made.pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=str(index))
    made.pipe.set_adapters([str(index) for index in range(len(loras))], [scale for _, scale in loras])
    latents = made.theirs()
    assert (latents - plain).abs().max() > 0.01
    return latents


@pytest.mark.parametrize(
    ("family", "layout"), cases.product(["sd15", "sd21-v", "sdxl"], ["kohya", "diffusers"], every=2)
)
def test_as_diffusers(folders, tmp_path, family, layout):
    model = pairs.load(folders[family]).model
    if layout == "kohya" and family == "sdxl":
        layout = "kohya_of_sgm"
    # diffusers finds no text encoder's layers under the names of transformers 5
    alpha = None if layout == "diffusers" else 2.0
    path = files.write(
        tmp_path / "a.safetensors",
        files.LAYOUTS[layout](files.changes(model, files.EVERYTHING, only=["unet"], alpha=alpha), model),
    )
    torch.testing.assert_close(
        ours(folders[family], (path, 0.7)), theirs(folders[family], (path, 0.7)), atol=TOLERANCE, rtol=0
    )


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_as_diffusers(folders, tmp_path):
    model = pairs.load(folders["sd15"]).model
    loras = []
    for seed, scale in ((1, 0.5), (2, -0.8)):
        made = files.changes(model, seed=seed, only=["unet"])
        loras.append((files.write(tmp_path / f"{seed}.safetensors", files.kohya(made, model)), scale))
    torch.testing.assert_close(ours(folders["sd15"], *loras), theirs(folders["sd15"], *loras), atol=TOLERANCE, rtol=0)


def with_magnitude(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    made = files.low_rank(weight, generator, alpha=None)
    norms = weight.flatten(1).norm(dim=1) * (1 + 0.3 * torch.randn(weight.shape[0], generator=generator))
    return {**made, "magnitude": norms if weight.ndim == 2 else norms.reshape(1, -1, 1, 1)}


def test_dora_as_diffusers(folders, tmp_path):
    model = pairs.load(folders["sd15"]).model
    made = files.changes(model, files.EVERYTHING, with_magnitude, only=["unet"])
    path = files.write(tmp_path / "dora.safetensors", files.diffusers(made, model))
    torch.testing.assert_close(
        ours(folders["sd15"], (path, 1)), theirs(folders["sd15"], (path, 1)), atol=TOLERANCE, rtol=0
    )


LINEAR, CONVOLUTION = nn.Linear(24, 36), nn.Conv2d(24, 36, 3)
BY_ROWS, BY_COLUMNS = ({"weight_decompose": True, "wd_on_out": by_rows} for by_rows in (True, False))
LYCORIS: dict[str, tuple[type, nn.Module, dict[str, Any]]] = {
    "locon": (lycoris.LoConModule, CONVOLUTION, {}),
    "locon in three factors": (lycoris.LoConModule, CONVOLUTION, {"use_tucker": True}),
    "loha": (lycoris.LohaModule, LINEAR, {}),
    "loha of a convolution": (lycoris.LohaModule, CONVOLUTION, {}),
    "loha of a convolution in Tucker form": (lycoris.LohaModule, CONVOLUTION, {"use_tucker": True}),
    "lokr": (lycoris.LokrModule, LINEAR, {"factor": 4}),
    "lokr of four factors": (lycoris.LokrModule, LINEAR, {"decompose_both": True, "lora_dim": 1, "factor": 6}),
    "lokr of whole matrices": (lycoris.LokrModule, LINEAR, {"full_matrix": True}),
    "lokr of a convolution": (lycoris.LokrModule, CONVOLUTION, {"factor": 4}),
    "lokr of a convolution in Tucker form": (lycoris.LokrModule, CONVOLUTION, {"use_tucker": True, "factor": 2}),
    "dora by rows": (lycoris.LoConModule, LINEAR, BY_ROWS),
    "dora by columns": (lycoris.LoConModule, LINEAR, BY_COLUMNS),
    "dora of a convolution": (lycoris.LoConModule, CONVOLUTION, BY_ROWS),
    "dora of a convolution by columns": (
        lycoris.LoConModule,
        CONVOLUTION,
        BY_COLUMNS,
    ),
    "loha with dora": (lycoris.LohaModule, LINEAR, BY_ROWS),
    "lokr with dora": (lycoris.LokrModule, LINEAR, BY_ROWS),
    "rank-stabilized": (lycoris.LoConModule, LINEAR, {"rs_lora": True}),
    "ia3 of rows": (lycoris.IA3Module, LINEAR, {"train_on_input": False}),
    "ia3 of columns": (lycoris.IA3Module, LINEAR, {"train_on_input": True}),
}


@pytest.mark.parametrize("name", LYCORIS)
def test_as_lycoris(name, tmp_path):
    module_class, layer, settings = LYCORIS[name]
    torch.manual_seed(5)
    made = module_class("layer", layer, 1.0, **{"lora_dim": 3, "alpha": 2, **settings}).eval()
    with torch.no_grad():
        for each in made.parameters():
            each.add_(torch.randn(each.shape) * 0.2)
    path = files.write(tmp_path / "a.safetensors", {f"layer.{key}": each for key, each in made.state_dict().items()})
    found, stored = lora_file.read(path), load_file(path)
    group = {role: stored[key] for role, key in found.groups["layer"].items()}
    weight = changed(
        layer.weight.detach(), group, scale=1, alpha=None, rank_stabilized=found.scaling_of("layer").rank_stabilized
    )
    x = torch.randn(2, 24, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 24)
    apply = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.linear
    bias = layer.bias.detach()
    if "diff_b" in group:
        bias = changed_vector(bias, group["diff_b"], scale=1)
    with torch.no_grad():
        assert not found.unknown
        assert (weight - layer.weight).abs().max() > 0.01
        torch.testing.assert_close(apply(x, weight, bias), made(x), atol=1e-5, rtol=1e-5)
