"""A model, wherever its parts come from, as a folder that diffusers loads unchanged and makes the same latents of."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.diffusion import pipeline
from sdcli.errors import OutputError, OutputExists
from sdcli.files import folders
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.models import export, loading, registry
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe
from tests import exported, original, tiny
from tests.conftest import Run

TOLERANCE = 1e-4
KIT = registry.PACKAGE / "kit"
TRANSFORMERS_4 = os.environ.get("TRANSFORMERS_4_PYTHON", "")


def write(source: Source, folder: Path) -> str:
    folder.mkdir()
    return export.export(source, folder, lambda name, count: None)


@pytest.fixture(scope="module")
def kit_inpaint() -> Source:
    """kit with a U-Net of 17 channels: they share everything else."""
    return registry.locate(registry.find("kit-inpaint"))


def ours(source: Source) -> torch.Tensor:
    """What `exported.latents` computes, by sdcli from where the model is."""
    model = loading.load(source, name="x", device=torch.device("cpu"), dtype=torch.float32)
    scheduler = {"DDIMScheduler": "ddim", "PNDMScheduler": "pndm", "EulerDiscreteScheduler": "euler"}
    flat = {**exported.ASKED, "scheduler": scheduler[model.scheduler_config["_class_name"]], "seed": exported.SEED}
    inputs = Inputs()
    if model.concat_channels:
        inputs = Inputs(InitialImage(exported.picture(), exported.mask(), exported.mask()))
        flat |= {"image": "given", "mask_image": "given", "strength": 1.0}
    flat |= {"model": "x", "width": exported.SIZE, "height": exported.SIZE}
    return pipeline.sample(model, [Recipe.from_dict(flat)], inputs=inputs)


def assert_same(source: Source, folder: Path, pipeline_name: str) -> None:
    name, theirs = exported.latents(str(folder))
    assert name == pipeline_name
    assert theirs.std() > 0.1
    assert (ours(source) - theirs).abs().max() <= TOLERANCE


def test_kit_ends_in_the_same_latents(tmp_path):
    assert write(Source(KIT), tmp_path / "kit") == "StableDiffusionPipeline"
    assert_same(Source(KIT), tmp_path / "kit", "StableDiffusionPipeline")


def test_kit_with_a_unet_that_inpaints_is_exported_with_it(kit_inpaint, tmp_path):
    """diffusers' inpainting pipeline takes U-Nets of 9 channels only; this one has 17."""
    assert write(kit_inpaint, tmp_path / "kit") == "StableDiffusionInpaintPipeline"
    assert (ours(Source(tmp_path / "kit")) - ours(kit_inpaint)).abs().max() == 0


def test_a_unet_that_inpaints_ends_in_the_same_latents(tmp_path):
    source = Source(tiny.make_folder("sd15", tmp_path / "model", in_channels=9))
    assert write(source, tmp_path / "out") == "StableDiffusionInpaintPipeline"
    assert_same(source, tmp_path / "out", "StableDiffusionInpaintPipeline")


@pytest.mark.parametrize(
    ("family", "layout"),
    [("sd15", "sd1"), ("sd21-v", "sd2"), ("sdxl", "sdxl")],
)
def test_a_single_file_becomes_a_folder(family, layout, tmp_path):
    folder = tiny.make_folder(family, tmp_path / "first")
    file = original.write_single_file(folder, tmp_path / "model.safetensors", layout)
    source = Source(file, configs=folder)
    name = write(source, tmp_path / "again")
    assert_same(source, tmp_path / "again", name)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (folder / part).exists():
            (before,), (after,) = (list((each / part).glob("*.safetensors")) for each in (folder, tmp_path / "again"))
            first, second = load_file(before), load_file(after)
            assert {key.removeprefix("text_model.") for key in first} == {
                key.removeprefix("text_model.") for key in second
            }
            assert sum(each.double().sum() for each in first.values()) == sum(
                each.double().sum() for each in second.values()
            )


