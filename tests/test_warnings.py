"""Options without effect and sizes that do not suit a model: each is remarked on, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.diffusion.latent_space import LatentSpace
from sdcli.errors import ExitStatus, InvalidRecipe
from sdcli.models import located, registry
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry, ModelFacts
from sdcli.models.source import Source
from sdcli.planning import warnings
from sdcli.recipe.recipe import Recipe
from tests import tiny

ENTRY = ModelEntry(name="some")
FACTS = ModelFacts(
    native_size=512,
    size_multiple=8,
    in_channels=4,
    latent_space=LatentSpace(),
    scheduler_config={"set_alpha_to_one": False},
)
LCM = replace(FACTS, guidance_distilled=True)
BASE = {"model": "some", "prompt": "fox", "steps": 20, "guidance_scale": 7.0, "scheduler": "ddim", "seed": 1}


def fields_of(facts=FACTS, entry=ENTRY, count=1, **options) -> list[str]:
    recipe = Recipe.from_dict({**BASE, "width": 512, "height": 512, **options})
    return [each.field for each in warnings.find(LocatedModel(entry, Source(Path()), facts), recipe, count=count)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"negative_prompt": "owl", "guidance_scale": 1.0}, "negative_prompt"),
        ({"negative_prompt": "owl", "facts": LCM}, "negative_prompt"),
        ({"guidance_rescale": 0.5, "guidance_scale": 0.0}, "guidance_rescale"),
        ({"guidance_rescale": 0.5, "facts": LCM}, "guidance_rescale"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"eta": 0.5, "scheduler": "tcd", "steps": 1}, "eta"),
        ({"eta": 0.5, "steps": 1, "facts": replace(FACTS, scheduler_config={"set_alpha_to_one": True})}, "eta"),
        ({"batch_size": 4}, "batch_size"),
        ({"batch_size": 4, "count": 3}, "batch_size"),
        ({"width": 256, "height": 256}, "height"),
        ({"width": 1024, "height": 768}, "width"),
        ({"width": 384, "height": 896}, "height"),
    ],
)
def test_what_has_no_effect_or_does_not_suit_is_remarked_on(options, field):
    assert fields_of(**options) == [field]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompt": "owl"},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.5, "facts": LCM},
        {"guidance_rescale": 0.5},
        {"eta": 0.5},
        {"eta": 0.5, "steps": 1},
        {"batch_size": 4, "count": 4},
        {"width": 768, "height": 512},
        {"width": 1024, "height": 512},
        {"width": 384, "height": 512},
        {"width": 384, "height": 1024, "facts": replace(FACTS, knows_sizes=True)},
        {"width": 256, "height": 256, "entry": ModelEntry(name="turbo", defaults={"width": 256, "height": 256})},
    ],
)
def test_what_does_as_it_says_is_not(options):
    assert fields_of(**options) == []


@given(st.integers(8, 200), st.integers(8, 200))
def test_the_rule_for_sizes_is_half_to_twice_the_area_and_sides_up_to_one_to_two(across, down):
    area, sides = across * down / 64**2, max(across, down) / min(across, down)
    expected = (not 0.5 <= area <= 2) + (sides > 2)
    assert len(fields_of(width=across * 8, height=down * 8)) == expected


def test_every_model_is_at_home_with_its_own_size():
    entry = registry.find("kit")
    recipe = tiny.recipe_for(entry, {"prompt": "fox", "model": "kit"})
    assert warnings.find(located.locate(entry), recipe) == ()
    entry = ModelEntry(name="some", needs={"width": 256, "height": 256})
    assert fields_of(entry=entry, width=256, height=256) == []
    assert fields_of(entry=entry, width=1024, height=1024) == ["height"]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_worth_a_word_where_nothing_else_is_there_to_draw(prompt):
    assert fields_of(prompt=prompt) == ["prompt"]
    assert fields_of(prompt=prompt, image="fox.png", strength=0.5) == []
    assert fields_of(prompt=prompt, control=["edges=fox.png"]) == []


def test_strict_makes_an_error_of_the_first():
    warnings.raise_first(())
    said = (warnings.RecipeWarning("one", "do this", "eta"), warnings.RecipeWarning("two", "do that", "sigmas"))
    with pytest.raises(InvalidRecipe, match="one") as raised:
        warnings.raise_first(said)
    assert raised.value.field == "eta"
    assert raised.value.exit_status == ExitStatus.USAGE
