"""`sdcli models convert`: pickled weights of every kind, what is left out, and pickles that would run code."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdcli.models.unpickle import extract


class Callback:
    """As pytorch_lightning's ModelCheckpoint in Stable Diffusion's checkpoints."""

    def __init__(self) -> None:
        self.best = "x.ckpt"


class Evil:
    def __reduce__(self):
        return os.system, ("touch planted",)


A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.float16)
CONTENTS = {
    "checkpoint.ckpt": (
        {"state_dict": {"model.diffusion_model.out.2.weight": A, "n": torch.tensor(3)}, "epoch": 4, "callbacks": {}},
        "a checkpoint",
        {"model.diffusion_model.out.2.weight": A, "n": torch.tensor(3)},
        ["epoch", "callbacks"],
    ),
    "vae.pt": ({"decoder.conv_in.weight": A, "loss": 1.5}, "a VAE", {"decoder.conv_in.weight": A}, ["loss"]),
    "style.pt": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": A}, "name": "style", "step": 500},
        "an embedding",
        {"emb_params": A},
        ["string_to_token", "name", "step"],
    ),
    "esrgan.pth": ({"params_ema": {"conv_first.weight": A, "conv_first.bias": B}}, "weights", None, []),
    "lora.bin": ({"x.lora_down.weight": A, "x.lora_up.weight": A.T}, "a LoRA", None, []),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_tensors_of_each_kind(tmp_path, name):
    content, kind, wanted, dropped = CONTENTS[name]
    found_kind, tensors, left_out = extract(content)
    assert (found_kind, left_out) == (kind, dropped)
    for key, tensor in (wanted or tensors).items():
        assert torch.equal(tensors[key], tensor)


def test_the_command(run, tmp_path):
    torch.save({"state_dict": {"a": A, "b": B, "a_again": A}, "callbacks": [Callback()]}, tmp_path / "model.ckpt")
    done = run("models", "convert", "model.ckpt", "model.safetensors", "--json")
    assert done.status == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["path"], line["tensors"]) == ("model.safetensors", 3)
    assert line["dropped"] == ["callbacks", "objects of tests.test_convert.Callback"]
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["a"], A)
    assert torch.equal(found["b"], B)
    assert found["b"].dtype == torch.float16
    again = run("models", "convert", "model.ckpt", "model.safetensors")
    assert again.status == 8
    assert run("models", "convert", "model.ckpt", "model.safetensors", "--force").status == 0
    assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {"model.ckpt", "model.safetensors"}


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_would_run_code(run, tmp_path, archive):
    torch.save({"a": A, "evil": Evil()}, tmp_path / "evil.pt", _use_new_zipfile_serialization=archive)
    done = run("models", "convert", "evil.pt", "evil.safetensors")
    assert not list(tmp_path.rglob("planted"))
    assert done.status == 3
    assert "posix" in done.stderr
    assert not (tmp_path / "evil.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "target", "status", "message"),
    [
        ("nowhere.pt", "x.safetensors", 3, "no file"),
        ("text.pt", "x.safetensors", 3, "cannot be converted"),
        ("none.pt", "x.safetensors", 3, "it has no tensors"),
        ("good.safetensors", "x.safetensors", 2, "is not a pickle"),
        ("none.pt", "x.pt", 2, "does not end in .safetensors"),
        ("none.pt", "nowhere/x.safetensors", 8, "there is no directory"),
    ],
)
def test_refusals(run, tmp_path: Path, name, target, status, message):
    (tmp_path / "text.pt").write_text("<html>")
    (tmp_path / "good.safetensors").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    done = run("models", "convert", name, target)
    assert done.status == status
    assert message in done.stderr
    assert not (tmp_path / target).exists()
    assert not list(tmp_path.rglob("planted"))
