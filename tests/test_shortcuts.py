"""Shortcuts: caches and token merging, against the whole network, against diffusers' pipelines and against tomesd."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import pytest
import tomesd
import torch
from diffusers.hooks import FirstBlockCacheConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from sdcli import cli
from sdcli.diffusion import deepcache, packing, pipeline, token_merging
from sdcli.diffusion.denoise import Evaluation
from sdcli.errors import InvalidRecipe
from sdcli.models import loading, registry
from sdcli.models.source import Source
from sdcli.recipe.cache import Cache
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny, tiny_flow

CPU = torch.device("cpu")
ASKED = {**pairs.DEFAULTS, "model": "x", "steps": 5, "negative_prompt": "blue"}


@contextmanager
def whole_but_cached(network: Any, interval: int) -> Iterator[list[int]]:
    """Run the whole U-Net in each evaluation, but, after the first ones, with the deep features of the last
    `interval`th as the input of the last layer: what DeepCache defines. Yields the number of evaluations so far.
    """
    kept: list[Tensor] = []
    count, first = [0], min(interval, 3)

    def last_layer(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        skipped = network.config["block_out_channels"][0]
        if count[0] < first or (count[0] - first + 1) % interval == 0:
            kept[:] = [inputs[0][:, :-skipped]]
        count[0] += 1
        return torch.cat([kept[0], inputs[0][:, -skipped:]], dim=1), *inputs[1:]

    handle = network.up_blocks[-1].resnets[-1].register_forward_pre_hook(last_layer)
    try:
        yield count
    finally:
        handle.remove()


@pytest.mark.parametrize(("interval", "whole"), [(2, [0, 1, 3, 5]), (4, [0, 1, 2, 6])])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_deepcache_is_the_whole_network_with_cached_features(pair, family, interval, whole):
    model, recipe = pair(family).model, Recipe.from_dict({**ASKED, "steps": 7})
    with whole_but_cached(model.network, interval) as count:
        expected = pipeline.sample(model, [recipe])
    assert count == [7]
    calls: list[int] = []
    evaluations: list[int] = []  # each begins with the first layer
    begin = model.network.conv_in.register_forward_hook(lambda *_: evaluations.append(len(evaluations)))
    handle = model.network.mid_block.register_forward_pre_hook(lambda *_: calls.append(evaluations[-1]))
    try:
        ours = pipeline.sample(model, [recipe.replace(cache=f"deepcache:{interval}")])
    finally:
        handle.remove()
        begin.remove()
    assert calls == whole
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - pipeline.sample(model, [recipe])).abs().max() > 0.01


def test_deepcache_passes_controlnets_residuals_on(pair):
    network = pair("sd15").model.network
    generator = Generator().manual_seed(0)
    sample, texts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    skips: list[Tensor] = []
    with whole_but_cached(network, 9), torch.no_grad():
        down = [torch.zeros(1)]
        handles = [
            block.register_forward_hook(lambda _, __, made: skips.extend(made[1])) for block in network.down_blocks
        ]
        network(sample, torch.tensor(9.0), texts)
        for each in handles:
            each.remove()
    first = torch.randn(network.conv_in(sample).shape, generator=generator)
    down = [first, *(torch.randn(each.shape, generator=generator) for each in skips)]
    extra = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": torch.zeros(1)}
    shallow = deepcache.Shallow(network, Cache.parse("deepcache:3"))
    times = (9.0, 8.0, 7.0, 6.0)
    with torch.no_grad(), whole_but_cached(network, 3):
        expected = [network(sample + t, torch.tensor(t), texts, **extra, return_dict=False)[0] for t in times]
    with torch.no_grad():
        for index, t in enumerate(times):
            shallow.evaluation = index
            (made,) = shallow(sample + t, torch.tensor(t), encoder_hidden_states=texts, **extra, return_dict=False)
            assert (made - expected[index]).abs().max() < 1e-5


def test_deep_features_are_computed_again_after_a_pause(pair):
    """Guidance in an interval leaves a denoiser out of use for many evaluations."""
    network = pair("sd15").model.network
    indices: list[int] = []

    def bind(shallow: deepcache.Shallow) -> Any:
        def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
            texts = torch.zeros(1, 5, 32)
            return shallow(latents, timestep, encoder_hidden_states=texts, return_dict=False)[0]

        return denoiser

    denoiser = deepcache.bind(network, Cache.parse("deepcache:3"), bind)
    handle = network.mid_block.register_forward_pre_hook(lambda *_: indices.append(current[0]))
    current = [0]
    try:
        for index in (0, 1, 2, 3, 4, 5, 12, 13, 14, 15):
            current[0] = index
            with torch.no_grad():
                denoiser(torch.zeros(1, 4, 8, 8), torch.tensor(9.0), Evaluation(index, 20))
    finally:
        handle.remove()
    assert indices == [0, 1, 2, 5, 12, 15]


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return tiny_flow.make_folder("flux-schnell", tmp_path_factory.mktemp("cached") / "flux-schnell")


@pytest.mark.parametrize("threshold", [0.9, 0.0001])
def test_a_first_block_cache_is_that_of_diffusers_pipeline(flux, threshold):
    """FLUX.1's pipeline calls its transformer for each half of guidance by a negative prompt."""
    model = loading.load(Source(flux), name="", device=CPU, dtype=torch.float32)
    texts = {"prompt": "arctic fox", "negative_prompt": "blue", "true_cfg_scale": 3.0}
    asked = {"model": str(flux), **texts, "steps": 6, "seed": 7, "width": 64, "height": 64}
    recipe = tiny.recipe_for(registry.find(str(flux)), asked)
    exact = pipeline.sample(model, [recipe])
    ours = pipeline.sample(model, [recipe.replace(cache=f"first-block:{threshold}")])
    pipe = tiny_flow.pipeline_of(flux)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    scale = recipe.sampling.guidance_scale
    more = {"num_inference_steps": 6, "width": 64, "height": 64, "guidance_scale": scale, "output_type": "latent"}
    expected = pipe(**texts, **more, generator=Generator().manual_seed(7)).images
    pipe.transformer.disable_cache()
    assert (packing.pack(ours) - expected).abs().max() < 1e-4
    assert torch.equal(ours, exact) == (threshold < 0.1)
    assert torch.equal(pipeline.sample(model, [recipe]), exact)  # nothing is left in the network


