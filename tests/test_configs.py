"""Configs whose values cannot be used are refused where they are read: exit 3, before anything is built."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.errors import ExitStatus, ModelCorrupt, ModelError
from sdcli.models import configs, families, loading, located
from sdcli.models.source import Source
from tests import original, tiny

CPU = torch.device("cpu")
FAST = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1", "-q")


@pytest.mark.parametrize("family", families.NAMES)
def test_the_configs_of_every_family_are_sound(family):
    folder = families.config_folder(family)
    for file in folder.glob("*/config.json"):
        assert configs.read(file)
    assert configs.read_scheduler(folder / "scheduler" / "scheduler_config.json")


def changed(folder, file, **values):
    content = json.loads((folder / file).read_text())
    tiny.write_json(folder / file, {key: each for key, each in (content | values).items() if each != "absent"})
    return folder


WRONG = [
    ("unet/config.json", "block_out_channels", ["a", "b"]),
    ("unet/config.json", "block_out_channels", [16] * 20_000),
    ("unet/config.json", "sample_size", [8, 8]),
    ("unet/config.json", "in_channels", True),
    ("unet/config.json", "norm_eps", "1e-5"),
    ("unet/config.json", "down_block_types", "CrossAttnDownBlock2D"),
    ("unet/config.json", "_class_name", ["UNet2DConditionModel"]),
    ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "scaling_factor", math.nan),
    ("vae/config.json", "latents_mean", [0.0, 1.0, 2.0, 3.0]),
    ("vae/config.json", "latent_channels", 10**400),
    ("vae/config.json", "block_out_channels", "absent"),
    ("text_encoder/config.json", "num_hidden_layers", 100_000),
    ("text_encoder/config.json", "max_position_embeddings", 2),
    ("text_encoder/config.json", "hidden_size", None),
    ("scheduler/scheduler_config.json", "timestep_spacing", "x"),
    ("scheduler/scheduler_config.json", "timestep_spacing", 3),
    ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "1000"),
    ("scheduler/scheduler_config.json", "beta_end", 2.0),
    ("scheduler/scheduler_config.json", "beta_schedule", "laplace"),
    ("scheduler/scheduler_config.json", "solver_type", "text"),
    ("scheduler/scheduler_config.json", "algorithm_type", "dpm"),
    ("scheduler/scheduler_config.json", "use_karras_sigmas", None),
    ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2]),
    ("scheduler/scheduler_config.json", "_class_name", "EDMEulerScheduler"),
    ("scheduler/scheduler_config.json", "timestep_type", "continuous"),
    ("scheduler/scheduler_config.json", "use_flow_sigmas", True),
    ("scheduler/scheduler_config.json", "sigma_data", 0.5),
    ("model_index.json", "scheduler", ["diffusers", "FlowMatchEulerDiscreteScheduler"]),
    ("model_index.json", "scheduler", ["diffusers", ["x"]]),
    ("model_index.json", "text_encoder", ["transformers", 3]),
    ("model_index.json", "vae", ["diffusers"]),
]


@pytest.mark.parametrize(("file", "key", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_values_that_cannot_be_used(tmp_path, file, key, value):
    folder = changed(tiny.make_folder("sd15", tmp_path / "model"), file, **{key: value})
    with pytest.raises(ModelError) as caught:
        (Source(folder).config("text_encoder"), located.find(str(folder)))
    assert caught.value.hint
    assert caught.value.exit_status is ExitStatus.MODEL
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("model_index.json", {"text_encoder": ["transformers", ["x"]]}, "no valid entry for text_encoder"),
        ("tokenizer/tokenizer_config.json", {"bos_token": {}}, "bos_token is not a token"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": []}, "model_max_length is"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1}, "model_max_length is 1"),
        ("text_encoder/config.json", {"num_hidden_layers": 1000}, "declares 1,000 layers, and there are only"),
        ("unet/config.json", {"layers_per_block": [900, 900, 900]}, "declares 2,700 layers, and there are only"),
    ],
)
def test_what_is_only_read_when_loading(run, tmp_path, file, values, words):
    folder = changed(tiny.make_folder("sd15", tmp_path / "model"), file, **values)
    done = run("generate", "a fox", "-m", folder, *FAST, "-o", "x.png")
    assert done.status == 3
    assert words in done.stderr


def test_a_device_in_place_of_a_file_is_not_read(tmp_path):
    for name in ("zero.json", "pipe.json"):
        if name.startswith("zero"):
            (tmp_path / name).symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / name)
        with pytest.raises(ModelCorrupt, match="not a regular file"):
            families.read_json(tmp_path / name)


def test_a_refiner_is_no_broken_download(run, tmp_path):
    folder = tiny.make_folder("sdxl", tmp_path / "model")
    changed(folder, "model_index.json", text_encoder=[None, None], requires_aesthetics_score=True)
    done = run("generate", "a fox", "-m", folder, *FAST, "-o", "x.png")
    assert (done.status, "is a refiner of SDXL" in done.stderr) == (3, True)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    folder = tiny.make_folder("sd15", root / "folder")
    return folder, original.write_single_file(folder, root / "model.safetensors", "sd1")


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.scale_weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.comfy_quant",
        "first_stage_model.decoder.conv_in.scale_weight",
        "model.diffusion_model.out.2.scale_weight",
    ],
)
def test_unknown_tensors_of_any_part_of_a_file_are_refused(single, tmp_path, name):
    folder, file = single
    save_file({**load_file(file), name: torch.ones(())}, tmp_path / "scaled.safetensors")
    with pytest.raises(ModelCorrupt, match="has no tensor .*" + name.rpartition(".")[2]):
        loading.load(Source(tmp_path / "scaled.safetensors", configs=folder), name="x", device=CPU, dtype=torch.float32)


def test_a_file_without_vae_is_refused_before_weights_are_read(single, tmp_path, monkeypatch):
    folder, file = single
    state = {key: each for key, each in load_file(file).items() if not key.startswith("first_stage_model.")}
    save_file(state, tmp_path / "bare.safetensors")
    monkeypatch.setattr(loading, "fill", lambda *arguments: pytest.fail("a weight was read"))
    source = Source(tmp_path / "bare.safetensors", configs=folder)
    with pytest.raises(ModelCorrupt, match="has no VAE") as caught:
        loading.load(source, name="x", device=CPU, dtype=torch.float32)
    assert "--part vae=FOLDER" in caught.value.hint


def test_language_models_take_long_texts():
    """As Qwen2.5-VL's config says at its top, and Qwen3-VL's."""
    for longest in (128_000, 262_144):
        configs.check(Path("config.json"), {"max_position_embeddings": longest}, configs.NETWORK)
