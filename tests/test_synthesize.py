"""`sdcli synthesize`: U-Nets that take a map beside their latents, and ControlNets that read one."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.diffusion import pipeline
from sdcli.diffusion.model import ControlNet
from sdcli.errors import InvalidRecipe, ModelCorrupt
from sdcli.files import palette
from sdcli.files.palette import Class
from sdcli.models import loading, located, registry
from sdcli.models.addons.controlnet import for_maps
from sdcli.models.loading import controlnet
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.planning.command_line import command_of
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny
from tests.conftest import Run, clean_environment
from tests.test_light import HEAVY, modules_of

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CLASSES = (Class(0, "sky", (120, 180, 240)), Class(1, "sand", (240, 214, 154)), Class(2, "fox", (255, 128, 0)))
FAST = ("--steps", "2", "--seed", "3", "--dtype", "float32", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model that takes maps of three classes."""
    return tiny.make_semantic_folder(tmp_path_factory.mktemp("semantic") / "tiny-semantic", CLASSES)


def random_map(size: tuple[int, int] = (64, 64), classes: tuple[Class, ...] = CLASSES) -> np.ndarray:
    return np.random.default_rng(5).integers(0, len(classes), (size[1], size[0]), dtype=np.uint8)


def write_map(path: Path, indices: np.ndarray, classes: tuple[Class, ...] = CLASSES) -> None:
    Image.fromarray(np.array([each.color for each in classes], dtype=np.uint8)[indices]).save(path)


def diffusers_loop(folder: Path, channels: torch.Tensor, scheduler: str, guidance_scale: float) -> torch.Tensor:
    """Latents by diffusers' own parts and a loop written here: the same map beside both halves of guidance."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    parts = {"unet": unet, "safety_checker": None, "feature_extractor": None}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, **parts, local_files_only=True)
    made = pairs.SCHEDULERS[scheduler]
    steps = getattr(diffusers, made[0]).from_config(pipe.scheduler.config, **made[1])
    steps.set_timesteps(4)
    embeds, empty = pipe.encode_prompt(pairs.DEFAULTS["prompt"], "cpu", 1, True, negative_prompt="")
    generator = torch.Generator("cpu").manual_seed(pairs.SEED)
    latents = torch.randn((1, 4, 8, 8), generator=generator) * steps.init_noise_sigma
    with torch.no_grad():
        for timestep in steps.timesteps:
            sample = steps.scale_model_input(latents, timestep)
            taken = torch.cat([sample, channels], dim=1)
            without = unet(taken, timestep, encoder_hidden_states=empty).sample
            noise_pred = unet(taken, timestep, encoder_hidden_states=embeds).sample
            if guidance_scale > 1:
                noise_pred = without + guidance_scale * (noise_pred - without)
            extra = {"generator": generator} if scheduler == "euler-a" else {}
            latents = steps.step(noise_pred, timestep, latents, **extra).prev_sample
    return latents


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "dpm++-2m"])
def test_a_map_beside_the_latents_is_what_an_independent_loop_makes_of_it(folder, tmp_path, scheduler, guidance_scale):
    indices = random_map()
    write_map(tmp_path / "map.png", indices)
    shares = np.stack([(indices == each.index).reshape(8, 8, 8, 8).mean((1, 3)) for each in CLASSES])
    channels = torch.from_numpy(shares[None]).float()
    expected = diffusers_loop(folder, channels, scheduler, guidance_scale)
    model = loading.load(Source(folder), name="semantic", **CPU)
    said = {"segmentation_map": str(tmp_path / "map.png"), "scheduler": scheduler, "guidance_scale": guidance_scale}
    recipe = Recipe.from_dict({"model": "", **pairs.DEFAULTS, **said})
    assert expected.std() > 0.1
    ours = pipeline.sample(model, [recipe], inputs=tiny.inputs_of(model, recipe))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)  # latents up to 30
    write_map(tmp_path / "map.png", indices[::-1])
    assert (pipeline.sample(model, [recipe], inputs=tiny.inputs_of(model, recipe)) - expected).abs().max() > 1e-2


def test_a_controlnet_reads_the_map_in_the_colours_of_its_classes(pair, tmp_path):
    """As diffusers' pipeline with the map as a picture; the file itself holds indices."""
    classes = palette.shipped("ade20k")
    indices = random_map(classes=classes)
    Image.fromarray(indices).save(tmp_path / "map.png")
    table = np.array([each.color for each in classes], dtype=np.uint8)
    tiny.make_controlnet("sd15", tmp_path / "seg")
    made = pair("sd15")
    made.set_scheduler("ddim", "default")
    net = diffusers.ControlNetModel.from_pretrained(tmp_path / "seg")
    kind = diffusers.StableDiffusionControlNetPipeline
    pipe = kind(**made.pipe.components, controlnet=net, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        pairs.DEFAULTS["prompt"],
        image=Image.fromarray(table[indices]),
        num_inference_steps=4,
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.8,
        generator=torch.Generator("cpu").manual_seed(pairs.SEED),
        output_type="latent",
    ).images
    beside = {"seg": ControlNet(controlnet.load(Source(tmp_path / "seg"), **CPU), classes)}
    said = {"segmentation_map": str(tmp_path / "map.png"), "control": "seg:0.8"}
    recipe = Recipe.from_dict({"model": "", **pairs.DEFAULTS, **said})
    model = replace(made.model, controlnets=beside)
    assert (pipeline.sample(model, [recipe], inputs=tiny.inputs_of(model, recipe)) - expected).abs().max() <= 1e-4


