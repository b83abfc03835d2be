"""What a job is, wherever it stands: recipes, draws and identities."""

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdcli.jobs.plan as planning
from sdcli.jobs.job import Fault, Job
from sdcli.jobs.plan import Planned, plan
from sdcli.jobs.read import read


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The configs of a model, with a few bytes in place of weights: nothing here reads them as such."""
    folder = tmp_path_factory.mktemp("model")
    configs = {
        "unet/config.json": {"sample_size": 8, "in_channels": 4},
        "vae/config.json": {"block_out_channels": [1, 1, 1, 1]},
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon", "num_train_timesteps": 1000},
        "model_index.json": {},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return folder


def planned(model: Path, *jobs: dict, **defaults) -> list[Planned | Fault]:
    data = "\n".join(map(json.dumps, jobs)).encode()
    return plan(read(data, "-", "jsonl"), {"model": str(model), **defaults})


def test_a_job_is_filled_from_the_options_and_the_model(model):
    first, second = planned(model, {"prompt": "a", "steps": 3}, {"prompt": "b", "seed": 5}, steps=4, scheduler="ddim")
    assert (first.recipe.sampling.steps, first.recipe.sampling.scheduler, first.recipe.width) == (3, "ddim", 64)
    assert (second.recipe.sampling.steps, second.recipe.seed) == (4, 5)
    assert first.model.source.path == model
    assert first.id == first.key[:16] != second.id


def test_a_seed_that_the_user_has_set_is_drawn_for_no_job(model, monkeypatch):
    drawn, said = planned(model, {"prompt": "a {red|blue} fox"}, {"prompt": "b", "seed": 5})
    monkeypatch.setenv("SDCLI_SEED", "9")
    set_, still_said = planned(model, {"prompt": "a {red|blue} fox"}, {"prompt": "b", "seed": 5})
    assert (set_.recipe.seed, set_.recipe.condition) == (9, drawn.recipe.condition)
    assert drawn.recipe.seed != 9
    assert still_said.key == said.key
    assert planned(model, {"prompt": "a"}, seed=8)[0].recipe.seed == 8


def test_jobs_are_the_same_whatever_their_place(model):
    jobs = [{"prompt": f"a {{red|blue}} fox {number % 7}", "steps": number % 3 + 1} for number in range(40)]
    first = {job.key: job.recipe for job in planned(model, *jobs)}
    assert len(first) == 40
    random.Random(0).shuffle(jobs)
    assert {job.key: job.recipe for job in planned(model, *jobs)} == first
    fewer = {job.key: job.recipe for job in planned(model, *jobs[:20], {"prompt": "another"})}
    assert len(fewer.keys() & first.keys()) == 20
    assert all(first[key] == fewer[key] for key in fewer.keys() & first.keys())


def test_duplicates_are_distinct_and_draw_for_themselves(model):
    drawn = planned(model, *[{"prompt": "a {red|blue|green|black} fox"}] * 40)
    assert len({job.recipe.seed for job in drawn}) == 40
    assert len({job.recipe.condition.prompt for job in drawn}) == 4
    given = planned(model, *[{"prompt": "a", "seed": 1}] * 5)
    assert len({job.key for job in given}) == 5


def test_an_id_is_no_part_of_what_a_job_is_and_an_output_is(model):
    plain, named, other = planned(model, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    again = planned(model, {"prompt": "c", "id": 3}, {"prompt": "a", "id": "x"}, {"prompt": "b", "output": "b.png"})
    assert [job.id for job in again][:2] == [3, "x"]
    assert [job.key for job in again[:2]] == [other.key, plain.key]
    assert again[2].key != named.key
    assert again[2].name == "b.png"


def test_the_model_counts_by_its_content_and_not_by_its_name(model, tmp_path, monkeypatch):
    job = {"prompt": "a", "seed": 1}
    (first,) = planned(model, job)
    monkeypatch.chdir(model.parent)
    (relative,) = planned(Path(model.name), job)
    assert relative.key == first.key
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"other")
    try:
        (changed,) = planned(model, job)
    finally:
        weights.write_bytes(b"weights")
    assert changed.key != first.key
    monkeypatch.setattr(planning, "NUMERICS_VERSION", 2)
    (later,) = planned(model, job)
    assert later.key not in (first.key, changed.key)


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"prompt": "b"}, {"steps": 2}, {"width": 128}, {"batch_size": 2}, {"dtype": "float32"}]
)
def test_every_part_of_a_recipe_counts(model, change):
    asked = {"prompt": "a", "seed": 1}
    first, second = planned(model, asked, {**asked, **change})
    assert first.key != second.key


def test_a_job_of_several_pictures_counts_their_seeds_up(model):
    job = {"prompt": "a", "seed": 7, "id": "x", "num_images": 3}
    first, *_ = made = planned(model, job)
    assert [(each.id, each.recipe.seed) for each in made] == [("x-1", 7), ("x-2", 8), ("x-3", 9)]
    (alone,) = planned(model, {"prompt": "a", "seed": 7})
    assert first.key == alone.key
    assert len({each.key for each in made}) == 3
    drawn, more = planned(model, {"prompt": "{a|b|c}"}), planned(model, {"prompt": "{a|b|c}", "num_images": 9})
    assert drawn[0].recipe == more[0].recipe
    assert [each.recipe.seed - more[0].recipe.seed for each in more] == list(range(9))
    assert len({each.recipe.condition.prompt for each in more}) > 1
    (fault,) = planned(model, {"prompt": "a", "seed": 2**32 - 1, "num_images": 2})[1:]
    assert fault.field == "seed"


def test_a_seed_of_minus_one_is_drawn_whatever_the_user_has_set(model, monkeypatch):
    (drawn,) = planned(model, {"prompt": "a", "seed": -1})
    monkeypatch.setenv("SDCLI_SEED", "5")
    (again,), (usual,) = planned(model, {"prompt": "a", "seed": -1}), planned(model, {"prompt": "a"})
    assert drawn.recipe.seed == again.recipe.seed != usual.recipe.seed == 5
    assert [each.recipe.seed for each in planned(model, {"prompt": "a", "num_images": 2})] == [5, 6]


def test_the_index_of_a_name_counts_pictures(model):
    made = planned(
        model, {"prompt": "a", "num_images": 2, "output": "{index}.png"}, {"prompt": "b", "output": "{index}.png"}
    )
    assert [each.name for each in made] == ["1.png", "2.png", "3.png"]


def test_thousands_of_jobs_are_planned_in_little_time(model):
    """10,000 take less than 5 s of CPU; the bound here is four times that, for slow machines."""
    jobs = [{"prompt": f"a fox {number}", "seed": number} for number in range(500)]
    planned(model, *jobs[:5])
    begun = time.process_time()
    assert len(planned(model, *jobs)) == 500
    assert time.process_time() - begun < 1


def test_seeds_do_not_depend_on_the_options(model):
    (first,), (second,) = planned(model, {"prompt": "a"}), planned(model, {"prompt": "a"}, steps=3)
    assert first.recipe.seed == second.recipe.seed
    assert first.key != second.key
    (given,) = planned(model, {"prompt": "a"}, seed=7)
    assert given.recipe.seed == 7


@pytest.mark.parametrize(
    ("job", "field", "words"),
    [
        ({"prompt": "a", "width": 70}, "width", "nearest valid sizes are 64 and 72"),
        ({"prompt": "a", "model": "no-such-model"}, "model", "no model"),
        ({"prompt": "a", "model": "x" * 5000}, "model", "no model"),
        ({"prompt": "a", "model": "a\0b"}, "model", "no model"),
        ({"prompt": "a", "model": "~nobody-of-that-name/x"}, "model", "no file or folder"),
        ({"prompt": "a {b"}, "prompt", "character 3 of it: a { is not closed"),
        ({"prompt": "a", "negative_prompt": "}"}, "negative_prompt", "has no opening brace"),
        ({"prompt": "a", "sigmas": "karras", "scheduler": "ddim"}, "sigmas", "karras sigmas"),
        ({"prompt": "a", "output": "../fox.png"}, "output", "not a name inside the directory"),
        ({"prompt": "a", "output": "/tmp/fox.png"}, "output", "not a name inside the directory"),
        ({"prompt": "a", "output": "foxes/"}, "output", "not a name inside the directory"),
        ({"prompt": "a", "output": ""}, "output", "not a name inside the directory"),
        ({"prompt": "a", "output": "a\0b.png"}, "output", "not a name inside the directory"),
        ({"prompt": "a", "output": ".sdcli-batch.jsonl"}, "output", "cannot be used"),
        ({"prompt": "a", "output": "x" * 256}, "output", "at most 255 bytes"),
        ({"prompt": "a", "output": "fox.jpg"}, "output", "writes PNG"),
        ({"prompt": "a", "output": "{sede}.png"}, "output", "unknown field"),
        ({"prompt": "a", "output": "first.png"}, "output", "also the name of line 1's picture"),
        ({"prompt": "a", "output": "./first.png"}, "output", "also the name of line 1's picture"),
        ({"prompt": "a", "id": "first"}, "id", "line 1 has the same id"),
    ],
)
def test_a_job_that_cannot_be_is_a_fault_and_the_others_are_planned(model, job, field, words):
    good = {"prompt": "x", "output": "first.png", "id": "first"}
    before, fault, after = planned(model, good, job, {"prompt": "y"})
    assert isinstance(before, Planned)
    assert isinstance(after, Planned)
    assert (fault.line, fault.field) == (2, field)
    column = json.dumps(job).index(f'"{field}": ') + len(field) + 5
    assert fault.column == column
    assert words in fault.message


def test_a_model_that_lacks_its_configs_is_the_job_s_fault(model, tmp_path):
    (tmp_path / "empty").mkdir()
    fault, job = planned(model, {"prompt": "a", "model": str(tmp_path / "empty")}, {"prompt": "a"})
    assert "config.json is missing" in fault.message
    assert isinstance(job, Planned)


def test_templates_of_outputs_are_filled(model):
    jobs = [{"prompt": "A Fox", "seed": seed, "output": "sub/{prompt}-{seed}-{index:02}.png"} for seed in (7, 8)]
    assert [job.name for job in planned(model, *jobs)] == ["sub/a-fox-7-01.png", "sub/a-fox-8-02.png"]


@given(st.lists(st.fixed_dictionaries({"prompt": st.sampled_from("ab"), "steps": st.integers(1, 2)}), max_size=8))
@settings(max_examples=30, deadline=None)
def test_keys_are_distinct_and_stable(model, values):
    jobs = [Job(line, each) for line, each in enumerate(values, start=1)]
    first, second = (plan(each, {"model": str(model)}) for each in (jobs, reversed(jobs)))
    keys = [job.key for job in first]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {job.key for job in second}
