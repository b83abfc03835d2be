"""Models of flow matching against diffusers' own pipelines: latents, pixels, image-to-image and other schedulers."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.pipelines.chroma.pipeline_chroma_img2img import ChromaImg2ImgPipeline
from PIL import Image
from torch import Generator, Tensor

from sdcli.diffusion import packing, pipeline, samplers
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe, ModelError
from sdcli.files.canvas import InitialImage
from sdcli.models import assemble, export, loading, located, registry
from sdcli.models.source import Source
from sdcli.planning import resolve, warnings
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe
from tests import tiny, tiny_flow

PROMPT, NEGATIVE = "arctic fox, in the snow", "blue"
SIZE = {"width": 64, "height": 96}
CPU = torch.device("cpu")
FAMILIES = (*tiny_flow.FAMILIES, *tiny_flow.NEWER)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {family: tiny_flow.make_folder(family, root / family) for family in FAMILIES}


def load(folder: Path) -> LatentDiffusionModel:
    return loading.load(Source(folder), name="", device=CPU, dtype=torch.float32)


def recipe_of(folder: Path, initial: InitialImage | None = None, **options: Any) -> Recipe:
    given = {"model": str(folder), "prompt": PROMPT, "steps": 4, "seed": 7, **SIZE, **options}
    return tiny.recipe_for(registry.find(str(folder)), given, given=initial)


def theirs(pipe: Any, recipe: Recipe, **options: Any) -> Any:
    """What a pipeline makes of a recipe, with the options that it takes."""
    taken = inspect.signature(pipe.__call__).parameters
    scale = recipe.sampling.guidance_scale
    as_given = {"use_resolution_binning": False, "clean_caption": False}  # sizes and prompts
    given = {"negative_prompt": recipe.condition.negative_prompt or None, **SIZE, **as_given, **options}
    given |= {"true_cfg_scale": scale} if "true_cfg_scale" in taken and "Qwen" in type(pipe).__name__ else {}
    given |= {} if "Qwen" in type(pipe).__name__ else {"guidance_scale": scale}
    given = {key: value for key, value in given.items() if key in taken and value is not None}
    generator = Generator().manual_seed(recipe.seed)
    return pipe(prompt=PROMPT, num_inference_steps=recipe.sampling.steps, generator=generator, **given).images


def as_theirs(model: LatentDiffusionModel, latents: Tensor) -> Tensor:
    """Latents as the family's pipeline returns them."""
    if model.architecture in ("flux", "qwen_image", "chroma", "krea2"):
        return packing.pack(latents)
    return model.latent_space.denormalize(latents) if model.architecture == "flux2" else latents


NEGATIVES = dict.fromkeys(FAMILIES, NEGATIVE) | dict.fromkeys(
    ("flux-dev", "flux-schnell", "flux2-klein", "flux2-base"), ""
)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_to_image(folders, family):
    """FLUX.2's pipeline takes no negative prompt, FLUX.1's models here have no use for one."""
    folder, guided = folders[family], {"guidance_scale": 3.0} if family == "z-image" else {}
    recipe, model = recipe_of(folder, negative_prompt=NEGATIVES.get(family, ""), **guided), load(folder)
    ours = pipeline.run(model, [recipe])[0]
    pipe = tiny_flow.pipeline_of(folder)
    expected = theirs(pipe, recipe, output_type="latent")
    assert expected.std() > 0.1
    assert (as_theirs(model, ours.latents) - expected).abs().max() <= 1e-4
    pixels = np.asarray(theirs(pipe, recipe, output_type="pil")[0], dtype=np.int16)
    assert pixels.std() > 3
    assert np.abs(np.asarray(ours.image, dtype=np.int16) - pixels).max() <= 1


