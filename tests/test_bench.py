"""`sdcli bench`: what it measures adds up, and diffusers' pipeline makes the same latents of the same weights."""

import json
import shutil

import pytest
import torch

from sdcli import cli
from sdcli.bench import contenders, loaded, measure, subject, table
from sdcli.errors import UsageError
from sdcli.models import families
from sdcli.models.loading import random_weights
from sdcli.models.source import Source
from sdcli.planning import timings
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny, tiny_flow

QUICK = {"steps": 3, "threads": 1, "dtype": "float32", "device": "cpu"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_against_diffusers(sd15, capfd):
    options = ["--steps", "2", "--turns", "2", "--dtype", "float32", "--threads", "1", "--seconds", "20"]
    rivals = ["--against", "diffusers", "--against", "diffusers-channels-last"]
    assert cli.run(["bench", "-m", str(sd15), *options, *rivals, "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    found = json.loads(out)
    assert (found["weights"], found["steps_run"], found["turns"], found["extrapolated"]) == ("files", 2, 2, False)
    ours, *others = found["results"]
    assert [each["name"] for each in others] == rivals[1::2]
    assert [len(each) for each in ours["steps"]] == [2, 2]
    assert others[0]["difference"] == 0
    assert others[0]["ratios"]["step"] == pytest.approx(ours["step"] / others[0]["step"], abs=0.01)
    assert ours["picture"] > 2 * min(map(min, ours["steps"])) + min(ours["decodes"]) - 0.001
    assert found["memory"]["weights"] > 100_000


def test_a_table_for_a_person(sd15, capfd):
    assert cli.run(["bench", "-m", str(sd15), "--steps", "1", "--turns", "1", "--threads", "1"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "64×64" in lines[0]
    rows = [line.split("  ")[0] for line in lines]
    assert {"import", "load", "encode the prompt", "a step", "decode", "the picture", "peak memory"} <= set(rows)


def test_random_weights_have_the_shape_of_the_family_and_finite_pictures(monkeypatch, sd15, capfd, tmp_path):
    for weights in (bare := tiny.make_folder("sd15", tmp_path / "bare")).rglob("*.safetensors"):
        weights.unlink()
    monkeypatch.setattr(families, "config_folder", lambda family: bare)
    found = measure.measure(subject.of_family("sd15", QUICK), turns=1)
    assert found["weights"] == "random"
    assert found["results"][0]["step"] > 0
    assert "random numbers" in "\n".join(table.lines(found))
    assert not timings.cache_folder().exists()


def test_random_weights_fill_each_tensor(sd15):
    made, read = (
        load(Source(sd15), name="x", device=torch.device("cpu"), dtype=torch.bfloat16)
        for load in (random_weights.load, loaded.assemble.loading.load)
    )
    for part in ("network", "vae"):
        shapes = {name: each.shape for name, each in getattr(made, part).state_dict().items()}
        assert shapes == {name: each.shape for name, each in getattr(read, part).state_dict().items()}
    weight = made.network.mid_block.attentions[0].proj_in.weight.float()
    assert 0.3 < weight.std() * weight[0].numel() ** 0.5 < 1
    assert all(each.isfinite().all() for each in made.network.parameters())


@pytest.mark.parametrize("family", ["flux-dev", "sd3"])
def test_random_weights_of_a_language_model_need_no_tokenizer(tmp_path, family):
    folder = tiny_flow.make_folder(family, tmp_path / family)
    shutil.rmtree(folder / ("tokenizer_2" if family == "flux-dev" else "tokenizer_3"))
    made = random_weights.load(Source(folder), name="x", device=torch.device("cpu"), dtype=torch.float32)
    recipe = Recipe.from_dict({**pairs.DEFAULTS, "model": family, "scheduler": "euler"})
    assert contenders.Ours(made, recipe).turn(1).latents.isfinite().all()


def test_families_of_qwen_have_its_tokenizer(tmp_path):
    for family in ("z-image", "qwen-image", "flux2-klein"):
        source = random_weights._with_tokenizers(Source(families.config_folder(family)), tmp_path)
        assert source.folder("tokenizer") == families.QWEN


@pytest.mark.parametrize("family", ["sdxl", "sd21-v"])
def test_latents_are_those_of_diffusers(family, pair):
    model = pair(family).model
    recipe = Recipe.from_dict({**pairs.DEFAULTS, "model": family, "scheduler": "euler-a"})
    ours = contenders.Ours(model, recipe).turn(2)
    theirs = contenders.rival("diffusers", model, recipe).turn(2)
    assert torch.equal(ours.latents, theirs.latents)


OLDER = ("z-image", "flux-dev", "flux2-klein", "flux2-base", "sd3", "qwen-image")


@pytest.mark.parametrize("family", [*OLDER, "chroma", "krea2", "lumina2", "sana"])
def test_latents_of_flow_matching_are_those_of_diffusers(family, tmp_path):
    """With the parts of random weights, cut to one layer: the shapes are those of the files, and the tokenizers too."""
    folder = tiny_flow.make_folder(family, tmp_path / family)
    made = random_weights.load(Source(folder), name="x", device=torch.device("cpu"), dtype=torch.float32, layers=1)
    counts = {key: each for key, each in made.network.config.items() if key in random_weights._LISTS}
    assert set(counts.values()) == {1}
    options = {"guidance_scale": 1.0 if family == "flux2-klein" else 3.0, "steps": 2, "scheduler": "euler"}
    recipe = Recipe.from_dict({**pairs.DEFAULTS, "model": family, **options})
    ours = contenders.Ours(made, recipe).turn(2)
    theirs = contenders.rival("diffusers", made, recipe).turn(2)
    assert len(theirs.steps) == 2
    assert (ours.latents - theirs.latents).abs().max() <= 1e-4


def test_the_warm_up_has_as_many_steps_as_the_model_needs(tmp_path, capfd):
    """Qwen-Image's noise levels cannot end where its config says with one step."""
    folder = tiny_flow.make_folder("qwen-image", tmp_path / "qwen-image")
    options = ["--size", "64x64", "--steps", "2", "--turns", "1", "--threads", "1"]
    assert cli.run(["bench", "-m", str(folder), *options]) == 0
    assert "a step" in capfd.readouterr().out


def test_a_bench_predicts_a_picture(sd15, monkeypatch):
    measured = subject.of_model(str(sd15), QUICK)
    monkeypatch.setattr(timings, "WORTH_RECORDING", 0)
    found = measure.measure(measured, turns=1)
    assert timings.recall(measured.recipe, measured.weights) == pytest.approx(found["results"][0]["picture"], abs=0.01)


def test_shortcuts_of_sdcli_against_the_exact_picture(sd15, capfd):
    options = ["--steps", "5", "--turns", "1", "--dtype", "float32", "--threads", "1", "--seconds", "1", "--json"]
    ways = ["--cache", "deepcache:2", "--token-merging", "0.5", "--guidance-interval", "0.2-0.8"]
    assert cli.run(["bench", "-m", str(sd15), *options, *ways, "--against", "diffusers"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["shortcuts"] == {"guidance_interval": "0.2-0.8", "cache": "deepcache:2", "token_merging": 0.5}
    ours, theirs = found["results"]
    assert len(ours["steps"][0]) == found["steps_run"] == 5
    assert ours["step"] == pytest.approx(sum(ours["steps"][0]) / 5, abs=1e-4)
    assert theirs["difference"] is None or len(theirs["steps"][0]) == 5
    lines = "\n".join(table.lines(found))
    assert "sdcli with --guidance-interval 0.2-0.8 --cache deepcache:2 --token-merging 0.5, the others without" in lines
    assert "a step, on average" in lines


def test_a_tiny_vae_of_random_numbers_against_the_own_one(monkeypatch, tmp_path):
    for weights in (bare := tiny.make_folder("sd15", tmp_path / "bare")).rglob("*.safetensors"):
        weights.unlink()
    monkeypatch.setattr(families, "config_folder", lambda family: bare)
    measured = subject.of_family("sd15", {**QUICK, "part": ["vae=taesd"]})
    assert measured.shortcuts == {"vae": "taesd"}
    recipe = measured.recipe.replace(steps=1)
    model = loaded.load(measured, recipe)
    own = loaded.own_vae(measured, recipe, model)
    assert [type(each).__name__ for each in (model.vae, own)] == ["AutoencoderTiny", "AutoencoderKL"]
    ours, theirs = contenders.Ours(model, recipe), contenders.rival("diffusers", model, recipe, own)
    assert torch.equal(ours.turn(1).latents, theirs.turn(1).latents)


def test_all_steps_are_run_where_they_differ():
    turn = contenders.Turn(0.1, (2.0,), 1.0, 1.0, torch.zeros(1))
    steps, turns = measure._plan([turn, turn], 20, 3, 100, whole=True)
    assert turns * (2 * 1.1 + 0.6 * 2 * (20 + steps)) <= 100
    assert (steps, turns) == (5, 3)
    assert measure._plan([turn], 20, 3, 1, whole=True) == (20, 1)


def test_steps_are_extrapolated_where_time_is_short():
    turn = contenders.Turn(0.1, (2.0,), 1.0, 1.0, torch.zeros(1))
    assert measure._plan([turn], 20, 3, 1000) == (20, 3)
    steps, turns = measure._plan([turn, turn], 20, 3, 40)
    assert turns * 2 * (1.1 + 0.6 * 2 * steps) <= 40
    assert (steps, turns) == (4, 3)
    assert measure._plan([turn], 20, 3, 0.1) == (2, 1)
    assert measure._plan([turn], 1, 3, 0.1) == (1, 1)


def test_extrapolation_adds_up():
    turns = [contenders.Turn(1.0, (2.0, 4.0), 5.0, 1.0, torch.zeros(1))]
    assert measure._result("x", turns, 10)["picture"] == 1 + 3 * 10 + 5


def test_a_busy_machine_is_named(sd15):
    found = measure.measure(subject.of_model(str(sd15), {**QUICK, "steps": 1}), turns=1)
    for busy, named in ((0.9, False), (0.4, True)):
        found["results"][0]["busy"] = busy
        assert ("Other programs" in "\n".join(table.lines(found))) == named


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--family", "sd16"], "sd15"),
        (["--family", "sd15", "-m", "kit"], "cannot be combined"),
        (["--against", "comfy"], "diffusers-float32"),
        (["--against", "diffusers", "--against", "diffusers"], "twice"),
        (["--family", "sd15-inpaint"], "makes pictures from text"),
        (["--size", "12"], "12"),
        (["--layers", "2"], "without --family"),
        (["--family", "sd15", "--layers", "2"], "has no transformer"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, capfd):
    assert cli.run(["bench", *words]) == 2
    assert said in capfd.readouterr().err


def test_diffusers_is_compared_where_it_has_the_same_pipeline(tmp_path):
    measured = subject.of_model(str(tiny.make_dit(tmp_path / "dit")), QUICK)
    with pytest.raises(UsageError, match="of this kind"):
        measure.measure(measured, ["diffusers"], turns=1)


def test_the_names_of_rivals():
    from sdcli.commands import bench

    assert set(bench.RIVALS) == set(contenders.RIVALS)
    assert families.NAMES


def test_the_rivals_of_an_engine_have_its_weights_in_torch(sd15):
    measured = subject.of_model(str(sd15), QUICK)
    recipe = measured.recipe.replace(engine="openvino", device="cpu", dtype="float32")
    model = loaded.load(measured, recipe)
    theirs = measure._in_torch(measured, recipe, model)
    assert "forward" in vars(model.network)
    assert "forward" not in vars(theirs.network)
    for one, other in zip(model.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(one, other)