def test_a_map_becomes_a_picture_that_says_how_and_can_be_made_again(run: Run, folder: Path, tmp_path: Path):
    write_map(tmp_path / "map.png", random_map((90, 64)))
    done = run("synthesize", "map.png", "a fox", "-m", folder, "-o", "out.png", *FAST)
    assert done.status == 0, done.stderr
    assert done.lines == ["out.png"]
    assert "note: map.png is 90×64, and used at 88×64, without 2 pixels of its width" in done.stderr
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (88, 64)
        recipe = json.loads(picture.info["sdcli"])["recipe"]
    assert (recipe["segmentation_map"], len(recipe["segmentation_sha256"])) == ("map.png", 64)
    assert "snap" not in recipe
    assert run("replay", "--verify", "out.png").lines == ["out.png"]
    shown = run("info", "out.png").lines[-1]
    assert "sdcli synthesize map.png 'a fox' -m" in shown
    assert "-W 88 -H 64" in shown
    write_map(tmp_path / "map.png", random_map((90, 64))[::-1])
    again = run("replay", "--verify", "out.png")
    assert (again.status, "has changed since" in again.stderr) == (4, True)


def test_a_prompt_is_not_needed_and_a_plan_names_the_map(run: Run, folder: Path, tmp_path: Path):
    write_map(tmp_path / "map.png", random_map())
    done = run("synthesize", "map.png", "-m", folder, "--dry-run", "--json", "-n", "2", *FAST)
    assert done.status == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["recipe"]["prompt"], plan["recipe"]["segmentation_map"]) == ("", "map.png")
    assert plan["paths"] == ["picture-3.png", "picture-4.png"]


def test_classes_are_listed_for_people_and_programs(run: Run, folder: Path):
    done = run("synthesize", "--classes", "-m", folder)
    assert [line.split() for line in done.lines] == [
        ["0", "sky", "#78b4f0"],
        ["1", "sand", "#f0d69a"],
        ["2", "fox", "#ff8000"],
    ]
    listed = [json.loads(line) for line in run("synthesize", "--classes", "--json", "-m", folder).lines]
    assert listed == json.loads((folder / "classes.json").read_text())
    assert len(run("synthesize", "--classes", "--control", "seg-sd15").lines) == 150


