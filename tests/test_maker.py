"""Makers: which models stay in memory, and that each picture is that of a process of its own."""

import io
import json
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from sdcli.diffusion import device, pipeline
from sdcli.errors import ModelCorrupt, OutOfMemory
from sdcli.files.inputs import NO_INPUTS
from sdcli.making import deliver
from sdcli.making import maker as making
from sdcli.making.maker import LocalMaker, Task
from sdcli.making.picture import Picture
from sdcli.making.request import Request
from sdcli.models import assemble, located, registry
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
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

    def counted(weights, recipe, **given):
        paths.append((weights.model.path.name, recipe.execution.dtype))
        return load(weights, recipe, **given)

    monkeypatch.setattr(assemble, "load", counted)
    return paths


def task(folder, **options) -> Task:
    entry = registry.find(str(folder))
    flat = {"prompt": "a fox", "model": str(folder), "steps": 1, "seed": 7, "dtype": "float32", "threads": 1}
    return Task(Weights(registry.locate(entry)), [tiny.recipe_for(entry, {**flat, **options})])


def test_a_picture_is_what_the_pipeline_makes(sd15):
    asked = task(sd15, steps=2)
    steps = []
    (picture,) = LocalMaker().submit(asked, steps.append).result()
    resolved = device.resolve_execution(asked.recipes[0])
    (result,) = pipeline.run(assemble.load(Weights(Source(sd15)), resolved), [resolved])
    assert picture.png == Picture.of(result, Weights(Source(sd15))).png
    assert picture.recipe == resolved
    assert picture.image.tobytes() == result.image.tobytes()
    assert [(step.index, step.total) for step in steps] == [(1, 2), (2, 2)]


def test_the_least_recently_used_is_put_away(sd15, tmp_path, loads):
    places = {name: shutil.copytree(sd15, tmp_path / name) for name in ("one", "two", "three")}
    maker = LocalMaker(2)
    for name in ("one", "two", "one", "three", "one", "two"):
        maker.make(task(places[name]))
    assert [name for name, _ in loads] == ["one", "two", "three", "two"]


def test_each_dtype_is_a_model_of_its_own(sd15, loads):
    maker = LocalMaker(2)
    for dtype in ("float32", "bfloat16", "float32"):
        maker.make(task(sd15, dtype=dtype))
    assert [dtype for _, dtype in loads] == ["float32", "bfloat16"]


def test_loading_ahead_is_loading_for_the_first_picture(sd15, loads):
    maker = LocalMaker(1)
    asked = task(sd15)
    maker.load(asked.weights, asked.recipes)
    maker.make(asked)
    assert len(loads) == 1


def test_a_model_that_has_changed_on_disk_is_loaded_anew(sd15, tmp_path, loads):
    place = shutil.copytree(sd15, tmp_path / "model")
    maker = LocalMaker(2)
    (before,) = maker.make(task(place))
    shutil.rmtree(place)
    tiny.make_folder("sd15", place, seed=1)
    (after,) = maker.make(task(place))
    assert len(loads) == 2
    assert after.pixels_sha256 != before.pixels_sha256


def test_threads_of_one_picture_are_not_those_of_the_next(sd15, monkeypatch):
    monkeypatch.setattr(device, "DEFAULT_THREADS", 2)

    def threads(asked_for, processors=None):
        (recipe,) = task(sd15, threads=asked_for).recipes
        resolved = making._resolve(recipe, processors).execution.threads
        assert torch.get_num_threads() == resolved
        return resolved

    assert [threads(each) for each in (0, 1, 0, 3, 0)] == [2, 1, 2, 3, 2]
    assert [threads(0, processors) for processors in (1, 64, None)] == [1, 2, 2]


def test_where_memory_runs_out_the_others_are_put_away_and_it_is_tried_once_more(sd15, tmp_path, loads, monkeypatch):
    other = shutil.copytree(sd15, tmp_path / "other")
    maker = LocalMaker(2)
    maker.make(task(other))
    run = pipeline.run

    def starved(model, recipes, on_step, **given):
        if len(maker._kept) > 1:
            raise OutOfMemory("not enough", "less")
        return run(model, recipes, on_step, **given)

    monkeypatch.setattr(pipeline, "run", starved)
    assert len(maker.make(task(sd15))) == 1
    assert [name for name, _ in loads] == ["other", sd15.name, sd15.name]


