import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, ModelUnsafe
from sdcli.models import families
from sdcli.models.families import flow
from sdcli.models.source import Source

ATTENTION = families.UNET + "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = families.UNET + "input_blocks.0.0.weight"


def write(path, width, block=1, *, extra=None, metadata=None, channels=4):
    tensors = {
        ATTENTION.format(block): torch.zeros(8, width),
        CONV_IN: torch.zeros(8, channels, 3, 3),
        **(extra or {}),
    }
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("width", "block", "extra", "metadata", "family"),
    [
        (768, 1, {}, {}, "sd15"),
        (1024, 1, {}, {}, "sd21-v"),
        (1024, 1, {"global_step": torch.tensor(875_000)}, {}, "sd21-base"),
        (1024, 1, {"global_step": torch.tensor(110_000)}, {}, "sd21-v"),
        (1024, 1, {}, {"modelspec.prediction_type": "epsilon"}, "sd21-base"),
        (1024, 1, {}, {"modelspec.prediction_type": "v"}, "sd21-v"),
        (2048, 4, {}, {}, "sdxl"),
        (2048, 4, {"v_pred": torch.tensor([])}, {}, "sdxl-v"),
        (2048, 4, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, {}, "sdxl-v-zsnr"),
        (1024, 1, {"ztsnr": torch.tensor([]), "v_pred": torch.tensor([])}, {}, "sd21-v-zsnr"),
        (768, 1, {}, {"modelspec.prediction_type": "v"}, "sd15-v"),
        (768, 1, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, {}, "sd15-v-zsnr"),
        (2048, 4, {}, {"modelspec.prediction_type": "v"}, "sdxl-v"),
    ],
)
def test_family_is_told_by_width_and_by_what_the_file_says(tmp_path, width, block, extra, metadata, family):
    path = write(tmp_path / "model.safetensors", width, block, extra=extra, metadata=metadata)
    assert families.detect(path) == family


@pytest.mark.parametrize("metadata", [{}, {"modelspec.prediction_type": "epsilon"}])
@pytest.mark.parametrize(
    ("width", "block", "family"), [(768, 1, "sd15-inpaint"), (1024, 1, "sd2-inpaint"), (2048, 4, "sdxl-inpaint")]
)
def test_a_unet_of_nine_channels_inpaints_and_predicts_noise(tmp_path, width, block, family, metadata):
    path = write(tmp_path / "model.safetensors", width, block, channels=9, metadata=metadata)
    assert families.detect(path) == family


@pytest.mark.parametrize(("width", "block"), [(768, 1), (1024, 1), (2048, 4)])
def test_v_prediction_of_an_inpainting_model_is_refused(tmp_path, width, block):
    said = {"modelspec.prediction_type": "v"}
    path = write(tmp_path / "model.safetensors", width, block, channels=9, metadata=said)
    with pytest.raises(ModelError, match="predicts v"):
        families.detect(path)


BASES = {"sd15-inpaint": "sd15", "sd2-inpaint": "sd21-base", "sdxl-inpaint": "sdxl"}


@pytest.mark.parametrize("family", BASES)
def test_an_inpainting_family_is_its_base_but_for_its_channels(family):
    folder, base = families.config_folder(family), families.config_folder(BASES[family])
    files = [each.relative_to(folder) for each in folder.rglob("*.json")]
    assert sorted(files) == sorted(each.relative_to(base) for each in base.rglob("*.json"))
    for file in files:
        ours, theirs = families.read_json(folder / file), families.read_json(base / file)
        differing = {key: (theirs[key], ours[key]) for key in ours if ours[key] != theirs[key]}
        pipeline = theirs.get("_class_name", "")
        assert differing == {
            "config.json": {"in_channels": (4, 9)} if file.parent.name == "unet" else {},
            "model_index.json": {"_class_name": (pipeline, pipeline.replace("Pipeline", "InpaintPipeline"))},
        }.get(file.name, {})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_down.lora_up.weight": torch.zeros(1)}, "a LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "Flux"),
        ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "Stable Diffusion 3"),
        ({"control_model.input_blocks.0.0.weight": torch.zeros(1)}, "ControlNet"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "one part of a diffusers folder"),
        ({CONV_IN: torch.zeros(8, 5, 3, 3), ATTENTION.format(1): torch.zeros(8, 768)}, "another kind"),
        ({"first_stage_model.decoder.conv_in.weight": torch.zeros(1)}, "it is a VAE"),
        ({"decoder.conv_in.weight": torch.zeros(1)}, "it is a VAE"),
        ({"model_ema.diffusion_modelout2weight": torch.zeros(1), "cond_stage_model.x": torch.zeros(1)}, "only EMA"),
        ({"emb_params": torch.zeros(4, 768)}, "textual inversion"),
        ({"something": torch.zeros(1)}, "names are unknown"),
    ],
)
def test_what_is_no_model_is_refused_by_what_it_is(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=words) as caught:
        families.detect(tmp_path / "model.safetensors")
    assert "SD 1.x, SD 2.x or SDXL" in caught.value.hint


