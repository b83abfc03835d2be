"""`sdcli train lora` on tiny models, and what other programs make of its files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from sdcli.training import adapters
from sdcli.training.crops import MOST_ASPECT, crop_of, sizes
from sdcli.training.lora import LoraRun
from tests import tiny
from tests.lora.test_lora_parity import TOLERANCE, ours, theirs

SHORT = ["--steps", "2", "--batch", "2", "--warmup", "0", "--cooldown", "0", "--log-every", "1", "--save-every", "2"]
FAST = [*SHORT, "--sheet-every", "0", "--rank", "2", "--dtype", "float32"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Five pictures, four of them wide, with captions in text files."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(5):
        size = (64, 64, 3) if index == 0 else (48, 80, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a fox in the snow, {index}\n")
    return folder


@pytest.fixture(autouse=True)
def _one_step(monkeypatch):
    """Pictures that the model makes take one step."""
    recipe = LoraRun._recipe
    monkeypatch.setattr(LoraRun, "_recipe", lambda self, *of: recipe(self, *of).replace(steps=1))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_makes_the_same_latents_of_the_file(run, pictures, tmp_path, family):
    folder = tiny.make_folder(family, tmp_path / family)
    wide = ["--lr", "0.1", "--conv-rank", "2"] if family == "sd15" else ["--lr", "0.1"]
    done = run("train", "lora", pictures, "-o", "a.safetensors", "-m", folder, *FAST, *wide)
    assert (done.status, done.lines, done.stderr) == (0, ["a.safetensors"], "")
    made = tmp_path / "a.safetensors"
    torch.testing.assert_close(ours(folder, (made, 0.7)), theirs(folder, (made, 0.7)), atol=TOLERANCE, rtol=0)
    found = metadata_of(made)
    assert found["ss_network_module"] == "networks.lora"
    assert found["ss_network_dim"] == "2"
    assert (
        family == "sd15" or found["ss_base_model_version"] == "sdxl_base_v1-0"
    )  # the other one's width is not SD 1.5's
    assert json.loads(found["ss_tag_frequency"]) == {
        pictures.name: {"a fox in the snow": 5, **dict.fromkeys("01234", 1)}
    }


def test_both_text_encoders_are_trained_with_v_prediction(run, pictures, tmp_path):
    folder = tiny.make_folder("sdxl", tmp_path / "sdxl")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    done = run("train", "lora", pictures, "-o", "a.safetensors", "-m", folder, *FAST, "--train-text-encoder")
    assert done.status == 0, done.stderr
    made = load_file(tmp_path / "a.safetensors")
    trained = {name.split(".")[0] for name, each in made.items() if name.endswith("lora_up.weight") and each.any()}
    for number in (1, 2):
        assert f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj" in trained
    unused = {name.split(".")[0] for name in made} - trained  # the first encoder's last layer, as in SDXL
    assert {name.split("_self")[0].split("_mlp")[0] for name in unused} == {"lora_te1_text_model_encoder_layers_2"}
    assert metadata_of(tmp_path / "a.safetensors")["modelspec.prediction_type"] == "v"
    drawn = run("generate", "a fox", "-m", folder, "--lora", "a.safetensors", "--steps", "1", "-o", "fox.png")
    assert drawn.status == 0, drawn.stderr


def test_changes_are_those_of_peft():
    torch.manual_seed(0)
    for layer, sample in ((nn.Linear(6, 10), torch.randn(3, 6)), (nn.Conv2d(6, 10, 3, 2, 1), torch.randn(3, 6, 8, 8))):
        plain = layer(sample)
        change = adapters.LowRank(layer, 4, 6.0)
        assert not change(sample).any()
        nn.init.normal_(change.up)
        held = nn.Sequential(layer)
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), held)
        with torch.no_grad():
            held[0].lora_A["default"].weight.copy_(change.down)
            held[0].lora_B["default"].weight.copy_(change.up)
        torch.testing.assert_close(plain + change(sample), held(sample))


def test_a_run_that_dies_continues_to_the_same_file(run, sd15, pictures, tmp_path, monkeypatch):
    of_class = ["--class-prompt", "a fox", "--class-pictures", "1", "--train-text-encoder"]
    begin = ["train", "lora", pictures, "-m", sd15, *FAST, *of_class, "--steps", "4"]
    assert run(*begin, "-o", "unbroken.safetensors").status == 0
    steps, step = [], LoraRun.train_step

    def train_step(self):
        steps.append(self.step)
        if len(steps) == 4:
            raise RuntimeError("killed")
        return step(self)

    monkeypatch.setattr(LoraRun, "train_step", train_step)
    assert run(*begin, "-o", "died.safetensors").status == 1
    assert not (tmp_path / "died.safetensors").exists()
    assert run("train", "lora", "-o", "died.safetensors", "--dtype", "float32").lines == ["died.safetensors"]
    assert steps == [0, 1, 2, 3, 2, 3]
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("died", "unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metadata_of(tmp_path / "died.safetensors")["ss_num_reg_images"] == "1"
    changed = run(*begin, "-o", "died.safetensors", "--class-prompt", "a dog")
    assert changed.status == 2
    assert "this run was started with --class-prompt" in changed.stderr
    assert run("train", "lora", "-o", "died.safetensors").lines == ["died.safetensors"]
    assert len(steps) == 6


def test_recomputed_activations_give_the_same_losses(run, sd15, pictures, tmp_path):
    losses = []
    for index, option in enumerate(("--gradient-checkpointing", "--no-gradient-checkpointing")):
        done = run("train", "lora", pictures, "-o", f"{index}.safetensors", "-m", sd15, *FAST, option, "--json")
        losses.append([json.loads(line).get("loss") for line in done.lines])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]


def test_sheets_and_prompts(run, sd15, pictures, tmp_path):
    sheets = ["--sheet-every", "2", "--sheet-prompt", "a fox", "--prompt", "a fox in the snow", "--size", "64"]
    done = run("train", "lora", pictures, "-o", "a.safetensors", "-m", sd15, *FAST, *sheets)
    assert done.status == 0, done.stderr
    assert (tmp_path / "a.run" / "sheets" / "000002.png").exists()
    assert (tmp_path / "a.run" / "sheets" / "prompts.txt").read_text() == "a fox\n" * 4
    assert json.loads(metadata_of(tmp_path / "a.safetensors")["ss_tag_frequency"]) == {
        pictures.name: {"a fox in the snow": 5}
    }


def test_pictures_of_the_class_from_a_folder_and_a_dry_run(run, sd15, pictures, tmp_path):
    begin = ["train", "lora", pictures, "-o", "a.safetensors", "-m", sd15, *FAST, "--class-data", pictures]
    dry = run(*begin, "--dry-run", "--json")
    assert json.loads(dry.lines[0])["samples"] == 4, dry.stderr
    assert not list(tmp_path.iterdir())
    done = run(*begin, "--json")
    assert json.loads(done.lines[-1]) == {"status": "done", "step": 2, "model": "a.safetensors"}


def test_refusals(run, sd15, pictures, tmp_path):
    inpainting = tiny.make_folder("sd15", tmp_path / "inpainting", in_channels=9)
    labels = tiny.make_dit(tmp_path / "dit")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(pictures / "0.png", bare)
    (tmp_path / "old.safetensors").write_bytes(b"")
    for words, status, problem in (
        ([pictures, "-o", "a.png"], 2, "--out is a.png"),
        (["-o", "a.safetensors"], 2, "needs a folder of pictures"),
        ([pictures, "-o", "old.safetensors"], 8, "old.safetensors exists"),
        ([bare, "-o", "a.safetensors"], 4, "has no text: there is no 0.txt next to it"),
        ([tmp_path / "none", "-o", "a.safetensors"], 4, "no image in"),
        ([pictures, "-o", "a.safetensors", "-m", inpainting], 3, "takes more than a prompt"),
        ([pictures, "-o", "a.safetensors", "-m", labels], 3, "has no U-Net for prompts"),
        ([pictures, "-o", "a.safetensors", "-m", sd15, "--size", "65"], 2, "--size is 65"),
        ([pictures, "-o", "a.safetensors", "-m", sd15, "--rank", "0"], 2, "--rank is 0"),
    ):
        done = run("train", "lora", *words)
        assert (done.status, len(done.stderr.splitlines())) == (status, 2), done.stderr
        assert problem in done.stderr
    assert not list(tmp_path.glob("a.*"))


@given(st.integers(20, 4000), st.integers(20, 4000), st.sampled_from([(256, 32), (512, 64), (1024, 64)]))
def test_crops_keep_the_area_and_the_aspect(width, height, native):
    side, multiple = native
    crop = crop_of((width, height), side, multiple)
    assert crop.size in list(sizes(side, multiple))
    assert crop.size[0] % multiple == crop.size[1] % multiple == 0
    assert side * side / 2 < crop.size[0] * crop.size[1] <= side * side
    aspect = width / height
    if 1 / MOST_ASPECT < aspect < MOST_ASPECT:
        assert 0.7 < crop.size[0] / crop.size[1] / aspect < 1.43
    assert min(crop.corner) == 0
    assert crop.time_ids == (height, width, *crop.corner[::-1], *crop.size[::-1])


def test_square_pictures_are_not_cropped():
    assert crop_of((512, 512), 512, 64).time_ids == (512, 512, 0, 0, 512, 512)
    assert crop_of((1000, 500), 512, 64).size == (640, 384)
