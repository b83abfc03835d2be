"""SDXL's refiner against diffusers' two pipelines, and what a refiner cannot be combined with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Generator, Tensor

from sdcli.diffusion import pipeline, refine
from sdcli.diffusion.denoise import Step
from sdcli.errors import InvalidRecipe, ModelError
from sdcli.files import foreign, infotext
from sdcli.files.canvas import InitialImage
from sdcli.making import kept
from sdcli.models import assemble, located
from sdcli.planning import resolve
from sdcli.planning.memory import MemoryPlan
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny

SLOW = pytest.mark.slow
SIZE = {"width": 64, "height": 96}
MACHINE = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sdxl")
    return tiny.make_folder("sdxl", root / "base"), tiny.make_refiner(root / "refiner")


@pytest.fixture(scope="module")
def pipes(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    base = StableDiffusionXLPipeline.from_pretrained(folders[0], add_watermarker=False)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folders[1], text_encoder=None, tokenizer=None, add_watermarker=False
    )
    for each in (base, refiner):
        each.set_progress_bar_config(disable=True)
    return base, refiner


def resolved(folders: tuple[Path, Path], **options: Any) -> resolve.Resolved:
    base, refiner = map(str, folders)
    asked = {
        **pairs.DEFAULTS,
        **SIZE,
        **MACHINE,
        "model": base,
        "refiner": refiner,
        "negative_prompt": "blue",
        **options,
    }
    return resolve.resolve(located.find(base), asked)


def theirs(pipes: tuple[Any, Any], recipe: Recipe) -> Tensor:
    """As diffusers' documentation says: the base until `denoising_end`, then the refiner from there on."""
    kind, options = pairs.SCHEDULERS[recipe.sampling.scheduler]
    given: dict[str, Any] = {"prompt": recipe.condition.prompt, "negative_prompt": recipe.condition.negative_prompt}
    given |= {"num_inference_steps": recipe.sampling.steps, "guidance_scale": recipe.sampling.guidance_scale}
    given |= {"output_type": "latent"}
    base, refiner = pipes
    for pipe in pipes:
        module = __import__("diffusers", fromlist=[kind])
        pipe.scheduler = getattr(module, kind).from_config(pipe.scheduler.config, **options)
    switch, generator = recipe.refiner.refiner_switch, Generator().manual_seed(recipe.seed)
    latents = base(**given, **SIZE, denoising_end=switch, generator=generator).images
    return refiner(**given, image=latents, denoising_start=switch).images


@pytest.mark.parametrize(
    ("scheduler", "steps", "switch"),
    [
        ("ddim", 5, 0.8),
        pytest.param("euler", 10, 0.75, marks=SLOW),
        ("dpm++-2m", 10, 0.6),
        pytest.param("unipc", 10, 0.8, marks=SLOW),
    ],
)
def test_latents_are_those_of_two_pipelines(folders, pipes, scheduler, steps, switch):
    found = resolved(folders, scheduler=scheduler, steps=steps, refiner_switch=switch)
    model = assemble.load(found.weights, found.recipe)
    steps_seen: list[Step] = []
    ours = pipeline.sample(model, [found.recipe], steps_seen.append)
    expected = theirs(pipes, found.recipe)
    assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max())
    assert [each.index for each in steps_seen] == list(range(1, steps + 1))
    assert {each.total for each in steps_seen} == {steps}
    alone = resolved(folders, scheduler=scheduler, steps=steps, refiner=None)
    assert (pipeline.sample(assemble.load(alone.weights, alone.recipe), [alone.recipe]) - ours).abs().max() > 0.01


def test_a_heun_step_is_not_cut_in_two(folders):
    """Of 5 steps, 2 are of the refiner."""
    found = resolved(folders, scheduler="heun", steps=5, refiner_switch=0.6)
    model = assemble.load(found.weights, found.recipe)
    calls: list[str] = []
    for name, network in (("base", model.network), ("refiner", model.refiner.network)):
        network.register_forward_pre_hook(lambda module, arguments, name=name: calls.append(name))
    seen: list[int] = []
    pipeline.sample(model, [found.recipe], lambda step: seen.append(step.index))
    assert (len(calls), seen) == (9, [1, 2, 3, 4, 5])
    assert calls.count("base") % 2 == 0
    assert calls == sorted(calls)


def test_image_to_image_and_batches(folders):
    image = InitialImage(Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8)))
    found = resolved(folders, steps=10, batch_size=2)
    model, recipe = assemble.load(found.weights, found.recipe), found.recipe
    both = pipeline.sample(model, [recipe, recipe.replace(seed=8)])
    assert (both[1] - pipeline.sample(model, [recipe.replace(seed=8)])[0]).abs().max() <= 1e-4
    redrawn = recipe.replace(image="given", strength=0.1)  # less than the refiner's share
    inputs = tiny.inputs_of(model, redrawn, image)
    seen: list[int] = []
    assert pipeline.sample(model, [redrawn], lambda step: seen.append(step.index), inputs=inputs).isfinite().all()
    assert seen == [1]