@pytest.mark.parametrize(
    ("extra", "metadata", "words"),
    [
        ({"edm_mean": torch.zeros(1, 4, 1, 1)}, {}, "edm_mean.*EDM"),
        ({"edm_vpred.sigma_max": torch.zeros(())}, {}, "edm_vpred.sigma_max.*EDM"),
        ({"ztsnr": torch.tensor([])}, {}, "zero terminal SNR, but not with v"),
        ({"v_pred": torch.tensor([])}, {"modelspec.prediction_type": "epsilon"}, "both noise and v"),
        ({}, {"modelspec.prediction_type": "rectified-flow"}, "'rectified-flow', which is not supported"),
    ],
)
def test_marks_that_cannot_be_followed_are_refused(tmp_path, extra, metadata, words):
    path = write(tmp_path / "model.safetensors", 2048, 4, extra=extra, metadata=metadata)
    with pytest.raises(ModelError, match=words):
        families.detect(path)


V = 'model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n'
SGM = "denoiser_config:\n  params:\n    scaling_config:\n      target: sgm.modules.diffusionmodules.denoiser_scaling."


@pytest.mark.parametrize(
    ("content", "family"),
    [
        (V, "sd15-v"),
        (V + "    rescale_betas_zero_snr: true\n", "sd15-v-zsnr"),
        ("model: {params: {parameterization: eps, timesteps: 1000, scale_factor: 0.18215}}", "sd15"),
        (SGM + "VScaling", "sd15-v"),
        ("trigger_words: [fluff]\n", "sd15"),
        ("# parameterization: v\n", "sd15"),
    ],
)
def test_the_yaml_next_to_a_checkpoint_is_followed(tmp_path, content, family):
    path = write(tmp_path / "model.safetensors", 768)
    alone = Source(path).sha256
    (tmp_path / "model.yaml").write_text(content)
    assert families.detect(path) == family
    describes = families.marks.yaml_beside(path) is not None
    assert (Source(path).sha256 != alone) == describes
    assert Source(path, family="sd15").sha256 == alone


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: {params: {parameterization: x0}}", "'x0', which is not supported"),
        ("model: {params: {linear_end: 0.02}}", "sets linear_end to 0.02"),
        ("model: {params: {scale_factor: 0.13}}", "sets scale_factor to 0.13"),
        (SGM + "EDMScaling", "EDMScaling is not supported"),
        ("a: [", r"model\.yaml cannot be read"),
        ("x: !!python/object:os.system {}", r"model\.yaml cannot be read"),
        ("- " * 5000 + "a", r"model\.yaml cannot be read"),
        (V + "#" * 300_000, "larger than"),
    ],
)
def test_a_yaml_that_cannot_be_followed_is_refused(tmp_path, content, words):
    path = write(tmp_path / "model.safetensors", 768)
    (tmp_path / "model.yaml").write_text(content)
    with pytest.raises(ModelError, match=words):
        families.detect(path)


def test_aliases_in_a_yaml_are_followed_once(tmp_path):
    path = write(tmp_path / "model.safetensors", 768)
    lines = ["a0: &a0 {parameterization: v}"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "model.yaml").write_text("\n".join(lines))
    assert families.detect(path) == "sd15-v"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "a web page"),
        (b'{"error":"Unauthorized", "message": "no"}', "JSON, such as a server's error"),
        (b"GGUF\3\0\0\0" + bytes(8), "the file ends inside of its header"),
        (b"PK\3\4" + bytes(30), "a pickle or an archive"),
        (struct.pack("<Q", 2**25) + b" " * (2**25 + 9), "the limit is 16,777,216"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, content, words):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=words) as caught:
        families.read_header(tmp_path / "model.safetensors")
    assert caught.value.hint


def test_a_web_page_in_place_of_a_config(tmp_path):
    (tmp_path / "config.json").write_text("<html>please log in</html>")
    with pytest.raises(ModelCorrupt, match="is a web page, not JSON"):
        families.read_json(tmp_path / "config.json")