def test_a_terminal_shows_the_colours(folder: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sdcli", "synthesize", "--classes", "-m", str(folder)]
    around = clean_environment(tmp_path) | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    around |= {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(command, stdout=theirs, env=around, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "48;2;255;128;0m" in shown


@pytest.mark.parametrize("arguments", [["synthesize", "--classes", "--control", "seg-sd15"], ["synthesize", "--help"]])
def test_answers_import_nothing_heavy(arguments, tmp_path: Path):
    assert not modules_of(arguments, tmp_path, 0) & HEAVY


def test_a_map_that_does_not_fit_is_refused_before_torch(folder: Path, tmp_path: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "map.png")
    assert modules_of(["synthesize", "map.png", "-m", str(folder)], tmp_path, 4) & HEAVY <= {"PIL", "numpy"}


def test_refusals_have_two_lines_and_their_status(run: Run, folder: Path, sd15: Path, tmp_path: Path):
    write_map(tmp_path / "map.png", random_map())
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    for status, said, arguments in (
        (2, "MAP is missing", ["synthesize"]),
        (4, "#ff0000, in 4,096 pixels, the first at 0, 0", ["synthesize", "red.png", "-m", folder]),
        (4, "cannot read none.png", ["synthesize", "none.png", "-m", folder]),
        (2, "not a segmentation map", ["synthesize", "map.png", "-m", sd15]),
        (2, "takes a segmentation map of 3 classes", ["generate", "x", "-m", folder]),
        (2, "takes a segmentation map of 3 classes", ["img2img", "map.png", "x", "-m", folder]),
    ):
        done = run(*arguments)
        assert (done.status, done.stdout) == (status, b""), arguments
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert said in error
        assert hint.startswith("hint: ")
    snapped = run("synthesize", "red.png", "-m", folder, "--snap", "--dry-run")
    assert (snapped.status, "4,096 of 4,096 pixels" in snapped.stderr) == (0, True)


def test_what_a_u_net_takes_is_said(tmp_path: Path, folder: Path):
    write_map(tmp_path / "map.png", random_map())
    said = {"prompt": "x", "model": "m", "segmentation_map": str(tmp_path / "map.png")}
    nine = tiny.make_folder("sd15", tmp_path / "nine", in_channels=9)
    with pytest.raises(InvalidRecipe, match="a mask and a masked image"):
        tiny.recipe_for(ModelEntry("m", folder=str(nine)), said)
    (nine / "classes.json").write_text((folder / "classes.json").read_text())
    with pytest.raises(ModelCorrupt, match="lists 3 classes, and its U-Net has 5"):
        tiny.recipe_for(ModelEntry("m", folder=str(nine)), said)


def with_config(model: LocatedModel, config: Mapping[str, Any]) -> LocatedModel:
    """The model as if that were its U-Net's config."""
    other = replace(model)
    other.__dict__["denoiser_config"] = config
    return other


def test_an_sd15_gets_the_controlnet_that_reads_maps(sd15: Path):
    """Told from the features of a token, 768; which one it is stands in the recipe."""
    model = located.locate(ModelEntry("m", folder=str(sd15)))
    config = {"cross_attention_dim": 768, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    assert for_maps(with_config(model, config)) == "seg-sd15"
    with pytest.raises(InvalidRecipe, match="takes a text, not a segmentation map") as refused:
        for_maps(with_config(model, {**config, "cross_attention_dim": 1024}))
    assert "use -m kit-semantic, or use --control with a ControlNet" in refused.value.hint
    assert "cross_attention_dim 1024" in refused.value.hint


def test_the_help_names_the_model_that_is_taken(run: Run, tmp_path: Path):
    write_map(tmp_path / "map.png", random_map())
    shown = run("synthesize", "--help", env={"COLUMNS": "200"}).stdout.decode()
    taken = json.loads(run("synthesize", "map.png", "--snap", "--dry-run", "--json").stdout)["recipe"]["model"]
    assert f"[default: {taken}]" in shown
    assert taken == "kit-semantic"


def test_the_model_for_maps_is_the_first_that_is_shipped(monkeypatch, folder: Path):
    monkeypatch.setattr(registry, "shipped", lambda: {"far": ModelEntry("far", repo="a/b")})
    assert registry.for_maps() == "kit"
    here = {"sd": ModelEntry("sd", repo="a/b"), "tiny": ModelEntry("tiny", folder=str(folder))}
    monkeypatch.setattr(registry, "shipped", lambda: here)
    assert registry.for_maps() == "tiny"


def test_the_classes_belong_to_the_model(tmp_path: Path, folder: Path, sd15: Path):
    """To its facts, its digest, and to a model that takes its U-Net from there."""
    entry = ModelEntry("m", folder=str(folder))
    assert located.locate(entry).facts.classes == CLASSES
    copied = tiny.make_semantic_folder(tmp_path / "copy", CLASSES)
    assert Source(copied).sha256 == Source(folder).sha256
    composed = Source(sd15, parts=(("unet", folder / "unet"),))
    assert registry.read_facts(composed).classes == CLASSES
    assert loading.load(composed, name="m", **CPU).classes == CLASSES
    before = composed.sha256
    palette.write(copied, (*CLASSES[:2], Class(2, "owl", (255, 128, 0))))
    assert Source(copied).sha256 != Source(folder).sha256
    assert Source(sd15, parts=(("unet", copied / "unet"),)).sha256 != before


def test_an_export_takes_the_classes_along(run: Run, folder: Path, tmp_path: Path):
    done = run("models", "export", folder, "out")
    assert done.status == 0, done.stderr
    assert registry.read_facts(Source(tmp_path / "out")).classes == CLASSES
    assert run("models", "export", folder, "out", "--force").status == 0
    tiny.make_controlnet("sd15", tmp_path / "net")
    refused = run("models", "export", "net", "other")
    assert (refused.status, "is a ControlNet" in refused.stderr) == (2, True)


def test_a_recipe_with_a_map_is_shown_as_its_command():
    plain = tiny.recipe_for(registry.find("kit"), {"prompt": "a fox", "model": "kit", "seed": 1})
    made = plain.replace(segmentation_map="m.png", snap=True, control=["seg:0.5", "canny=e.png"], width=64, height=64)
    assert command_of(located.find("kit"), [made]) == (
        "sdcli synthesize m.png 'a fox' -m kit -W 64 -H 64 -s 1 --snap --control seg:0.5 --control canny=e.png"
    )