LAYERS = {"dit": "num_layers", "qwen-image": "num_layers", "pixart-sigma": "num_layers"}


@pytest.mark.parametrize("family", LAYERS)
def test_other_transformers_skip_blocks_too(family, tmp_path):
    folder = tmp_path / family
    tiny.make_dit(folder) if family == "dit" else tiny_flow.make_folder(family, folder)
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {LAYERS[family]: 3}
    kind = getattr(diffusers, config["_class_name"])
    torch.manual_seed(0)
    tiny_flow.shaken(kind.from_config(config)).save_pretrained(folder / "transformer")
    model = loading.load(Source(folder), name="", device=CPU, dtype=torch.float32)
    text = {"label": "279"} if family == "dit" else {"prompt": "arctic fox"}
    asked = {"model": str(folder), **text, "steps": 6, "seed": 7, "width": 64, "height": 64, "guidance_scale": 3.0}
    recipe = tiny.recipe_for(registry.find(str(folder)), asked)
    calls: list[int] = []
    blocks = model.network.transformer_blocks
    original = blocks[-1].forward
    blocks[-1].forward = lambda *inputs, **options: (calls.append(1), original(*inputs, **options))[1]
    exact = pipeline.sample(model, [recipe])
    whole = len(calls)
    assert torch.equal(pipeline.sample(model, [recipe.replace(cache="first-block:0.000000001")]), exact)
    assert len(calls) == 2 * whole
    ours = pipeline.sample(model, [recipe.replace(cache="first-block:1")])
    assert len(calls) < 3 * whole
    assert ours.isfinite().all()


def test_a_transformer_of_one_block_has_no_first_block_cache(tmp_path):
    folder = tiny_flow.make_folder("qwen-image", tmp_path / "qwen-image")
    model = loading.load(Source(folder), name="", device=CPU, dtype=torch.float32)
    asked = {"model": str(folder), "prompt": "a", "steps": 2, "width": 64, "height": 64, "cache": "first-block"}
    with pytest.raises(InvalidRecipe, match="a single block"):
        pipeline.sample(model, [tiny.recipe_for(registry.find(str(folder)), asked)])


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(2, 7), st.floats(0.05, 0.9), st.integers(0, 2**31))
def test_tokens_are_matched_as_by_tomesd(height, width, ratio, seed):
    tokens = torch.randn(2, height * width, 5, generator=Generator().manual_seed(seed))
    count = int(height * width * ratio)
    merge, unmerge = token_merging.match(tokens, (height, width), count, Generator().manual_seed(seed))
    generator = Generator().manual_seed(seed)
    theirs = tomesd.merge.bipartite_soft_matching_random2d(tokens, width, height, 2, 2, count, False, generator)
    values = torch.randn(2, height * width, 3, generator=generator)
    expected = theirs[1](theirs[0](values) ** 3)
    assert merge(values).shape == theirs[0](values).shape
    assert (unmerge(merge(values) ** 3) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_merging_is_that_of_tomesd_in_diffusers_pipeline(pair, ratio):
    asked = {"steps": 3, "negative_prompt": "blue", "width": 64, "height": 128}
    theirs = pair("sd15")
    tomesd.apply_patch(theirs.pipe, ratio=ratio)
    info = theirs.pipe.unet._tome_info["args"]
    info["generator"] = Generator()
    count = [0]
    handles = [theirs.pipe.unet.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))]
    blocks = [each for each in theirs.pipe.unet.modules() if type(each).__name__ == "ToMeBlock"]
    handles += [
        each.register_forward_pre_hook(lambda *_: info["generator"].manual_seed(count[0]) and None) for each in blocks
    ]
    try:
        expected = theirs.theirs(**asked)
    finally:
        for each in handles:
            each.remove()
        tomesd.remove_patch(theirs.pipe)
    assert count == [3]
    assert (theirs.ours(token_merging=ratio, **asked) - expected).abs().max() < 1e-4
    assert theirs.difference(**asked) < 1e-4  # nothing is left in either network
    assert (theirs.ours(**asked) - expected).abs().max() > 1e-3


