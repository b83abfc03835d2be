"""Pictures through the autoencoder and back, and latents as files."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sdcli import cli
from sdcli.diffusion import autoencode, pipeline
from sdcli.errors import InputError
from sdcli.files import latent_files, pictures
from sdcli.models import assemble, loading, registry
from sdcli.models.source import Source
from tests import tiny
from tests.conftest import Run
from tests.test_light import HEAVY, modules_of

KIT = Source(registry.PACKAGE / "kit")


@pytest.fixture(scope="module")
def tiny_model(sd15):
    return loading.load(Source(sd15), name="tiny", device=torch.device("cpu"), dtype=torch.float32)


def test_there_and_back_on_the_shell(run: Run, sd15, tmp_path):
    Image.effect_noise((64, 128), 60).convert("RGB").save(tmp_path / "x.png")
    done = run("encode", "x.png", "-m", sd15, "-o", "z.safetensors", "--dtype", "float32")
    assert (done.status, done.lines) == (0, ["z.safetensors"])
    assert "64×128×3 numbers of the picture, 8×16×4 of the latents: 48 times fewer" in done.stderr
    with safe_open(tmp_path / "z.safetensors", framework="pt") as opened:
        z, said = opened.get_tensor("latents"), opened.metadata()
    assert (tuple(z.shape), z.dtype) == ((1, 4, 16, 8), torch.float32)
    assert said == {"model": str(sd15), "model_digest": Source(sd15).sha256, "scaling_factor": "0.18215"}
    back = run("decode", "z.safetensors", "-m", sd15, "--json", "--quiet", "--dtype", "float32")
    line = json.loads(back.stdout)
    assert back.stderr == ""
    assert (line["status"], line["path"], line["width"], line["height"]) == ("done", "z.png", 64, 128)
    assert (line["shape"], line["ratio"], line["error"]) == ([1, 4, 16, 8], 48.0, None)
    with Image.open(tmp_path / "z.png") as picture:
        assert picture.size == (64, 128)
    again = run("decode", "z.safetensors", "-m", sd15)
    assert (again.status, again.lines) == (8, [])


def test_stdout_is_one_line_whatever_libraries_print_and_files_are_called(sd15, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # which the command sets, and pytest then restores
    load = assemble.load
    monkeypatch.setattr(assemble, "load", lambda *given, **more: os.write(1, b"chatter\n") and load(*given, **more))
    Image.effect_noise((64, 64), 60).convert("RGB").save("x.png")
    name = os.fsdecode(b"\xff.safetensors")
    assert cli.run(["encode", "x.png", "-m", str(sd15), "-o", name, "--json", "--quiet", "--dtype", "float32"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["path"] == name
    assert err == "chatter\n"


def test_latents_are_diffusers_own_mean_scaled(tiny_model):
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = tiny_model.vae.encode(pixels).latent_dist.mean * 0.18215
    torch.testing.assert_close(autoencode.encode_picture(tiny_model, picture), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "said", "words"),
    [
        ({"z": torch.zeros(1, 4, 8, 8)}, {}, "has no tensor 'latents', only z"),
        (
            {"latents": torch.zeros(1, 3, 8, 8)},
            {},
            r"shape \[1, 3, 8, 8\], and this model needs floats of \[1, 4, h, w\]",
        ),
        ({"latents": torch.zeros(4, 8, 8)}, {}, r"shape \[4, 8, 8\]"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, {}, r"shape \[2, 4, 8, 8\]"),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int32)}, {}, "I32"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, {}, "not numbers"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, {"scaling_factor": "0.13025"}, "scaled by 0.13025"),
    ],
)
def test_latents_that_do_not_fit_are_refused(tmp_path, tensors, said, words):
    save_file(tensors, tmp_path / "z.safetensors", said)
    with pytest.raises(InputError, match=words):
        latent_files.read(str(tmp_path / "z.safetensors"), 4, 0.18215)


def test_what_is_no_file_of_latents_is_refused(tmp_path):
    (tmp_path / "z.safetensors").write_bytes(b"nothing of the kind")
    for name in ("z.safetensors", "none.safetensors"):
        with pytest.raises(InputError):
            latent_files.read(str(tmp_path / name), 4, 0.18215)


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        ((65, 71), "the nearest sizes are 64×64 and 72×72"),
        ((64, 71), "the nearest sizes are 64×64 and 64×72"),
        ((5, 64), "the nearest sizes are 8×64"),
    ],
)
def test_a_picture_of_no_whole_latents_is_refused_with_the_nearest_sizes(size, hint):
    with pytest.raises(InputError, match=f"x is {size[0]}×{size[1]}") as caught:
        pictures.check_whole(Image.new("RGB", size), 8, "x")
    assert caught.value.hint.endswith(hint)
    pictures.check_whole(Image.new("RGB", (64, 72)), 8, "x")


def test_what_does_not_fit_is_refused_before_torch(sd15, tmp_path):
    Image.new("RGB", (65, 71)).save(tmp_path / "x.png")
    (tmp_path / "cut.safetensors").write_bytes(b"nothing of the kind")
    for arguments in (["encode", "x.png"], ["decode", "cut.safetensors"]):
        assert modules_of([*arguments, "-m", str(sd15)], tmp_path, 4) & HEAVY <= {"PIL", "numpy", "safetensors"}


def test_kit_keeps_its_own_pictures(tmp_path):
    """decode(encode(x)) of a picture that kit has drawn, at 30 dB or more."""
    model = loading.load(KIT, name="kit", device=torch.device("cpu"), dtype=torch.float32)
    flat = {"model": "kit", "prompt": "arctic fox", "seed": 7, "steps": 8}
    recipe = tiny.recipe_for(registry.find("kit"), flat, user=False)
    picture = pipeline.run(model, [recipe])[0].image
    z = autoencode.encode_picture(model, picture)
    (tmp_path / "z.safetensors").write_bytes(
        latent_files.file_of(z, "0" * 64, model="kit", scaling_factor=model.latent_space.scaling_factor)
    )
    found = latent_files.read(str(tmp_path / "z.safetensors"), model.latent_channels, model.latent_space.scaling_factor)
    again, _ = autoencode.decode_picture(model, found.latents)
    error = np.mean((np.asarray(picture, dtype=float) - np.asarray(again, dtype=float)) ** 2)
    assert 10 * np.log10(255**2 / error) >= 30
