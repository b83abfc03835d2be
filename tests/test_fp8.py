"""Weights of eight bits: plain fp8, and fp8 and int8 with scales as ComfyUI's files have them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import loading
from sdcli.models.source import Source
from tests import original, split_files, tiny
from tests.test_split_files import folders as folders

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn


def load(folder, **parts):
    return loading.load(Source(folder, parts=tuple(parts.items())), name="", device=CPU, dtype=torch.float32)


def is_layer(key, value):
    return key.endswith(".weight") and value.ndim == 2 and "embed" not in key and "shared" not in key


def scaled(state, spelling, dtype=FP8, *, rows=False):
    """A state with scales beside its layers, and the values that it stands for."""
    found, expected = {}, {}
    for key, value in state.items():
        if not is_layer(key, value):
            found[key] = expected[key] = value
            continue
        most = 127 if dtype == torch.int8 else 448
        scale = (value.abs().amax(1, keepdim=True) if rows else value.abs().max()) / most
        quotient = value / scale
        found[key] = (quotient.round() if dtype == torch.int8 else quotient).to(dtype)
        found[key.removesuffix(".weight") + spelling] = scale
        expected[key] = found[key].float() * scale
    return found, expected


def test_plain_fp8_is_a_cast(folders, tmp_path):
    folder = folders("flux-dev")
    state = split_files.transformer("flux-dev", folder)
    small = {key: value.to(FP8) if is_layer(key, value) else value for key, value in state.items()}
    large = {key: value.float() for key, value in small.items()}
    one, other = (split_files.save(each, tmp_path / f"{n}.safetensors") for n, each in enumerate((small, large)))
    ours, theirs = (load(folder, transformer=each).network.state_dict() for each in (one, other))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("spelling", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize(("dtype", "rows"), [(FP8, False), (torch.int8, False), (torch.int8, True)])
def test_scales_are_multiplied(folders, tmp_path, spelling, dtype, rows):
    folder = folders("flux-schnell")
    found, expected = scaled(split_files.transformer("flux-schnell", folder), spelling, dtype, rows=rows)
    if spelling == ".scale_weight":
        found["scaled_fp8"] = torch.zeros(2).to(FP8)
        found["txt_in.scale_input"] = torch.ones(())
    else:
        mark = {"format": "int8_tensorwise" if dtype == torch.int8 else "float8_e4m3fn"}
        found["txt_in.comfy_quant"] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
        found["txt_in.input_scale"] = torch.ones(())
    one = split_files.save(found, tmp_path / "scaled.safetensors")
    other = split_files.save(expected, tmp_path / "plain.safetensors")
    ours, theirs = (load(folder, transformer=each).network.state_dict() for each in (one, other))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_scales_of_text_encoders(folders, tmp_path):
    folder = folders("flux-dev")
    found, expected = scaled(split_files.state_of(folder, "text_encoder_2"), ".scale_weight")
    found["scaled_fp8"] = torch.zeros(2).to(FP8)
    found["spiece_model"] = torch.zeros(9, dtype=torch.uint8)
    one = split_files.save(found, tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors")
    other = split_files.save(expected, tmp_path / "plain.safetensors")
    ours, theirs = (load(folder, text_encoder_2=each).text_encoders[1].model.state_dict() for each in (one, other))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_scales_of_a_unet_in_a_single_file(tmp_path):
    folder = tiny.make_folder("sd15", tmp_path / "model")
    parts = {part: split_files.state_of(folder, part) for part in ("unet", "vae", "text_encoder")}
    whole = original.to_original(parts, "sd1")
    unet = {key: value for key, value in whole.items() if key.startswith("model.diffusion_model.")}
    found, expected = scaled(unet, ".scale_weight")
    files = []
    for name, state in (("scaled", found), ("plain", expected)):
        files.append(tmp_path / f"{name}.safetensors")
        save_file({key: value.contiguous() for key, value in {**whole, **state}.items()}, files[-1])
    ours, theirs = (
        loading.load(Source(file, configs=folder), name="", device=CPU, dtype=torch.float32).network.state_dict()
        for file in files
    )
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def changed(state, how):
    layer = "double_blocks.0.img_mlp.0"
    match how:
        case "unknown scale":
            state[f"{layer}.weight_scale_2"] = torch.ones(())
        case "unknown mark":
            mark = json.dumps({"format": "nvfp4"}).encode()
            state[f"{layer}.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
        case "shape":
            state[f"{layer}.scale_weight"] = torch.ones(3)
        case "zero":
            state[f"{layer}.scale_weight"] = torch.zeros(())
        case "missing":
            state["scaled_fp8"] = torch.zeros(2).to(FP8)
            del state[f"{layer}.scale_weight"]
        case "packed":
            state[f"{layer}.weight"] = torch.zeros(4, 4, dtype=torch.uint8)
        case "without scale":
            state[f"{layer}.weight"] = state[f"{layer}.weight"].view(torch.int8)
            del state[f"{layer}.scale_weight"]
    return state


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("unknown scale", ModelError, "weight_scale_2 is a scale or mark of an unknown kind"),
        ("unknown mark", ModelError, "comfy_quant is .*nvfp4"),
        ("shape", ModelError, "scale_weight has the shape"),
        ("zero", ModelCorrupt, "img_mlp.0.scale_weight is not a positive number"),
        ("missing", ModelCorrupt, "img_mlp.0.weight has no scale"),
        ("packed", ModelError, "for a weight of U8"),
        ("without scale", ModelError, "img_mlp.0.weight has the dtype I8"),
    ],
)
def test_unknown_scales_are_refused_by_name(folders, tmp_path, how, error, words):
    folder = folders("flux-dev")
    found, _ = scaled(split_files.transformer("flux-dev", folder), ".scale_weight")
    file = split_files.save(changed(found, how), tmp_path / "odd.safetensors")
    with pytest.raises(error, match=words) as caught:
        load(folder, transformer=file)
    assert caught.value.exit_status == 3