def test_both_work_together_and_in_an_interval(pair):
    model = pair("sdxl").model
    both = {"cache": "deepcache:2", "token_merging": 0.5, "guidance_interval": "0.2-0.8"}
    made = [pipeline.sample(model, [Recipe.from_dict({**ASKED, **each})]) for each in (both, both, {})]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].isfinite().all()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("deepcache", (3, "deepcache:3")), ("deepcache:10", (10, "deepcache:10")),
     ("first-block", (0.1, "first-block:0.1")), ("first-block:.05", (0.05, "first-block:0.05"))],
)  # fmt: skip
def test_a_cache_is_read(text, parsed):
    cache = Cache.parse(text)
    assert (cache.value, str(cache)) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "deep", "deepcache:", "deepcache:1", "deepcache:2.5", "deepcache:101", "deepcache:٣", "first-block:0",
     "first-block:1.5", "first-block:x", "deepcache:3:4", "teacache:0.1"],
)  # fmt: skip
def test_what_is_no_cache(text):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict({**ASKED, "cache": text})
    assert caught.value.field == "cache"


@pytest.mark.parametrize(("key", "value"), [("cache", "deepcache:3"), ("token_merging", 0.5)])
def test_the_recipe_only_names_what_is_used_and_compiles_nothing_with_it(key, value):
    assert key not in Recipe.from_dict(ASKED).to_dict()
    assert Recipe.from_dict({**ASKED, key: value}).to_dict()[key] == value
    with pytest.raises(InvalidRecipe, match="cannot be combined with compile") as caught:
        Recipe.from_dict({**ASKED, key: value, "compile": True})
    assert caught.value.field == key


def test_what_has_no_effect_is_a_warning(flux, sd15, capfd):
    for words in (
        ["-m", str(flux), "--cache", "deepcache:3"],
        ["-m", str(flux), "--token-merging", "0.5"],
        ["-m", str(sd15), "--cache", "first-block"],
        ["-m", str(sd15), "--cache", "deepcache:2", "--steps", "1"],
        ["-m", str(sd15), "--cache", "deepcache:5", "--steps", "2"],
    ):
        assert cli.run(["generate", "a fox", "--dry-run", *words]) == 0
        said = capfd.readouterr().err
        assert "has no effect" in said
        assert cli.run(["generate", "a fox", "--dry-run", "--strict", *words]) == 2
        assert "hint: " in capfd.readouterr().err


def test_a_picture_is_made_again_from_its_metadata(sd15, tmp_path, capfd):
    words = [
        "generate",
        "a fox",
        "-m",
        str(sd15),
        "-W",
        "64",
        "-H",
        "64",
        "--steps",
        "4",
        "-o",
        str(tmp_path / "fox.png"),
    ]
    assert cli.run([*words, "--cache", "deepcache:2", "--token-merging", "0.5"]) == 0
    capfd.readouterr()
    assert cli.run(["info", "--json", str(tmp_path / "fox.png")]) == 0
    recipe = json.loads(capfd.readouterr().out)["recipe"]
    assert (recipe["cache"], recipe["token_merging"]) == ("deepcache:2", 0.5)
    assert cli.run(["replay", str(tmp_path / "fox.png"), "--verify"]) == 0


def test_numbers_of_the_measuring_script_are_those_of_scikit_image():
    """The constants are what `skimage.metrics` 0.26 returned for these pictures."""
    from docs import shortcuts

    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    other = np.clip(one.astype(int) + rng.integers(-40, 41, one.shape), 0, 255).astype(np.uint8)
    assert shortcuts.psnr(one, other) == pytest.approx(PSNR, abs=1e-6)
    assert shortcuts.ssim(one, other) == pytest.approx(SSIM, abs=1e-6)
    assert shortcuts.ssim(one, one) == 1


PSNR, SSIM = 21.166348534536034, 0.9571636928259092
