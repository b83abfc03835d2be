"""What is recorded while a picture is made: that it is right, and that the picture is the same."""

import math

import pytest
import torch

from sdcli.diffusion import pipeline, samplers
from sdcli.diffusion.attention import cross_attention
from sdcli.diffusion.estimate import clean_latents, sigma_of
from sdcli.diffusion.watching import Recorder
from sdcli.making.maker import LocalMaker, Task
from sdcli.models import registry
from sdcli.models.weights import Weights
from tests import tiny, tiny_flow


@pytest.fixture(scope="module")
def task(sd15):
    """`task(scheduler="euler")` is a picture of a tiny model, with guidance."""
    entry = registry.find(str(sd15))
    flat = {"prompt": "a fox", "model": str(sd15), "steps": 3, "seed": 7, "dtype": "float32", "threads": 1}
    flat |= {"width": 64, "height": 64, "guidance_scale": 5.0}
    return lambda **options: Task(Weights(registry.locate(entry)), [tiny.recipe_for(entry, {**flat, **options})])


@pytest.fixture(scope="module")
def maker():
    return LocalMaker()


@pytest.mark.parametrize("scheduler", ["euler-a", "pndm"])
def test_the_picture_is_that_of_generate(task, maker, scheduler):
    asked, recorder = task(scheduler=scheduler), Recorder()
    (watched,) = maker.make(asked, watch=recorder)
    (plain,) = maker.make(asked)
    assert watched.png == plain.png
    assert len(recorder.seen) >= 3


def test_guidance_is_the_step_from_one_prediction_past_the_other(task, maker):
    recorder = Recorder()
    maker.make(task(), watch=recorder)
    for each in recorder.seen:
        guided = each.unconditional + 5.0 * (each.conditional - each.unconditional)
        assert torch.allclose(guided, each.prediction, atol=1e-3 * float(each.prediction.abs().max()))


def test_without_guidance_there_is_no_unconditional_prediction(task, maker):
    recorder = Recorder()
    maker.make(task(guidance_scale=1.0), watch=recorder)
    assert [each.unconditional for each in recorder.seen] == [None] * 3
    assert torch.allclose(recorder.seen[0].conditional, recorder.seen[0].prediction, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_what_f_expects_the_picture_to_be_is_what_the_scheduler_does(scheduler, kind, sd15):
    from sdcli.models.source import Source

    config = {**Source(sd15).scheduler_config(), "prediction_type": kind}
    made = samplers.make(scheduler, "default", config)
    made.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    latents, prediction = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    for timestep in made.timesteps:
        scaled = made.scale_model_input(latents, timestep)
        expected = made.step(prediction, timestep, latents).pred_original_sample
        found = clean_latents(made, scaled, prediction, sigma_of(made, float(timestep)))
        clipped = config.get("clip_sample") and scheduler == "ddim"
        assert torch.allclose(found.clamp(-1, 1) if clipped else found, expected, rtol=1e-3, atol=1e-3)


def test_noise_levels_are_interpolated_between_timesteps(sd15):
    from sdcli.models.source import Source

    made = samplers.make("euler", "karras", Source(sd15).scheduler_config())
    made.set_timesteps(7)
    for timestep, sigma in zip(made.timesteps, made.sigmas, strict=False):
        assert math.isclose(sigma_of(made, float(timestep)), float(sigma), rel_tol=0.02)


def test_maps_are_the_mean_of_the_softmax_of_queries_and_keys(task, maker):
    """Against the scores that diffusers computes, from the inputs of each layer."""
    asked, recorder = task(steps=2), Recorder()
    maker.make(asked, watch=recorder)
    model, context = recorder.bound.model, recorder.bound.context
    maps, hooks = [], []

    def look(layer, given, options):
        text = options["encoder_hidden_states"]
        query, key = (layer.head_to_batch_dim(each) for each in (layer.to_q(given[0]), layer.to_k(text)))
        scores = layer.get_attention_scores(query, key).reshape(len(text), layer.heads, given[0].shape[1], -1)
        side = math.isqrt(scores.shape[2])
        small = scores[-1].mean(0).T.reshape(1, -1, side, side)
        maps.append(torch.nn.functional.interpolate(small, (8, 8), mode="bilinear")[0])

    for layer in cross_attention(model.network):
        hooks.append(layer.register_forward_pre_hook(look, with_kwargs=True))
    pipeline.run(model, asked.recipes, contexts=[context])
    for hook in hooks:
        hook.remove()
    expected = torch.stack(maps).mean(0)
    assert expected.shape == (77, 8, 8)
    assert torch.allclose(recorder.maps.mean(), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux-schnell"])
def test_joint_attention_of_transformers_is_seen(family, tmp_path):
    folder = tiny_flow.make_folder(family, tmp_path / "model")
    entry = registry.find(str(folder))
    flat = {"prompt": "a fox", "model": str(folder), "steps": 2, "seed": 1, "dtype": "float32", "threads": 1}
    recipe = tiny.recipe_for(entry, {**flat, "width": 64, "height": 96})
    recorder, task = Recorder(), Task(Weights(registry.locate(entry)), [recipe])
    (watched,) = LocalMaker().make(task, watch=recorder)
    assert watched.png == LocalMaker().make(task)[0].png
    maps, tokens = recorder.maps.mean(), recorder.bound.context.prompt_embeds.shape[1]
    height, width = recorder.seen[0].latents.shape[2:]
    assert maps.shape == (tokens, height, width)
    total = maps.sum(0)  # the rest is attention to other places of the picture
    assert float(total.min()) > 0
    assert float(total.max()) < 1
