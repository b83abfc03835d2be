"""`sdcli edit`: reference images as context, against diffusers' own pipelines, and the command."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from PIL import Image
from torch import Generator

from sdcli.diffusion import packing, pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.models import loading, located
from sdcli.models.source import Source
from sdcli.planning import resolve
from tests import tiny_flow

PROMPT = "make it night"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("editors")
    return {family: tiny_flow.make_folder(family, root / family) for family in tiny_flow.EDITORS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    paths = [root / f"{width}x{height}.png" for width, height in ((80, 100), (70, 64))]
    for path in paths:
        width, height = map(int, path.stem.split("x"))
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return list(map(str, paths))


def load(folder: Path) -> LatentDiffusionModel:
    return loading.load(Source(folder), name="", device=torch.device("cpu"), dtype=torch.float32)


def resolved(folder: Path, images: list[str], **options: Any) -> resolve.Resolved:
    given = {"model": str(folder), "prompt": PROMPT, "steps": 2, "seed": 7, "reference": images, **options}
    return resolve.resolve(located.find(str(folder)), given)


def pipeline_of(folder: Path, model: LatentDiffusionModel) -> Any:
    """The family's own pipeline, of the parts that sdcli loaded."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler.from_config(config), "vae": model.vae}
    parts |= {"transformer": model.network}
    text = [(each.tokenizer, each.model) for each in model.text_encoders]
    if model.architecture == "flux2":
        distilled = json.loads((folder / "model_index.json").read_text())["is_distilled"]
        made: Any = Flux2KleinPipeline(tokenizer=text[0][0], text_encoder=text[0][1], is_distilled=distilled, **parts)
    elif model.architecture == "flux":
        clip = tiny_flow.pipeline_of(folder).tokenizer
        encoders = {"text_encoder": text[0][1], "text_encoder_2": text[1][1], "tokenizer_2": text[1][0]}
        made = FluxKontextPipeline(tokenizer=clip, **encoders, **parts)
    else:
        processor: Any = Processor(model.text_encoders[0])
        encoders = {"tokenizer": text[0][0], "text_encoder": text[0][1]}
        made = QwenImageEditPlusPipeline(processor=processor, **encoders, **parts)
    made.set_progress_bar_config(disable=True)
    return made


class Processor:
    """What Qwen2VLProcessor does with images and one text; that class needs torchvision."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def __call__(self, text: list[str], images: list[Image.Image], padding: bool, return_tensors: str) -> Any:
        prepared = self.encoder.image_processor(images=images, return_tensors="pt")
        (line,) = text
        for time, height, width in prepared.image_grid_thw.tolist():
            line = line.replace("<|image_pad|>", "<|placeholder|>" * (time * height * width // 4), 1)
        tokens = self.encoder.tokenizer(line.replace("<|placeholder|>", "<|image_pad|>"), return_tensors="pt")
        found = {**tokens, **prepared}
        return SimpleNamespace(to=lambda device: found)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", tiny_flow.EDITORS)
def test_latents_are_those_of_diffusers(folders, images, family, count, monkeypatch):
    """The sizes of about a megapixel to which images are fitted are replaced by small ones, on both sides."""
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 160), (96, 128), (160, 64)])
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64**2)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 128**2)
    if family == "flux-kontext" and count == 2:
        pytest.skip("it takes one image")
    folder, given = folders[family], images[:count]
    model, size = load(folder), {"width": 64, "height": 96}
    found = resolved(folder, given, negative_prompt="blue" if family == "qwen-image-edit" else "", **size)
    ours = pipeline.sample(model, [found.recipe], inputs=found.inputs)
    scale = found.recipe.sampling.guidance_scale
    options = {"guidance_scale": scale}
    if family == "qwen-image-edit":
        options = {"true_cfg_scale": scale, "negative_prompt": "blue"}
    if family == "flux-kontext":
        options |= {"max_area": 64 * 96}
    pictures = [Image.open(each).convert("RGB") for each in given]
    expected = pipeline_of(folder, model)(
        image=pictures if family != "flux-kontext" else pictures[0],
        prompt=PROMPT,
        num_inference_steps=2,
        generator=Generator().manual_seed(7),
        output_type="latent",
        **size,
        **options,
    ).images
    assert expected.std() > 0.1
    denormalized = model.latent_space.denormalize(ours)
    as_theirs = denormalized if model.architecture == "flux2" else packing.pack(ours)
    assert (as_theirs - expected).abs().max() <= 1e-4
    without = pipeline.sample(model, [found.recipe.replace(reference=[], reference_sha256=[])])
    assert (without - ours).abs().max() > 0.01


def test_the_picture_has_the_size_of_the_first_image(folders, images, monkeypatch):
    folder = folders["flux2-klein"]
    found = resolved(folder, images)
    recipe = found.recipe
    assert (recipe.references.match_reference, len(recipe.references.reference_sha256)) == (True, 2)
    assert recipe.width * recipe.height == pytest.approx(1024**2, rel=0.05)
    assert recipe.width / recipe.height == pytest.approx(80 / 100, rel=0.03)
    smaller = recipe.replace(width=64, height=80)
    assert pipeline.run(load(folder), [smaller], inputs=found.inputs)[0].image.size == (80, 100)
    sized = resolved(folder, images, width=64)
    assert (sized.recipe.width, sized.recipe.height, sized.recipe.references.match_reference) == (64, 80, False)
    assert pipeline.run(load(folder), [sized.recipe], inputs=sized.inputs)[0].image.size == (64, 80)


@pytest.mark.parametrize(
    ("family", "count", "words"),
    [
        ("flux-kontext", 2, "at most 1 reference image, not 2"),
        ("qwen-image-edit", 0, "this model edits images, and there is none"),
        ("kit", 1, "no reference images"),
    ],
)
def test_numbers_of_images_that_a_model_does_not_take(folders, images, family, count, words):
    model = "kit" if family == "kit" else str(folders[family])
    with pytest.raises(InvalidRecipe, match=words):
        resolve.resolve(located.find(model), {"model": model, "prompt": PROMPT, "reference": images[:count]})


def test_the_command(run, folders, images, tmp_path):
    names = [shutil.copy(each, tmp_path) and Path(each).name for each in images]
    done = run("edit", *names, PROMPT, "-m", folders["flux2-klein"], "-W", "64", "-o", "night.png")
    assert (done.status, done.lines) == (0, ["night.png"])
    with Image.open(tmp_path / "night.png") as picture:
        assert picture.size == (64, 80)
    told = json.loads(run("info", "night.png", "--json").stdout)
    assert told["recipe"]["reference"] == names
    assert told["command"].startswith("sdcli edit 80x100.png 70x64.png 'make it night' -m ")
    assert run("replay", "--verify", "night.png").status == 0


def test_wrong_uses_of_the_command(run, images):
    for arguments, words in (
        (["edit", PROMPT], "there is no image to edit"),
        (["edit", images[0], PROMPT, "-m", "kit"], "no reference images"),
        (["edit", "nowhere.png", PROMPT, "-m", "kit"], "no reference images"),
    ):
        done = run(*arguments)
        assert done.status == 2
        assert words in done.stderr