@pytest.mark.parametrize("family", ["z-image", "flux-dev", "sd3", "qwen-image", "chroma"])
def test_image_to_image(folders, family):
    folder = folders[family]
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8))
    model, given = load(folder), InitialImage(image)
    recipe = recipe_of(folder, given, negative_prompt=NEGATIVES.get(family, ""), image="given", strength=0.5)
    ours = pipeline.sample(model, [recipe], inputs=tiny.inputs_of(model, recipe, given))
    pipe = tiny_flow.pipeline_of(folder)
    if family == "chroma":
        pipe = ChromaImg2ImgPipeline(**pipe.components)
    else:
        pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    expected = theirs(pipe, recipe, image=image, strength=0.5, output_type="latent")
    assert (as_theirs(model, ours) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_pictures(folders, family):
    """Two pictures in one call are those of two calls, with guidance where the family has it."""
    folder, guided = folders[family], {"guidance_scale": 3.0} if family == "z-image" else {}
    model, recipe = load(folder), recipe_of(folder, batch_size=2, steps=2, **guided)
    both = pipeline.sample(model, [recipe, recipe.replace(seed=8)])
    for seed, latents in zip((7, 8), both, strict=True):
        alone = pipeline.sample(model, [recipe.replace(seed=seed)])
        assert (latents - alone[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_inpainting_keeps_the_known_part(folders, family, tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8))
    mask = Image.new("L", (64, 96))
    mask.paste(255, (0, 0, 64, 48))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    files = {"image": str(tmp_path / "image.png"), "mask_image": str(tmp_path / "mask.png"), "mask_blur": 0.0}
    given = {"model": str(folders[family]), "prompt": PROMPT, "steps": 2, "seed": 7, **SIZE, **files}
    resolved = resolve.resolve(located.find(str(folders[family])), given)
    made = np.asarray(pipeline.run(load(folders[family]), [resolved.recipe], inputs=resolved.inputs)[0].image)
    assert (made[48:] == np.asarray(image)[48:]).all()
    assert (made[:48] != np.asarray(image)[:48]).any()


FLOW = [name for name, row in schedulers.TABLE.items() if row.flow is not None and not row.stochastic]


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_every_scheduler_of_flow_matching(folders, family, name):
    """A static and a dynamic shift. diffusers' Heun has a fixed shift, and takes no sigmas.

    The pipelines give no generator to stochastic schedulers.
    """
    folder = folders[family]
    recipe, model = recipe_of(folder, scheduler=name), load(folder)
    ours = pipeline.sample(model, [recipe])
    pipe = tiny_flow.pipeline_of(folder)
    kept = pipe.scheduler
    try:
        row = schedulers.TABLE[name].flow
        config = dict(kept.config)
        if "multistep" in row.module or "singlestep" in row.module:
            config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": kept.config.shift}
        if name == "heun" and family == "flux-dev":
            config["shift"] = float(np.exp(pipe_mu(6 * 4)))
        kind = getattr(__import__(f"diffusers.schedulers.scheduling_{row.module}", fromlist=["x"]), row.class_name)
        pipe.scheduler = kind.from_config(config, **row.options)
        if name == "heun":
            pipe.scheduler = with_any_timesteps(pipe.scheduler)
        expected = theirs(pipe, recipe, output_type="latent", negative_prompt="" if family == "sd3" else None)
    finally:
        pipe.scheduler = kept
    assert (as_theirs(model, ours) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", [name for name, row in schedulers.TABLE.items() if row.flow and row.stochastic])
def test_stochastic_schedulers_use_the_seed(folders, name):
    folder = folders["sd3"]
    model, recipe = load(folder), recipe_of(folder, scheduler=name)
    first, again, other = (pipeline.sample(model, [recipe.replace(seed=seed)]) for seed in (7, 7, 8))
    assert first.isfinite().all()
    assert (first == again).all()
    assert (first - other).abs().max() > 0.1


def pipe_mu(tokens: int) -> float:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    return float(calculate_shift(tokens))


def with_any_timesteps(scheduler: Any) -> Any:
    """FLUX's pipeline passes sigmas and μ, which Heun's class does not take."""
    plain = scheduler.set_timesteps

    def set_timesteps(steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
        plain(steps or len(sigmas), device=device)

    scheduler.set_timesteps = set_timesteps
    return scheduler


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scheduler": "ddim"}, "scheduler"),
        ({"scheduler": "unipc", "sigmas": "karras"}, "sigmas"),
        ({"clip_skip": 2}, "clip_skip"),
        ({"steps": 999}, "steps"),
    ],
)
def test_what_flow_models_do_not_support_is_refused(folders, options, field):
    with pytest.raises(InvalidRecipe) as raised:
        recipe_of(folders["sd3"], **options)
    assert raised.value.field == field


@pytest.mark.parametrize("family", ["z-image", "flux-dev", "flux2-klein", "sd3", "qwen-image"])
def test_bfloat16_is_near_float32(folders, family):
    """As the command loads it, with convolutions in the order that is faster in 16 bits."""
    folder, made = folders[family], []
    for dtype in ("float32", "bfloat16"):
        given = {"model": str(folder), "prompt": PROMPT, "steps": 2, "seed": 7, **SIZE, "device": "cpu", "dtype": dtype}
        resolved = resolve.resolve(located.find(str(folder)), {**given, "threads": 1})
        model = assemble.load(resolved.weights, resolved.recipe)
        made.append(pipeline.run(model, [resolved.recipe])[0].latents)
    assert (made[0] - made[1]).abs().mean() <= 0.06  # of a standard deviation of about 1.2
    assert (made[0] - made[1]).abs().max() > 0


@pytest.mark.parametrize(("batch", "text"), [(1, "1:2.5:0.1-0.8"), (2, "0,1")])
def test_skip_layer_guidance(folders, batch, text):
    """In steps 1 to 3 of 4; and by default in the first fifth, which has one step of 8."""
    folder, steps = folders["sd3"], 4 if batch == 1 else 8
    recipe = recipe_of(folder, skip_layer_guidance=text, negative_prompt=NEGATIVE, batch_size=batch, steps=steps)
    given = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.5}
    given |= {"skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.8}
    given = given if batch == 1 else {"skip_guidance_layers": [0, 1]}
    model = load(folder)
    ours = pipeline.sample(model, [recipe, recipe.replace(seed=8)][:batch])
    expected = theirs(tiny_flow.pipeline_of(folder), recipe, output_type="latent", **given)
    assert (ours[:1] - expected).abs().max() <= 1e-4
    without = pipeline.sample(model, [Recipe.from_dict({**recipe.to_dict(), "skip_layer_guidance": None})])
    assert (ours[:1] - without).abs().max() > 0.01


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("7,", "is '7,'"),
        ("1:2.8:0.5", "is '1:2.8:0.5'"),
        ("1,1", "has the layers 1,1"),
        ("2000", "has the layers 2000"),
        ("1:2.8:0.5-0.2", "is 1:2.8:0.5-0.2"),
        ("1:101", "is 1:101"),
        ("2", "has the layer 2"),
    ],
)
def test_wrong_skip_layer_guidance(folders, text, words):
    with pytest.raises(InvalidRecipe, match=words) as raised:
        recipe_of(folders["sd3"], skip_layer_guidance=text)
    assert raised.value.field == "skip_layer_guidance"
    assert raised.value.hint


