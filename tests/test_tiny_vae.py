"""Tiny autoencoders in the place of a model's: from folders, files and entries, against diffusers' classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file, save_file

from sdcli import cli
from sdcli.diffusion import pipeline
from sdcli.diffusion.finish import Result
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelNotFound
from sdcli.models import assemble, located
from sdcli.planning import resolve
from tests import tiny, tiny_flow

FAMILIES = {"sd15": 4, "sdxl": 4, "sd3-without-t5": 16, "flux-schnell": 16}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def autoencoder(folder: Path, channels: int, width: int = 8) -> Path:
    torch.manual_seed(channels)
    widths = (width,) * 4
    made = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=channels
    )
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tiny autoencoders by their latents' channels: small in a folder, and of the usual size."""
    root = tmp_path_factory.mktemp("tiny-vae")
    small = {count: autoencoder(root / str(count), count) for count in (4, 16)}
    return small, autoencoder(root / "usual", 4, 64)


def result_of(model: Path, vae: str) -> Result:
    asked = {"prompt": "arctic fox", "steps": 2, "seed": 7, "width": 64, "height": 96, "dtype": "float32"}
    asked |= {"model": str(model), "part": [f"vae={vae}"]}
    resolved = resolve.resolve(located.find(str(model), asked), asked)
    loaded = assemble.load(resolved.weights, resolved.recipe.replace(device="cpu"))
    assert isinstance(loaded.vae, AutoencoderTiny)
    return pipeline.run(loaded, [resolved.recipe], inputs=resolved.inputs)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pixels_are_those_of_diffusers_decoder(made, family, tmp_path):
    make = tiny_flow.make_folder if family in tiny_flow.FAMILIES else tiny.make_folder
    folder, vae = make(family, tmp_path / family), made[0][FAMILIES[family]]
    result = result_of(folder, str(vae))
    loaded = AutoencoderTiny.from_pretrained(vae)
    with torch.no_grad():
        decoded = loaded.decode(result.latents / loaded.config.scaling_factor + loaded.config.shift_factor).sample
    (theirs,) = VaeImageProcessor().postprocess(decoded, output_type="pil")
    pixels = np.asarray(theirs, dtype=np.int16)
    assert pixels.std() > 3
    assert np.abs(np.asarray(result.image, dtype=np.int16) - pixels).max() <= 1


def test_a_file_alone_is_the_folder(made, sd15, tmp_path):
    usual = made[1]
    shutil.copy(usual / WEIGHTS, tmp_path / "taesd.safetensors")
    assert result_of(sd15, str(tmp_path / "taesd.safetensors")).image == result_of(sd15, str(usual)).image


def test_half_of_an_autoencoder_is_refused(made, sd15, tmp_path):
    """The original layout has a file for the decoder, which counts the layer that clamps latents too."""
    state = load_file(made[1] / WEIGHTS)
    half = {}
    for name, tensor in state.items():
        if name.startswith("decoder.layers."):
            number, _, rest = name.removeprefix("decoder.layers.").partition(".")
            half[f"{int(number) + 1}.{rest}"] = tensor.contiguous()
    save_file(half, tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(ModelCorrupt, match="only the encoder or the decoder"):
        result_of(sd15, str(tmp_path / "taesd_decoder.safetensors"))


def test_other_channels_are_refused(made, sd15):
    with pytest.raises(InvalidRecipe, match="its VAE has 16"):
        result_of(sd15, str(made[0][16]))


def test_an_entry_is_used_by_its_name(made, sd15, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert cli.run(["models", "add", "small", str(made[0][4])]) == 0
    assert cli.run(["models", "show", "small", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (shown["kind"], shown["class"], shown["latent_channels"]) == ("vae", "AutoencoderTiny", 4)
    words = ["-m", str(sd15), "-W", "64", "-H", "64", "--steps", "1", "-s", "1"]
    assert cli.run(["generate", "a fox", *words, "--vae", "small", "-o", "named.png"]) == 0
    assert cli.run(["generate", "a fox", *words, "--part", f"vae={made[0][4]}", "-o", "path.png"]) == 0
    capfd.readouterr()
    assert cli.run(["info", "--json", "named.png", "path.png"]) == 0
    named, path = map(json.loads, capfd.readouterr().out.splitlines())
    assert named["recipe"]["part"] == ["vae=small"]
    assert named["pixels_sha256"] == path["pixels_sha256"]
    assert cli.run(["replay", "named.png", "--verify"]) == 0
    assert cli.run(["generate", "a fox", "-m", "small"]) == 3
    assert "small is a VAE, not a model" in capfd.readouterr().err
    assert cli.run(["generate", "a fox", *words, "--vae", "small", "--part", "vae=x"]) == 2
    assert "vae twice" in capfd.readouterr().err


def test_an_entry_that_is_not_here_is_pulled_by_its_name(sd15):
    with pytest.raises(ModelNotFound) as caught:
        result_of(sd15, "taesd")
    assert "sdcli models pull taesd" in caught.value.hint
