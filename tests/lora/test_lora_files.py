"""LoRA files of every layout change the same weights. A tensor that does not fit is an error, or a warning if asked."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import loading, lora_file
from sdcli.models.loading.lora import merge
from sdcli.models.loading.lora_change import changed
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked
from tests import original, tiny
from tests.lora import files


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny.make_folder(family, tmp_path_factory.mktemp(family)) for family in ("sd15", "sdxl")}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LatentDiffusionModel:
    return loading.load(Source(folder), name="tiny", device=torch.device("cpu"), dtype=dtype)


def addon(path: Path, scale: float = 1.0, text_scale: float | None = None, *, partial: bool = False) -> Addon:
    asked = Asked(path.name, scale, scale if text_scale is None else text_scale, partial)
    return Addon("lora", asked, Source(path))


def state(model: LatentDiffusionModel) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in files.parts(model).items()
        for name, tensor in module.state_dict().items()
    }


def assert_equal(found: LatentDiffusionModel, wanted: dict[str, Tensor]) -> None:
    for name, tensor in state(found).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("layout", files.LAYOUTS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_each_layout(folders, tmp_path, family, layout):
    model = load(folders[family])
    made = files.changes(model, alpha=None)
    wanted = {name: tensor.clone() for name, tensor in state(model).items()}
    for (part, name), tensors in made.items():
        scale = 0.5 if part == "unet" else 0.25
        wanted[f"{part}.{name}.weight"] += scale * tensors["up"] @ tensors["down"]
    path = files.write(tmp_path / "a.safetensors", files.LAYOUTS[layout](made, model))
    assert_equal(merge(model, Source(folders[family]), [addon(path, 0.5, 0.25)]), wanted)


def test_a_model_does_not_remember(folders, tmp_path):
    source = Source(folders["sd15"])
    model = load(folders["sd15"], torch.bfloat16)
    original = {name: tensor.clone() for name, tensor in state(model).items()}
    paths = []
    for seed, layers in ((1, files.ATTENTION), (2, files.EVERYTHING)):
        made = files.changes(model, layers, seed=seed)
        paths.append(files.write(tmp_path / f"{seed}.safetensors", files.kohya(made, model)))
    both = [addon(path, 0.7) for path in paths]
    model = merge(model, source, both)
    changed = {name for name, tensor in state(model).items() if (tensor != original[name]).any()}
    assert len(changed) > 20
    model = merge(model, source, both[1:])
    again = merge(load(folders["sd15"], torch.bfloat16), source, both[1:])
    for name, tensor in state(again).items():
        assert torch.equal(tensor, state(model)[name])
    model = merge(model, source, [])
    for name, tensor in state(model).items():
        assert torch.equal(tensor, original[name])
    assert {tensor.dtype for tensor in state(model).values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_a_single_file_in_the_original_layout_takes_both_namings(folders, tmp_path):
    file = original.write_single_file(folders["sdxl"], tmp_path / "xl.safetensors", "sdxl")
    source = Source(file, configs=folders["sdxl"])
    model = loading.load(source, name="tiny", device=torch.device("cpu"), dtype=torch.float32)
    made = files.changes(model)
    states = []
    for layout in (files.kohya, files.kohya_of_sgm):
        path = files.write(tmp_path / f"{layout.__name__}.safetensors", layout(made, model))
        model = merge(model, source, [addon(path)])
        states.append({name: tensor.clone() for name, tensor in state(model).items()})
    assert_equal(model, states[0])


def test_whole_differences_of_weights_biases_and_norms(folders, tmp_path):
    model = load(folders["sd15"])
    wanted = {name: tensor.clone() for name, tensor in state(model).items()}
    found = {}
    for name, role in (("conv_in.weight", "diff"), ("conv_in.bias", "diff_b"), ("conv_norm_out.weight", "w_norm")):
        layer = name.rpartition(".")[0].replace(".", "_")
        difference = torch.randn(wanted[f"unet.{name}"].shape)
        found[f"lora_unet_{layer}.{role}"] = difference
        wanted[f"unet.{name}"] += 0.5 * difference
    path = files.write(tmp_path / "a.safetensors", found)
    assert_equal(merge(model, Source(folders["sd15"]), [addon(path, 0.5)]), wanted)


def test_alphas_of_peft(tmp_path):
    weight, down, up = torch.zeros(4, 5), torch.randn(2, 5), torch.randn(4, 2)
    config = '{"r": 2, "lora_alpha": 8, "use_rslora": true, "alpha_pattern": {"to_q": 6}}'
    tensors = {
        f"unet.{layer}.lora_{side}.weight": each
        for layer in ("a.to_q", "b.to_k")
        for side, each in (("A", down), ("B", up))
    }
    path = files.write(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=config)
    found = lora_file.read(path)
    for layer, alpha in (("unet.a.to_q", 6), ("unet.b.to_k", 8)):
        merged = changed(
            weight,
            {"down": down, "up": up},
            scale=1,
            alpha=found.scaling_of(layer).alpha_of(layer),
            rank_stabilized=found.scaling_of(layer).rank_stabilized,
        )
        torch.testing.assert_close(merged, up @ down * alpha / 2**0.5)


def test_alphas_of_diffusers_by_parts(tmp_path):
    config = '{"unet.lora_alpha": 8, "unet.use_rslora": true, "text_encoder.lora_alpha": 2}'
    names = [f"{layer}.lora_{side}.weight" for layer in ("unet.to_q", "text_encoder.q", "other") for side in "AB"]
    tensors = {name: torch.ones(2, 2) for name in names}
    found = lora_file.read(files.write(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=config))
    scalings = [found.scaling_of(layer) for layer in found.groups]
    assert [(each.alpha, each.rank_stabilized) for each in scalings] == [(None, False), (2, False), (8, True)]


TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
BAD = {
    "a layer of no model": ("lora_unet_nowhere.lora_down.weight", torch.ones(2, 8), r"nowhere"),
    "a kind that is not supported": ("lora_unet_conv_in.oft_blocks", torch.ones(2, 2, 2), r"oft_blocks"),
    "another shape": (f"{TO_Q}.lora_up.weight", torch.ones(9, 3), r"to_q"),
    "half a change": ("lora_unet_conv_in.lora_up.weight", torch.ones(8, 3, 1, 1), r"conv_in"),
    "a tensor of no kind": ("something.else", torch.ones(2), r"something"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit(folders, tmp_path, name):
    key, tensor, message = BAD[name]
    model = load(folders["sd15"])
    tensors = {**files.kohya(files.changes(model), model), key: tensor}
    path = files.write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ModelError, match=message):
        merge(model, Source(folders["sd15"]), [addon(path)])
    model = merge(load(folders["sd15"]), Source(folders["sd15"]), [addon(path, partial=True)])
    (note,) = model.notes
    assert re.search(message, note)
    assert "place for 1 of" in note


def test_numbers_that_are_not_finite(folders, tmp_path):
    model = load(folders["sd15"])
    tensors = files.kohya(files.changes(model), model)
    next(iter(tensors.values()))[0, 0] = torch.nan
    path = files.write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ModelCorrupt, match="not finite"):
        merge(model, Source(folders["sd15"]), [addon(path)])


def test_no_effect(folders, tmp_path):
    model = load(folders["sd15"])
    made = {key: {**each, "up": torch.zeros_like(each["up"])} for key, each in files.changes(model).items()}
    path = files.write(tmp_path / "a.safetensors", files.kohya(made, model))
    with pytest.raises(ModelError, match="no effect"):
        merge(model, Source(folders["sd15"]), [addon(path)])