def test_stages_give_the_same_latents(folders):
    """Text encoders, the refiner's too, are dropped before the networks are loaded."""
    found = resolved(folders)
    whole = pipeline.sample(assemble.load(found.weights, found.recipe), [found.recipe])
    staged = kept.load(found.weights, found.recipe, MemoryPlan(staged=True), inputs=found.inputs)
    refiner = staged.model.refiner
    assert refiner is not None
    assert not refiner.has_text_encoders
    contexts = staged.contexts_of(found.recipe)
    assert (pipeline.sample(staged.model, [found.recipe], contexts=contexts) == whole).all()


def test_the_command(run, folders, tmp_path):
    base, refiner = folders
    words = ("-m", base, "--refiner", refiner, "--steps", "5", "--dtype", "float32", "-o", "fox.png")
    done = run("generate", "arctic fox", *words, "--json")
    assert done.status == 0, done.stderr
    told = json.loads(run("info", "fox.png", "--json").stdout)
    assert told["recipe"]["refiner"] == str(refiner)
    assert [each["kind"] for each in told["addons"]] == ["refiner"]
    with Image.open(tmp_path / "fox.png") as picture:
        assert "Refiner: refiner, Refiner switch at: 0.8" in picture.info["parameters"]
    assert run("replay", "--verify", "fox.png").status == 0
    line = json.dumps({"prompt": "arctic fox", "refiner": str(refiner), "refiner_switch": 0.5})
    assert run("batch", "-", "-m", base, "--steps", "4", "-o", "out/", stdin=line.encode()).status == 0
    planned = json.loads(run("generate", "fox", *words[:-2], "--dry-run", "--json").stdout)
    assert [len(each["files"]) for each in planned["addons"]] == [2]


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"hires": "2"}, "refiner", "cannot be combined with hires"),
        ({"refiner": None, "refiner_switch": 0.5}, "refiner_switch", "without a refiner"),
        ({"refiner_switch": 1.0}, "refiner_switch", "refiner_switch is 1.0"),
        ({"refiner": "kit"}, "refiner", "kit is not a refiner"),
    ],
)
def test_what_is_refused(folders, options, field, words):
    with pytest.raises(InvalidRecipe, match=words) as raised:
        resolved(folders, **options)
    assert raised.value.field == field


def test_models_without_a_refiner(folders):
    with pytest.raises(InvalidRecipe, match="this model has no refiner"):
        resolve.resolve(located.find("kit"), {"model": "kit", "prompt": "fox", "refiner": str(folders[1])})


def test_no_step_is_left():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    with pytest.raises(InvalidRecipe, match="no step comes after"):
        refine.split(scheduler, scheduler.timesteps, 0.8)
    assert refine.split(scheduler, scheduler.timesteps, 0.7) == (3, 3)


def test_plms_repeats_a_timestep(folders):
    """The first of the refiner's steps is the one that the base leaves."""
    found = resolved(folders, scheduler="pndm", steps=8, refiner_switch=0.5)
    model = assemble.load(found.weights, found.recipe)
    times: list[tuple[str, float]] = []
    for name, network in (("base", model.network), ("refiner", model.refiner.network)):
        network.register_forward_pre_hook(lambda module, given, name=name: times.append((name, float(given[1]))))
    pipeline.sample(model, [found.recipe])
    assert [time for name, time in times if name == "base"] == [876, 751, 751, 626, 501]
    assert [time for name, time in times if name == "refiner"] == [376, 251, 251, 126, 1]


def test_a_refiner_is_no_model(folders):
    found = resolve.resolve(located.find("kit"), {"model": "kit", "prompt": "fox", **MACHINE})
    with pytest.raises(ModelError, match="is a refiner of SDXL") as raised:
        assemble.load(type(found.weights)(located.find(str(folders[1])).source), found.recipe)
    assert "--refiner" in raised.value.hint


def test_a1111s_fields():
    text = "fox\nSteps: 20, Sampler: Euler, Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.7, RNG: CPU"
    found = foreign.from_parameters(infotext.parse(text))
    assert (found.recipe["refiner"], found.recipe["refiner_switch"]) == ("sdxl-refiner", 0.7)
    other = foreign.from_parameters(infotext.parse(text.replace("sd_xl_refiner_1.0", "mine")))
    assert not {"refiner", "refiner_switch"} & other.recipe.keys()
    assert len([each for each in other.unhonoured if each.startswith("Refiner")]) == 2