@pytest.mark.parametrize(
    ("family", "scale", "words"), [("sd3", 1.0, "guidance is disabled"), ("z-image", 4.0, "does not support it")]
)
def test_skip_layer_guidance_without_effect(folders, family, scale, words):
    recipe = recipe_of(folders[family], skip_layer_guidance="1", guidance_scale=scale)
    found = [each.message for each in warnings.find(located.find(str(folders[family])), recipe)]
    assert any("skip_layer_guidance has no effect" in each and words in each for each in found)


def test_one_step_cannot_be_stretched(folders):
    with pytest.raises(InvalidRecipe, match="cannot use 1 steps"):
        recipe_of(folders["qwen-image"], steps=1)


@pytest.mark.parametrize("sigmas", schedulers.SIGMAS)
def test_spacings_of_euler(sigmas):
    config = {"prediction_type": schedulers.FLOW, "shift": 3.0}
    made = samplers.make("euler", sigmas, config)
    made.set_timesteps(5)
    assert made.sigmas[0] == 1
    assert made.sigmas[-1] == 0
    assert (made.sigmas.diff() < 0).all()


def test_a_long_prompt_is_cut_with_a_note(folders):
    model = load(folders["sd3"])
    recipe = recipe_of(folders["sd3"], prompt="fox " * 100, steps=1)
    result = pipeline.run(model, [recipe])[0]
    assert any("takes 256: the rest is not used" in each for each in result.warnings)
    assert not any("the rest" in each for each in pipeline.run(model, [recipe.replace(prompt="fox")])[0].warnings)


@pytest.mark.parametrize(
    ("family", "part", "other"),
    [
        ("flux-dev", "vae", "qwen-image"),
        ("sd3", "text_encoder", "flux-dev"),
        ("flux2-klein", "vae", "flux-dev"),
        ("flux2-klein", "text_encoder", "z-image"),
        ("qwen-image", "vae", "z-image"),
        ("flux-dev", "transformer", "sd3"),
        ("flux-dev", "text_encoder_2", "z-image"),
    ],
)
def test_parts_of_another_family_do_not_fit(folders, family, part, other):
    there = folders[other] / part.removesuffix("_2" if other == "z-image" else " ")
    with pytest.raises(ModelError) as raised:
        loading.load(Source(folders[family], parts=((part, there),)), name="", device=CPU, dtype=torch.float32)
    assert raised.value.hint


@pytest.mark.parametrize("family", ["flux-dev", "sd3-without-t5", "qwen-image"])
def test_an_export_is_the_model(folders, family, tmp_path):
    name = export.export(Source(folders[family]), tmp_path, lambda part, count: None)
    assert name == tiny_flow.MAKERS[family][0]
    recipe = recipe_of(folders[family], steps=2)
    assert (pipeline.sample(load(tmp_path), [recipe]) == pipeline.sample(load(folders[family]), [recipe])).all()
    assert tiny_flow.pipeline_of(tmp_path).transformer is not None