def test_the_layout_is_the_one_that_all_readers_know(sd15, tmp_path):
    """transformers 4 knows a text encoder's tensors with the prefix only, and no tokenizer.json."""
    folder = Path(shutil.copytree(sd15, tmp_path / "model"))
    plain = {key.removeprefix("text_model."): each for key, each in load_file(encoder_file(folder)).items()}
    save_file(plain, encoder_file(folder), {"format": "pt"})
    as_transformers_5_does(folder / "tokenizer")
    write(Source(folder), tmp_path / "out")
    written = load_file(encoder_file(tmp_path / "out"))
    assert set(written) == {f"text_model.{key}" for key in plain}
    assert all(torch.equal(written[f"text_model.{key}"], each) for key, each in plain.items())
    assert json.loads((tmp_path / "out" / "tokenizer" / "vocab.json").read_text()) == tiny.vocabulary()
    merges = (tmp_path / "out" / "tokenizer" / "merges.txt").read_text().splitlines()
    assert merges == ["#version: 0.2", *tiny.MERGES]
    assert_same(Source(sd15), tmp_path / "out", "StableDiffusionPipeline")


def encoder_file(folder: Path) -> Path:
    return folder / "text_encoder" / "model.safetensors"


def as_transformers_5_does(folder: Path) -> None:
    model = {"vocab": tiny.vocabulary(), "merges": [merge.split(" ") for merge in tiny.MERGES]}
    tiny.write_json(folder / "tokenizer.json", {"model": model})
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


def test_weights_keep_their_type_and_shards_become_one_file(tmp_path):
    write(Source(KIT), tmp_path / "kit")
    (file,) = (tmp_path / "kit" / "unet").glob("*.safetensors*")
    written = load_file(file)
    shards = [load_file(each) for each in (KIT / "unet").glob("*.safetensors")]
    assert len(shards) > 1
    assert written.keys() == set().union(*shards)
    assert all(torch.equal(written[key], each) for shard in shards for key, each in shard.items())
    assert {each.dtype for each in written.values()} == {torch.float16}
    assert file.stat().st_mode == (tmp_path / "kit" / "model_index.json").stat().st_mode


@pytest.mark.parametrize(
    ("named", "in_channels", "is_xl", "expected"),
    [
        ("StableDiffusionPipeline", 4, False, "StableDiffusionPipeline"),
        ("StableDiffusionPipeline", 9, False, "StableDiffusionInpaintPipeline"),
        ("StableDiffusionInpaintPipeline", 4, False, "StableDiffusionPipeline"),
        ("StableDiffusionXLPipeline", 9, True, "StableDiffusionXLInpaintPipeline"),
        ("StableDiffusionXLInpaintPipeline", 4, True, "StableDiffusionXLPipeline"),
        ("LatentConsistencyModelPipeline", 4, False, "LatentConsistencyModelPipeline"),
        ("StableDiffusionPipeline", 14, False, "StableDiffusionPipeline"),
    ],
)
def test_the_pipeline_is_the_one_that_feeds_the_unet(named, in_channels, is_xl, expected):
    assert export._pipeline(named, in_channels, 4, is_xl=is_xl) == expected


