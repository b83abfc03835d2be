"""The models in memory: which stay, and that each picture is that of a process of its own."""

import shutil

import pytest
import torch

from sdcli.diffusion import device, pipeline
from sdcli.errors import ModelCorrupt, OutOfMemory
from sdcli.making import delivery
from sdcli.models import assemble, registry
from sdcli.models.digest import model_digest
from sdcli.models.source import Source
from sdcli.planning import resolve
from sdcli.serving.models import Models, source_of
from tests import tiny


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loads(monkeypatch):
    """The paths of models as they are loaded."""
    paths = []
    load = assemble.load

    def counted(source, recipe, *controls):
        paths.append((source.path.name, recipe.execution.dtype))
        return load(source, recipe, *controls)

    monkeypatch.setattr(assemble, "load", counted)
    return paths


def asked(folder, **options):
    entry = registry.find(str(folder))
    flat = {"prompt": "a fox", "model": str(folder), "steps": 1, "seed": 7, "dtype": "float32", "threads": 1}
    return source_of(entry), [resolve.resolve_recipe(entry, {**flat, **options})]


def test_a_picture_is_what_the_pipeline_makes(sd15):
    source, recipes = asked(sd15, steps=2)
    steps = []
    (picture,) = Models(1).make(source, recipes, steps.append)
    resolved = device.resolve_execution(recipes[0])
    (result,) = pipeline.run(assemble.load(Source(sd15), resolved), [resolved])
    assert picture.png == delivery.png_bytes(result, model_digest(Source(sd15)))
    assert picture.recipe == resolved
    assert picture.image.tobytes() == result.image.tobytes()
    assert [(step.index, step.total) for step in steps] == [(1, 2), (2, 2)]


def test_the_least_recently_used_is_put_away(sd15, tmp_path, loads):
    places = {name: shutil.copytree(sd15, tmp_path / name) for name in ("one", "two", "three")}
    models = Models(2)
    for name in ("one", "two", "one", "three", "one", "two"):
        models.make(*asked(places[name]))
    assert [name for name, _ in loads] == ["one", "two", "three", "two"]


def test_each_dtype_is_a_model_of_its_own(sd15, loads):
    models = Models(2)
    for dtype in ("float32", "bfloat16", "float32"):
        models.make(*asked(sd15, dtype=dtype))
    assert [dtype for _, dtype in loads] == ["float32", "bfloat16"]


def test_loading_ahead_is_loading_for_the_first_picture(sd15, loads):
    models = Models(1)
    source, recipes = asked(sd15)
    models.load(source, recipes[0])
    models.make(source, recipes)
    assert len(loads) == 1


def test_a_model_that_has_changed_on_disk_is_loaded_anew(sd15, tmp_path, loads):
    place = shutil.copytree(sd15, tmp_path / "model")
    models = Models(2)
    (before,) = models.make(*asked(place))
    shutil.rmtree(place)
    tiny.make_folder("sd15", place, seed=1)
    (after,) = models.make(*asked(place))
    assert len(loads) == 2
    assert after.pixels_sha256 != before.pixels_sha256


def test_threads_of_one_picture_are_not_those_of_the_next(sd15, monkeypatch):
    models = Models(1)
    monkeypatch.setattr(device, "DEFAULT_THREADS", 2)

    def threads(asked_for, processors=None):
        _, (recipe,) = asked(sd15, threads=asked_for)
        resolved = models._resolve(recipe, processors).execution.threads
        assert torch.get_num_threads() == resolved
        return resolved

    assert [threads(each) for each in (0, 1, 0, 3, 0)] == [2, 1, 2, 3, 2]
    assert [threads(0, processors) for processors in (1, 64, None)] == [1, 2, 2]


def test_where_memory_runs_out_the_others_are_put_away_and_it_is_tried_once_more(sd15, tmp_path, loads, monkeypatch):
    other = shutil.copytree(sd15, tmp_path / "other")
    models = Models(2)
    models.make(*asked(other))
    run = pipeline.run

    def starved(model, recipes, on_step, given=None):
        if len(models._kept) > 1:
            raise OutOfMemory("not enough", "less")
        return run(model, recipes, on_step, given=given)

    monkeypatch.setattr(pipeline, "run", starved)
    assert len(models.make(*asked(sd15))) == 1
    assert [name for name, _ in loads] == ["other", sd15.name, sd15.name]


def test_a_model_that_cannot_be_loaded_leaves_no_trace(sd15, tmp_path):
    place = shutil.copytree(sd15, tmp_path / "model")
    source, recipes = asked(place)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    models = Models(1)
    with pytest.raises(ModelCorrupt):
        models.make(source, recipes)
    weights.write_bytes(whole)
    assert len(models.make(source, recipes)) == 1
