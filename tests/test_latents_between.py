"""Latents that go from one command to the next: --save-latents and --init-latents."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdcli import cli
from sdcli.diffusion import pipeline
from sdcli.errors import InputError, InvalidRecipe
from sdcli.files import latent_files
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny

FOX = ("arctic fox", "--steps", "2", "-s", "7", "--quiet", "--threads", "1", "-W", "128", "-H", "128")
FLAT = {"model": "tiny", "prompt": "a fox", "steps": 4, "guidance_scale": 5.0, "scheduler": "ddim", "seed": 7} | {
    "width": 64,
    "height": 64,
}


@dataclass(frozen=True)
class Ended:
    """What came of a command, run in this process."""

    status: int
    lines: list[str]
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capfd) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: str) -> Ended:
        status = cli.run(list(arguments))
        out, err = capfd.readouterr()
        return Ended(status, out.splitlines(), err)

    return run_here


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def latents_file(path: Path, shape: tuple[int, ...] = (1, 8, 8, 8), **said: str) -> Path:
    save_file({"latents": torch.randn(shape, generator=torch.Generator().manual_seed(1))}, path, said)
    return path


def test_saved_latents_decode_to_the_picture_and_start_another(run, tmp_path):
    made = run("generate", *FOX, "-o", "x.png", "--save-latents", "z.safetensors", "--json")
    line = json.loads(made.lines[0])
    assert (made.status, line["path"], line["latents"]) == (0, "x.png", "z.safetensors")
    with safe_open(tmp_path / "z.safetensors", framework="pt") as opened:
        z, said = opened.get_tensor("latents"), opened.metadata()
    recipe = json.loads(Image.open(tmp_path / "x.png").text["sdcli"])
    assert z.dtype == torch.float32
    assert list(z.shape) == [1, 8, recipe["recipe"]["height"] // 8, recipe["recipe"]["width"] // 8]
    assert json.loads(said["recipe"]) == recipe["recipe"]
    assert said["model_digest"] == recipe["model_digest"]
    assert run("decode", "z.safetensors", "-o", "again.png", "--quiet", "--threads", "1").status == 0
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "x.png"))

    run("generate", *FOX, "--init-latents", "z.safetensors", "--strength", "0.5", "-o", "y.png")
    made = json.loads(Image.open(tmp_path / "y.png").text["sdcli"])["recipe"]
    sha256 = hashlib.sha256((tmp_path / "z.safetensors").read_bytes()).hexdigest()
    assert {key: made[key] for key in ("init_latents", "init_latents_sha256", "strength")} == {
        "init_latents": "z.safetensors",
        "init_latents_sha256": sha256,
        "strength": 0.5,
    }
    assert not {"image", "mask_blur", "left"} & set(made)
    assert not np.array_equal(pixels(tmp_path / "y.png"), pixels(tmp_path / "x.png"))
    assert run("replay", "y.png", "--verify").status == 0
    command = run("info", "y.png", "--json")
    assert "--init-latents z.safetensors --strength 0.5" in json.loads(command.lines[0])["command"]
    latents_file(tmp_path / "z.safetensors", (1, 8, 8, 8))
    refused = run("replay", "y.png", "--verify")
    assert refused.status == 4
    assert f"has changed since the recipe was made\nhint: give the file with the sha256 {sha256}" in refused.stderr


def test_several_pictures_latents_need_several_names(run, tmp_path):
    refused = run("generate", "a fox", "-n", "2", "--save-latents", "z.safetensors")
    assert refused.status == 2
    assert "--save-latents z.safetensors is the same name for 2 pictures" in refused.stderr
    assert "--save-latents 'z-{index}.safetensors'" in refused.stderr
    assert list(tmp_path.glob("*.*")) == []
    planned = run("generate", "a fox", "-s", "3", "-n", "2", "--save-latents", "z-{index}.safetensors", "--dry-run")
    assert "z-1.safetensors, z-2.safetensors" in "\n".join(planned.lines)
    made = run("generate", "a fox", "-s", "3", "-n", "2", "--steps", "1", "--batch-size", "2", "--save-latents", "z/")
    assert made.status == 0
    first, second = (load_file(tmp_path / "z" / f"a-fox-{seed}.safetensors")["latents"] for seed in (3, 4))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--save-latents", "there.safetensors"], 8, "another name with --save-latents, or replace it with --force"),
        (["--save-latents", "no/z.safetensors"], 8, "mkdir -p no"),
        (["--save-latents", "z.png"], 2, "name it z.safetensors"),
        (["-o", "z.safetensors", "--save-latents", "z.safetensors"], 2, "have the same name z.safetensors"),
        (["--strength", "0.5"], 2, "strength has no effect without"),
        (["--init-latents", "none.safetensors"], 4, "cannot read none.safetensors"),
        (["--init-latents", "there.safetensors", "--strength", "0.01"], 2, "runs none of the"),
        (["--init-latents", "there.safetensors", "-W", "128"], 2, "those of a picture of 64×64"),
    ],
)
def test_what_cannot_be_is_refused_beforehand(run, tmp_path, options, status, words):
    before = latents_file(tmp_path / "there.safetensors").read_bytes()
    refused = run("generate", "a fox", *options)
    assert (refused.status, refused.lines) == (status, [])
    assert words in refused.stderr
    assert (tmp_path / "there.safetensors").read_bytes() == before


def test_a_job_starts_from_latents_too(run, tmp_path):
    latents_file(tmp_path / "z.safetensors")
    start = {"prompt": "a fox", "init_latents": "z.safetensors"}
    jobs = "\n".join(map(json.dumps, ({**start, "seed": 1, "steps": 2, "strength": 0.5}, {**start, "image": "x.png"})))
    (tmp_path / "jobs.jsonl").write_text(jobs)
    done = run("batch", "jobs.jsonl", "-o", "out", "--quiet")
    failed, made = (json.loads(line) for line in done.lines)
    assert "cannot be combined with init_latents" in failed["error"]
    assert (made["status"], made["width"], made["height"]) == ("done", 64, 64)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++-2m"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_latents_start_as_diffusers_own_do(pair, tmp_path, scheduler, strength):
    made: pairs.Pair = pair("sd15")
    z = load_file(latents_file(tmp_path / "z.safetensors", (1, 4, 8, 8)))["latents"]
    made.set_scheduler(scheduler, "default")
    parts = {key: value for key, value in made.pipe.components.items() if key != "image_encoder" or value is not None}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    asked = {"strength": strength, "num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}
    expected = pipe("a fox", image=z, generator=torch.Generator("cpu").manual_seed(7), **asked).images
    said = {"init_latents": str(tmp_path / "z.safetensors"), "strength": strength}
    recipe = Recipe.from_dict({**FLAT, **said, "scheduler": scheduler})
    with torch.inference_mode():
        inputs = tiny.inputs_of(made.model, recipe)
        ours = pipeline.sample(made.model, [recipe], inputs=inputs)
        twice = pipeline.sample(made.model, [recipe, recipe.replace(seed=8)], inputs=inputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(twice[:1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_floats_are_read(tmp_path, dtype):
    z = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"latents": z}, tmp_path / "z.safetensors")
    found = latent_files.read(str(tmp_path / "z.safetensors"), 4, 0.18215)
    assert torch.equal(torch.from_numpy(found.latents), z.float())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"image": "x.png"}, "image cannot be combined with init_latents"),
        ({"mask_image": "x.png"}, "mask_image cannot be combined with init_latents"),
        ({"left": 8}, "left cannot be combined with init_latents"),
        ({"segmentation_map": "x.png"}, "a segmentation map cannot be combined with latents"),
    ],
)
def test_latents_stand_alone(other, words):
    with pytest.raises(InvalidRecipe, match=words):
        Recipe.from_dict({**FLAT, "init_latents": "z.safetensors", **other})
    with pytest.raises(InvalidRecipe, match="init_latents_sha256 has no effect"):
        Recipe.from_dict({**FLAT, "init_latents_sha256": "0" * 64})


def test_a_recipe_of_latents_comes_back_from_its_keys():
    said = {"init_latents": "z.safetensors", "init_latents_sha256": "0" * 64, "strength": 0.5}
    recipe = Recipe.from_dict({**FLAT, **said})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert {key for key in recipe.to_dict() if key not in Recipe.from_dict(FLAT).to_dict()} == set(said)


def test_a_changed_file_is_refused(tmp_path):
    path = latents_file(tmp_path / "z.safetensors")
    with pytest.raises(InputError, match="has changed since"):
        latent_files.read(str(path), 4, 0.18215, recorded="0" * 64)
