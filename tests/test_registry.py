"""Names, paths and cached repositories become entries, paths and facts, without a look at any weight."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from sdcli import config
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelNotFound
from sdcli.models import registry
from sdcli.models.source import Source
from sdcli.planning import resolve
from sdcli.recipe.recipe import keys
from tests import tiny


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(hub_cache: Path, repo: str, folder: Path) -> Path:
    home = hub_cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / "0123abcd")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abcd")
    return home / "snapshots" / "0123abcd"


def test_every_entry_is_whole():
    for entry in registry.entries().values():
        assert sum(map(bool, (entry.folder, entry.repo, entry.url))) == 1
        assert entry.description
        assert entry.license
        assert set(entry.defaults) | set(entry.needs) <= set(keys())
        assert not set(entry.defaults) & set(entry.needs)


def test_controlnets_stand_apart_from_models():
    named = registry.entries()
    assert {name for kind in config.KINDS for name in registry.names(kind)} == set(named)
    beside = [named[name] for name in registry.names(registry.CONTROLNET)]
    assert {each.name for each in beside} >= {"canny-sd15", "depth-sd15", "openpose-sd15", "seg-sd15", "canny-sdxl"}
    assert all(each.family in ("sd15", "sdxl") and not each.defaults and not each.needs for each in beside)
    assert [each.name for each in beside if each.classes] == ["seg-sd15"]
    assert not any(named[name].classes for name in registry.names())


def test_every_entry_s_defaults_make_a_recipe(sd15, hub_cache):
    for entry in (registry.entries()[name] for name in registry.names()):
        if entry.repo:
            put_into_cache(hub_cache, entry.repo, sd15)
            recipe = tiny.recipe_for(entry, {"prompt": "a fox", "model": entry.name})
            usual = {**entry.defaults, **entry.needs}
            assert {key: recipe.to_dict()[key] for key in usual} == usual


def test_a_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "sd15").mkdir()
    monkeypatch.chdir(tmp_path)
    assert registry.find("sd15").repo == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert registry.locate(registry.find("./sd15")).path == Path("sd15")


def test_an_unknown_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        registry.find("sd-15")
    assert "'sd15'" in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        registry.find("qqqq")
    assert "sdcli models list" in caught.value.hint


def test_a_repository_is_found_in_the_cache_or_said_to_be_absent(sd15, hub_cache):
    entry = registry.find("somebody/some-model")
    assert not registry.is_present(entry)
    with pytest.raises(ModelNotFound) as caught:
        registry.locate(entry)
    assert "sdcli models pull somebody/some-model" in caught.value.hint
    snapshot = put_into_cache(hub_cache, "somebody/some-model", sd15)
    assert registry.locate(entry).path == snapshot


def test_options_come_before_entry_defaults_and_those_before_the_model_s_own(sd15):
    entry = registry.ModelEntry(name="x", folder=str(sd15), defaults={"steps": 3, "width": 128, "scheduler": "ddim"})
    recipe = tiny.recipe_for(entry, {"prompt": "a", "model": "x", "steps": 5})
    assert recipe.sampling.steps == 5
    assert recipe.sampling.scheduler == "ddim"
    assert (recipe.width, recipe.height) == (128, 64)
    assert recipe.sampling.guidance_scale == resolve.DEFAULTS["guidance_scale"]


def test_a_size_the_model_cannot_make_is_refused(sd15):
    entry = registry.find(str(sd15))
    with pytest.raises(InvalidRecipe) as caught:
        tiny.recipe_for(entry, {"prompt": "a", "model": "x", "width": 250})
    assert "248 and 256" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "text"),
    [("unet/config.json", None), ("vae/config.json", "{"), ("unet/config.json", "[]"), ("vae/config.json", "{}")],
)
def test_a_folder_without_its_configs_is_corrupt(sd15, tmp_path, file, text):
    broken = shutil.copytree(sd15, tmp_path / "broken")
    if text is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(text)
    with pytest.raises(ModelCorrupt):
        registry.read_facts(Source(broken))


def test_facts_are_the_configs_own(sd15):
    facts = registry.read_facts(Source(sd15))
    assert facts.native_size == 8 * json.loads((sd15 / "unet" / "config.json").read_text())["sample_size"]
    assert facts.size_multiple == 8
    assert facts.scheduler_config["num_train_timesteps"] == 1000


@pytest.mark.parametrize("name", ["~nosuchuser/model", "x" * 5000, "a\0b"])
def test_what_cannot_be_a_path_is_not_found(name):
    with pytest.raises(ModelNotFound):
        registry.locate(registry.find(name))
