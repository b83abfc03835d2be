"""Recipes: JSON round trip, full validation, and errors that name the key."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.errors import ExitStatus, InvalidRecipe
from sdcli.recipe.checks import check_size
from sdcli.recipe.parts import (
    DEVICES,
    DTYPES,
    ENLARGING_KEYS,
    HIRES_KEYS,
    IMAGE_PROMPT_KEYS,
    LAYOUT_KEYS,
    OF_OPENVINO,
    OMITTED_KEYS,
    REFINER_KEYS,
)
from sdcli.recipe.recipe import MAX_SEED, Recipe, draw_seed, keys
from sdcli.recipe.schedulers import NAMES

MINIMAL = {
    "model": "kit",
    "prompt": "arctic fox",
    "steps": 20,
    "guidance_scale": 4.0,
    "scheduler": "ddim",
    "width": 256,
    "height": 256,
    "seed": 7,
}

recipes = st.fixed_dictionaries(
    {
        "model": st.text(min_size=1),
        "prompt": st.text(),
        "steps": st.integers(1, 1000),
        "guidance_scale": st.floats(0, 100),
        "scheduler": st.sampled_from(NAMES),
        "width": st.integers(64, 4096),
        "height": st.integers(64, 4096),
        "seed": st.integers(0, MAX_SEED),
    },
    optional={
        "negative_prompt": st.text(),
        "clip_skip": st.integers(1, 12),
        "prompt_weights": st.booleans(),
        "guidance_rescale": st.floats(0, 1),
        "device": st.sampled_from([each for each in DEVICES if each not in OF_OPENVINO]),
        "dtype": st.sampled_from(DTYPES),
        "threads": st.integers(0, 1024),
        "batch_size": st.integers(1, 256),
        "lora": st.lists(st.sampled_from(["a", "b.safetensors:0.8", "c:1,te=-0.5"]), min_size=1),
        "strict_lora": st.just(False),
        "shift": st.floats(0.01, 100),
        "true_cfg_scale": st.floats(1, 100),
        "skip_layer_guidance": st.sampled_from(["7", "7,8,9:2.8:0.01-0.2"]),
        "guidance_interval": st.just("0.1-0.8"),
        "cache": st.sampled_from(["deepcache:3", "first-block:0.1"]),
        "token_merging": st.floats(0.01, 0.75),
        "prompt_2": st.text(),
        "part": st.just(["vae=a.safetensors", "unet=b.gguf"]),
        "reference": st.lists(st.sampled_from(["a.png", "b.png"]), min_size=1),
        "memory": st.sampled_from(["low", "high"]),
        "tiling": st.sampled_from(["slices", "tiles"]),
    },
)


@given(recipes)
def test_json_round_trip(flat):
    recipe = Recipe.from_dict(flat)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert {key: again.to_dict()[key] for key in flat} == flat


def test_keys_are_flat_and_the_fields_own():
    omitted = (
        "label",
        "resize",
        "init_latents",
        "init_latents_sha256",
        "lora",
        "strict_lora",
        "embedding",
        *OMITTED_KEYS,
        *LAYOUT_KEYS,
        *HIRES_KEYS,
        *REFINER_KEYS,
        *ENLARGING_KEYS,
        *IMAGE_PROMPT_KEYS,
        *(
            "prompt_2",
            "reference",
            "reference_sha256",
            "match_reference",
            "shift",
            "true_cfg_scale",
            "skip_layer_guidance",
            "guidance_interval",
        ),
        *("part", "quantize", "cache", "token_merging"),
    )
    flat = [key for key in keys() if key not in omitted]
    assert list(Recipe.from_dict({**MINIMAL, "image": "fox.png"}).to_dict()) == flat
    without = list(Recipe.from_dict(MINIMAL).to_dict())
    assert without == flat[: len(without)]
    assert flat[len(without)] == "image"
    assert {"prompt", "negative_prompt", "guidance_scale", "steps", "seed", "clip_skip"} <= set(keys())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 0, "between 1 and 1000"),
        ("steps", 2.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", "20", "a whole number"),
        ("guidance_scale", float("nan"), "between 0 and 100"),
        ("guidance_scale", float("inf"), "between 0 and 100"),
        ("guidance_scale", -1, "between 0 and 100"),
        ("guidance_scale", None, "a number"),
        ("seed", -1, "between 0 and 4294967295"),
        ("seed", 2**32, "between 0 and 4294967295"),
        ("prompt", 3, "text"),
        ("prompt_weights", 1, "true or false"),
        ("width", 0, "between 64 and"),
        ("scheduler", "eular", "did you mean 'euler'"),
        ("scheduler", "zzzz", "one of ddim, ddpm"),
        ("dtype", "int8", "one of auto, float32"),
        ("device", "gpu", "one of auto, cpu"),
        ("guidance_rescale", 1.5, "between 0 and 1"),
        ("batch_size", 0, "between 1 and 256"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_good(key, value, words):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict(MINIMAL | {key: value})
    assert caught.value.field == key
    assert words in caught.value.hint
    assert caught.value.exit_status == ExitStatus.USAGE


def test_an_unknown_key_gets_the_nearest_known():
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict(MINIMAL | {"guidence_scale": 3})
    assert "guidance_scale" in caught.value.hint


def test_a_missing_key_is_named():
    with pytest.raises(InvalidRecipe, match="prompt is missing"):
        Recipe.from_dict({key: value for key, value in MINIMAL.items() if key != "prompt"})


def test_an_integer_stands_for_a_number():
    assert Recipe.from_dict(MINIMAL | {"guidance_scale": 4}).sampling.guidance_scale == 4.0


def test_replace_validates_anew():
    recipe = Recipe.from_dict(MINIMAL)
    assert recipe.replace(seed=8).seed == 8
    with pytest.raises(InvalidRecipe):
        recipe.replace(seed=MAX_SEED + 1)


def test_eta_of_a_scheduler_without_one_is_refused():
    with pytest.raises(InvalidRecipe):
        Recipe.from_dict(MINIMAL | {"scheduler": "euler", "eta": 0.5})
    assert Recipe.from_dict(MINIMAL | {"eta": 0.5}).sampling.eta == 0.5


@given(st.integers(64, 4096), st.sampled_from([4, 8, 16, 32]))
def test_an_impossible_size_is_refused_with_its_neighbours(side, multiple):
    if side % multiple == 0:
        check_size(side, side, multiple)
        return
    with pytest.raises(InvalidRecipe) as caught:
        check_size(side, multiple * 64, multiple)
    named = [int(word) for word in caught.value.hint.split() if word.strip(string.punctuation).isdigit()]
    assert all(each % multiple == 0 and abs(each - side) < multiple for each in named)
    assert len(named) == 2
    assert named[0] < side < named[1]


def test_drawn_seeds_are_seeds_and_differ():
    seeds = {draw_seed() for _ in range(100)}
    assert len(seeds) > 90
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize("key", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(("text", "words"), [("x" * 32_769, "32,769 characters"), ("(" * 1001, "1,001 opening")])
def test_a_prompt_without_bounds_is_refused(key, text, words):
    with pytest.raises(InvalidRecipe, match=words) as caught:
        Recipe.from_dict({**FLAT_FOR_BOUNDS, key: text})
    assert caught.value.field == key
    Recipe.from_dict({**FLAT_FOR_BOUNDS, key: "x" * 32_768})


FLAT_FOR_BOUNDS = {
    "model": "kit", "prompt": "a", "steps": 1, "guidance_scale": 1.0, "scheduler": "ddim", "width": 64, "height": 64,
    "seed": 1,
}  # fmt: skip