def test_a_model_that_cannot_be_loaded_leaves_no_trace(sd15, tmp_path):
    place = shutil.copytree(sd15, tmp_path / "model")
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    maker = LocalMaker(1)
    with pytest.raises(ModelCorrupt):
        maker.make(task(place))
    weights.write_bytes(whole)
    assert len(maker.make(task(place))) == 1


@pytest.mark.parametrize("part", ["network", "text encoder", "vae", "scheduler"])
def test_what_a_network_or_a_scheduler_raises_is_of_the_model(sd15, monkeypatch, part):
    maker, asked = LocalMaker(), task(sd15)
    model = maker.load(asked.weights, asked.recipes)
    modules = {"network": model.network, "text encoder": model.text_encoders[0].model, "vae": model.vae.decoder}

    def fail(*args: object, **options: object) -> None:
        raise KeyError("odd \x1b" + "x" * 1000)

    if part == "scheduler":
        monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor", fail)
        asked = task(sd15, scheduler="dpm++-2m-sde")
        maker.load(asked.weights, asked.recipes)
    else:
        monkeypatch.setattr(modules[part], "forward", fail)
    with pytest.raises(ModelCorrupt, match=r"can be loaded, but not run: .*odd") as caught:
        maker.make(asked)
    assert len(caught.value.message) < 600


def test_what_sdcli_raises_is_a_bug(sd15, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *args, **options: {}["mine"])
    with pytest.raises(KeyError, match="mine"):
        LocalMaker().make(task(sd15))


def test_files_that_change_while_they_are_loaded_give_no_picture(sd15, tmp_path, monkeypatch):
    place = shutil.copytree(sd15, tmp_path / "model")
    load = assemble.load

    def changing(weights, recipe, **given):
        loaded = load(weights, recipe, **given)
        index = place / "model_index.json"
        index.write_bytes(index.read_bytes() + b"\n")
        return loaded

    maker = LocalMaker()
    monkeypatch.setattr(assemble, "load", changing)
    with pytest.raises(ModelCorrupt, match="have changed"):
        maker.make(task(place))
    monkeypatch.setattr(assemble, "load", load)
    (picture,) = maker.make(task(place))
    assert json.loads(picture.image.info["sdcli"])["model_digest"] == Source(place).sha256


class TwoAtOnce:
    """A Maker that has two tasks in hand, and finishes the second first."""

    capacity = 2

    def __init__(self) -> None:
        self.inner, self.waiting = LocalMaker(), []

    def load(self, weights, recipes):
        return self.inner.load(weights, recipes)

    def submit(self, task, on_step=lambda step: None):
        future = Future()
        self.waiting.append((future, task))
        assert len(self.waiting) <= self.capacity
        if len(self.waiting) == self.capacity:
            for each, of in reversed(self.waiting):
                each.set_result(self.inner.make(of, on_step))
            self.waiting.clear()
        return future


def test_a_maker_gets_as_many_tasks_as_it_has_room_for(sd15):
    first = task(sd15).recipes[0]
    recipes = [first.replace(seed=seed) for seed in range(4)]
    request = Request(
        model=located.find(str(sd15)), weights=task(sd15).weights, inputs=NO_INPUTS, recipes=recipes, output=None,
        force=False, json=False, quiet=True,
    )  # fmt: skip
    made = list(deliver.pictures(request, io.BytesIO(), TwoAtOnce()))
    assert [each.recipe.seed for each in made] == [0, 1, 2, 3]
    assert len({each.pixels_sha256 for each in made}) == 4


def test_weights_survive_the_wire(sd15, tmp_path, monkeypatch):
    monkeypatch.chdir(sd15.parent)
    near = Weights(
        Source(Path(sd15.name), "fp16", None, (("vae", Path("x/vae")),)),
        (
            Addon("controlnet", Asked("edges"), Source(Path("edges"))),
            Addon("lora", Asked("half", 0.5), Source(Path("b"))),
        ),
    )
    far = Weights.from_wire(json.loads(json.dumps(near.to_wire())))
    assert far == near.absolute()
    assert far.model.path == sd15
    assert far.addons[1].asked.scale == 0.5
