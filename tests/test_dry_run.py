"""A plan against the run it plans: the same recipe, names and refusals, and numbers counted another way."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import CLIPTokenizer

from sdcli import cli
from sdcli.errors import InvalidRecipe, ModelCorrupt, OutputError, SdcliError
from sdcli.files import outputs
from sdcli.models import located, registry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run, timings
from tests import tiny

OTHER = Weights(registry.locate(registry.find("kit-inpaint")))
LIKELY = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(folder: Path, **options):
    entry = registry.find(str(folder))
    options = {"prompt": "arctic fox", "model": str(folder), "seed": 7, **options}
    return located.locate(entry), tiny.recipe_for(entry, options)


def test_a_plan_on_the_shell(capfd, sd15):
    words = ["generate", "a fox", "-m", str(sd15), "-n", "2", "-s", "7", "--dry-run", "-o", "out/"]
    assert cli.run([*words, "--json", "-N", "owl", "--guidance-scale", "1"]) == 0
    out, err = capfd.readouterr()
    plan = json.loads(out)
    assert (plan["status"], plan["error"], plan["seeds"]) == ("planned", None, [7, 8])
    assert plan["paths"] == ["out/a-fox-7.png", "out/a-fox-8.png"]
    assert plan["recipe"]["prompt"] == "a fox"
    assert plan["model"]["digest"] == Source(sd15).sha256
    assert plan["seconds"] is None
    assert plan["warnings"] == ["negative_prompt has no effect: guidance is disabled"]
    assert err == "warning: negative_prompt has no effect: guidance is disabled\n"
    assert list(Path().iterdir()) == []
    assert cli.run(words) == 0
    said = dict(line.split(":", 1) for line in capfd.readouterr().out.splitlines())
    assert said["paths"].strip() == "out/a-fox-7.png, out/a-fox-8.png"
    assert said["seconds"].strip() == "unknown: no similar picture was measured"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_files_and_weights_are_those_on_disk(family, tmp_path):
    folder = tiny.make_folder(family, tmp_path / "model")
    parts = dry_run.find_parts(Weights(Source(folder)))
    assert set(parts.files) == set(folder.rglob("*.safetensors"))
    counted = 0
    for file in parts.files:
        with safe_open(file, framework="pt") as reader:
            counted += sum(math.prod(reader.get_slice(key).get_shape()) for key in reader.keys())  # noqa: SIM118
    assert sum(each.numbers for each in parts.sizes.values()) == counted
    _, of = recipe(folder)
    assert dry_run.estimate_memory(parts, of, LIKELY)["weights"] == 4 * counted
    vae = parts.sizes["vae"].numbers
    halved = 2 * counted + (2 * vae if family == "sdxl" else 0)  # SDXL's VAE stays in float32
    assert dry_run.estimate_memory(parts, of, {**LIKELY, "dtype": "float16"})["weights"] == halved


def test_the_decoder_s_memory_grows_with_the_area_and_the_batch(sd15):
    parts = dry_run.find_parts(Weights(Source(sd15)))

    def activations(**options) -> int:
        return dry_run.estimate_memory(parts, recipe(sd15, **options)[1], LIKELY)["activations"]

    one = activations()
    assert one == 6 * 16 * 64 * 64 * 4
    assert activations(width=128, height=128) == 4 * one
    assert activations(batch_size=3) == 3 * one


@pytest.mark.parametrize("prompt", ["", "arctic fox", "(arctic:1.2) fox in the snow", "fox " * 80, "fox BREAK arctic"])
def test_tokens_are_transformers_own(sd15, prompt):
    _, of = recipe(sd15, prompt=prompt, prompt_weights="(" in prompt or "BREAK" in prompt)
    plain = prompt.replace("(", "").replace(":1.2)", "").replace("BREAK", "")
    theirs = CLIPTokenizer.from_pretrained(sd15 / "tokenizer")(plain, add_special_tokens=False)["input_ids"]
    said = dry_run.count_tokens(Weights(Source(sd15)), of)
    assert said["prompt"] == len(theirs)
    assert said["chunks"] == (2 if len(theirs) > 75 or "BREAK" in prompt else 1)


def refusal(function, *arguments, **options) -> SdcliError:
    with pytest.raises(SdcliError) as raised:
        function(*arguments, **options)
    return raised.value


@pytest.mark.parametrize("output", ["gone/x.png", "taken.png", "folder", "x.jpg", "same.png", "{nonsense}.png"])
def test_names_are_refused_as_the_run_would(sd15, output):
    Path("taken.png").write_bytes(b"")
    Path("folder").mkdir()
    _, of = recipe(sd15)
    recipes = [of, of.replace(seed=8)]
    if output == "folder":
        assert outputs.foresee(output, recipes) == [each.path for each in outputs.plan(output, recipes)]
        return
    foreseen, planned = refusal(outputs.foresee, output, recipes), refusal(outputs.plan, output, recipes)
    assert (type(foreseen), foreseen.message, foreseen.hint) == (type(planned), planned.message, planned.hint)


def test_names_are_the_next_free_ones_and_no_directory_is_made(sd15):
    _, of = recipe(sd15)
    Path("arctic-fox-7.png").write_bytes(b"")
    assert outputs.foresee(None, [of, of]) == ["arctic-fox-7-2.png", "arctic-fox-7-3.png"]
    assert outputs.foresee("new/deep/", [of]) == ["new/deep/arctic-fox-7.png"]
    assert not Path("new").exists()


def test_a_directory_that_cannot_be_written_is_refused(sd15, monkeypatch):
    _, of = recipe(sd15)
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    assert isinstance(refusal(outputs.foresee, None, [of]), OutputError)


def test_a_broken_file_of_weights_is_found(sd15, tmp_path):
    broken = shutil.copytree(sd15, tmp_path / "broken")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    model, of = recipe(broken)
    assert isinstance(refusal(dry_run.plan, "m", Weights(model.source), [of], None), ModelCorrupt)


def test_options_that_only_the_model_can_refuse_are_refused(sd15):
    for options in ({"clip_skip": 4}, {"device": "mps"}):
        model, of = recipe(sd15, **options)
        assert isinstance(refusal(dry_run.plan, "m", Weights(model.source), [of], None), InvalidRecipe)


def test_a_time_is_one_measured_here_or_none(sd15):
    model, of = recipe(sd15, dtype="float32", device="cpu", threads=1)
    weights = Weights(model.source)

    def seconds(**options):
        return dry_run.plan("m", weights, [of.replace(**options)] * 3, None)["seconds"]

    assert seconds() is None
    timings.record(of, weights, 0.05)  # too short to matter
    assert seconds() is None
    timings.record(of, weights, 9.0)
    timings.record(of, weights, 2.5)
    assert seconds() == 7.5
    assert seconds(seed=9, prompt="owl", device="auto", threads=0) == 7.5
    for other in ({"width": 128}, {"steps": 3}, {"scheduler": "ddim"}, {"guidance_scale": 1.0}, {"dtype": "bfloat16"}):
        assert seconds(**other) is None
    assert timings.recall(of, OTHER) is None
    with (Path().parent / "../cache/sdcli/timings.jsonl").open("a") as file:
        file.write('{"broken\n[]\n')
    assert seconds() == 7.5


def test_times_do_not_grow_without_end(sd15):
    _, of = recipe(sd15, dtype="float32", device="cpu", threads=1)
    for seconds in range(1, 2500):
        timings.record(of, OTHER, seconds)
    file = Path().parent / "../cache/sdcli/timings.jsonl"
    assert file.stat().st_size < timings.MAX_BYTES + 1000
    assert timings.recall(of, OTHER) == 2499
    assert [each.name for each in file.parent.iterdir()] == ["timings.jsonl"]


def test_a_picture_that_starts_from_another_takes_a_time_of_its_own(sd15):
    _, of = recipe(sd15, dtype="float32", device="cpu", threads=1, steps=10)
    timings.record(of.replace(image="i.png", strength=0.3), OTHER, 3)
    assert timings.recall(of, OTHER) is None
    assert timings.recall(of.replace(image="j.png", strength=0.3), OTHER) == 3