def test_shards_or_the_whole_file_as_the_libraries_choose(tmp_path):
    for stem, expected in (("diffusion_pytorch_model", "part-1.safetensors"), ("model", "model.safetensors")):
        folder = tmp_path / stem
        folder.mkdir()
        for name in (f"{stem}.safetensors", "part-1.safetensors"):
            (folder / name).touch()
        index = {"weight_map": {"x": "part-1.safetensors"}}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        assert [each.name for each in families.component_files(folder, None)] == [expected]


@pytest.mark.parametrize(
    "listed", [["a.safetensors"], {}, None, {"x": 3}, {"x": "a" * 5000}, {"x": "a\0b"}, {"x": ".."}]
)
def test_an_index_without_valid_shards_is_corrupt(tmp_path, listed):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises((ModelCorrupt, ModelUnsafe)):
        families.component_files(tmp_path, None)


def test_weights_of_a_variant_are_used_or_named(tmp_path):
    other = tmp_path / "diffusion_pytorch_model.non_ema.safetensors"
    other.touch()
    with pytest.raises(ModelCorrupt, match="only has the weights of the variant non_ema"):
        families.component_files(tmp_path, None)
    assert families.component_files(tmp_path, "non_ema") == [other]
    precise = tmp_path / "diffusion_pytorch_model.bf16.safetensors"
    precise.touch()
    assert families.component_files(tmp_path, None) == [precise]


def header(listed):
    raw = json.dumps(listed).encode()
    return struct.pack("<Q", len(raw)) + raw


GOOD = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02\x03",
        struct.pack("<Q", 2**63) + b"{}",
        header(GOOD)[:-5],
        struct.pack("<Q", 5) + b"{nope",
        struct.pack("<Q", 2) + b"[]",
        header(GOOD),
        header(GOOD) + bytes(7),
        header(GOOD) + bytes(9),
        header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8),
        header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + bytes(12),
        header({"x": {"dtype": "F32"}}) + bytes(8),
        header({"x": 3}) + bytes(8),
    ],
    ids=range(14),
)
def test_broken_headers_are_corrupt(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors") as caught:
        families.read_header(path)
    assert caught.value.hint


def test_a_sound_header_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({**GOOD, "__metadata__": {"a": "b"}}) + struct.pack("<ff", 1, 2))
    read = families.read_header(path)
    assert read.metadata == {"a": "b"}
    assert (read.tensors["x"].dtype, read.tensors["x"].shape) == ("F32", (2,))
    assert path.read_bytes()[read.tensors["x"].start :] == struct.pack("<ff", 1, 2)


def test_pickles_and_absent_files(tmp_path):
    with pytest.raises(ModelNotFound):
        families.read_header(tmp_path / "none.safetensors")
    with pytest.raises(ModelCorrupt):
        families.read_header(tmp_path)
    with pytest.raises(ModelUnsafe) as caught:
        families.read_header(tmp_path / "model.ckpt")
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("family", families.NAMES)
def test_every_family_has_its_configs(family):
    folder = families.config_folder(family)
    index = json.loads((folder / "model_index.json").read_text())
    for part in index:
        if part.startswith(("unet", "transformer", "vae", "text_encoder")):
            assert families.read_json(folder / part / "config.json")
    schedule = families.read_json(folder / "scheduler" / "scheduler_config.json")
    if family in flow.FAMILIES:
        is_pixart = flow.FAMILIES[family].kind == "pixart"
        solver = {"sana": "DPMSolverMultistepScheduler", "pixart": "DPMSolverMultistepScheduler"}
        assert schedule["_class_name"] == solver.get(flow.FAMILIES[family].kind, "FlowMatchEulerDiscreteScheduler")
        assert ("use_flow_sigmas" in schedule) == (family == "sana")
        assert ("beta_start" in schedule) == is_pixart
        return
    assert schedule["prediction_type"] == ("v_prediction" if "-v" in family else "epsilon")
    assert schedule.get("rescale_betas_zero_snr", False) == family.endswith("-zsnr")
    betas = (0.0015, 0.0195) if family == "ldm-imagenet" else (0.00085, 0.012)
    assert (schedule["beta_start"], schedule["beta_end"]) == betas


def test_unknown_families_are_named():
    with pytest.raises(ModelNotFound, match="sd99") as caught:
        families.config_folder("sd99")
    assert "sdxl-turbo" in caught.value.hint


def test_families_are_light():
    code = "import sys; from sdcli.models import families; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "set()\n"