def test_what_is_not_exported_is_not_promised(sd15, tmp_path):
    folder = Path(shutil.copytree(sd15, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    tiny.write_json(folder / "model_index.json", index)
    config = json.loads((folder / "unet" / "config.json").read_text())
    tiny.write_json(folder / "unet" / "config.json", {**config, "_name_or_path": "/home/somebody/unet"})
    tiny.write_json(folder / "unet" / "classes.json", [])
    write(Source(folder), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (written["safety_checker"], written["requires_safety_checker"]) == ([None, None], False)
    assert "_name_or_path" not in (tmp_path / "out" / "unet" / "config.json").read_text()
    assert (tmp_path / "out" / "unet" / "classes.json").exists()


def test_on_the_shell(run: Run, sd15, tmp_path):
    done = run("models", "export", sd15, "out")
    assert (done.status, done.lines, done.stderr) == (0, ["out"], "")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    refused = run("models", "export", sd15, "out")
    assert (refused.status, refused.lines) == (8, [])
    assert refused.stderr == (
        "error: out already exists and is not empty\nhint: choose another name, or replace it: --force\n"
    )
    (tmp_path / "empty").mkdir()
    assert run("models", "export", sd15, "empty").status == 0
    shutil.rmtree(tmp_path / "out" / "vae")
    again = json.loads(run("models", "export", sd15, "out", "--force", "--json").stdout)
    assert again == {
        "name": str(sd15),
        "path": "out",
        "pipeline": "StableDiffusionPipeline",
        "digest": Source(tmp_path / "empty").sha256,
        "files": 12,
        "bytes": sum(each.stat().st_size for each in (tmp_path / "out").rglob("*") if each.is_file()),
    }
    (tmp_path / "out" / "notes.txt").write_text("mine")
    kept = run("models", "export", sd15, "out", "--force")
    assert (kept.status, "notes.txt" in kept.stderr) == (8, True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != ".cache") == ["empty", "out"]


@pytest.mark.parametrize(
    ("folder", "words"),
    [(".", "is the current directory"), ("file", "file is a file"), ("no/such/place", "mkdir -p")],
)
def test_places_that_cannot_be(run: Run, sd15, tmp_path, folder, words):
    (tmp_path / "file").touch()
    refused = run("models", "export", sd15, folder, "--force")
    assert (refused.status, words in refused.stderr) == (8, True)


def test_nothing_is_left_of_an_export_that_fails(run: Run, sd15, tmp_path):
    folder = Path(shutil.copytree(sd15, tmp_path / "model"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused = run("models", "export", "model", "out")
    assert refused.status == 3
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_full_disk(mounts, sd15, tmp_path):
    if mounts is None:
        pytest.skip("this user may not mount")
    command = (
        f"mount -t tmpfs -o size=200k tmpfs {tmp_path} && cd {tmp_path} && python -m sdcli models export {sd15} out"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*mounts, "sh", "-c", f"{command}; echo $?; ls -A"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["8"]
    assert re.match(r"error: cannot write out: No space left on device\nhint: free some space", done.stderr)


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with folders.written(str(target)) as staged:
        (staged / "one").write_text("1")
        assert not target.exists()
    with pytest.raises(OutputError), folders.written(str(target), force=True) as staged:
        shutil.copy(target / "nothing", staged)
    assert [each.name for each in target.iterdir()] == ["one"]
    with folders.written(str(target), force=True) as staged:
        (staged / "two").write_text("2")
    assert [each.name for each in target.iterdir()] == ["two"]
    with pytest.raises(OutputExists), folders.written(str(target)):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_the_system_s_errors_are_told():
    with pytest.raises(OutputError, match="cannot write out: No space left on device"), folders.written("out"):
        raise folders.os_error(RuntimeError("I/O error: No space left on device (os error 28)")) or AssertionError
    assert folders.os_error(RuntimeError("nothing")) is None


@pytest.mark.slow
@pytest.mark.skipif(
    not TRANSFORMERS_4, reason="TRANSFORMERS_4_PYTHON names no Python with transformers 4 and diffusers"
)
@pytest.mark.parametrize("inpaints", [False, True])
def test_transformers_4_reads_it_too(tmp_path, inpaints):
    import numpy as np

    source = Source(tiny.make_folder("sd15", tmp_path / "model", in_channels=9) if inpaints else KIT)
    name = write(source, tmp_path / "kit")
    done = subprocess.run(
        [TRANSFORMERS_4, exported.__file__, tmp_path / "kit", tmp_path / "latents.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == name
    assert "newly initialized" not in done.stderr
    theirs = torch.from_numpy(np.load(tmp_path / "latents.npy"))
    assert (ours(source) - theirs).abs().max() <= TOLERANCE
