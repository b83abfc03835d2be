"""`sdcli batch` as a shell sees it: lines, files, statuses; through kills, full disks and interrupts."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli import cli
from sdcli.diffusion import pipeline
from sdcli.errors import InvalidPicture
from sdcli.files import images
from sdcli.jobs import making
from sdcli.models import assemble
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import timings
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import signals
from tests import tiny
from tests.conftest import Finished, clean_environment

ROOT = Path(__file__).parent.parent
FAST = ("--steps", "1", "--dtype", "float32")
KEYS = [
    "id", "status", "path", "seed", "width", "height", "model", "sha256", "pixels_sha256", "seconds", "memory",
    "warnings", "error", "line", "options",
]  # fmt: skip


@pytest.fixture
def sdcli(tmp_path, monkeypatch, capfd) -> Callable[..., Finished]:
    """`sdcli("batch", …)` runs in this process, which has torch already, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # which the command sets, and pytest then restores
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("TERM", "dumb")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: str | Path) -> Finished:
        capfd.readouterr()
        status = cli.run([str(each) for each in arguments])
        out, err = capfd.readouterr()
        return Finished(status, out.encode(), err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def batch(sdcli, sd15, tmp_path):
    """`batch([job, …], *options)` makes jobs (or a text as it is) into out/."""

    def run(jobs: list[dict] | str, *options: str | Path) -> Finished:
        text = jobs if isinstance(jobs, str) else "".join(json.dumps(job) + "\n" for job in jobs)
        (tmp_path / "jobs").write_text(text)
        return sdcli("batch", "jobs", "-o", "out", "-m", sd15, *FAST, *options)

    return run


def lines_of(done: Finished) -> list[dict]:
    return [json.loads(line) for line in done.lines]


def pictures(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


def test_each_job_is_a_line_and_the_picture_that_generate_makes(batch, sdcli, sd15, tmp_path):
    done = batch([{"prompt": "a fox", "seed": 7, "id": "x"}, {"prompt": "a cat", "steps": 2}])
    first, second = lines_of(done)
    assert (done.status, done.stderr) == (0, "")
    assert list(first) == KEYS
    assert (first["id"], first["status"], first["path"], first["line"]) == ("x", "done", "out/a-fox-7.png", 1)
    assert second["path"] == f"out/a-cat-{second['seed']}.png"
    assert pictures(tmp_path / "out") == {Path(line["path"]).name: line["sha256"] for line in (first, second)}
    assert sdcli("generate", "a fox", "-s", 7, "-m", sd15, *FAST).status == 0
    assert hashlib.sha256((tmp_path / "a-fox-7.png").read_bytes()).hexdigest() == first["sha256"]


def test_json_in_full_has_the_recipe_of_each_job(batch, sdcli):
    jobs = [{"prompt": "a fox", "seed": 7}, {"seed": 8}]
    for status in ("done", "cached"):
        fault, line = lines_of(batch(jobs, "--json=full"))
        assert (fault["status"], fault["recipe"], line["status"]) == ("failed", None, status)
        assert line["recipe"] == json.loads(sdcli("info", line["path"], "--json").stdout)["recipe"]
    plan = json.loads(batch(jobs, "--json=full", "--dry-run").stdout)
    assert plan["jobs"][1]["recipe"] == line["recipe"]


def test_run_again_everything_is_cached_but_what_is_gone_or_changed(batch, tmp_path, monkeypatch):
    jobs = [{"prompt": f"a {{red|blue}} fox {number}", "id": number} for number in range(4)]
    first = {line["id"]: line for line in lines_of(batch(jobs))}
    load = assemble.load
    monkeypatch.setattr(assemble, "load", None)  # nothing is loaded where nothing is missing
    jobs.reverse()
    again = lines_of(batch(jobs))
    assert [line["status"] for line in again] == ["cached"] * 4
    assert [line["id"] for line in again] == [3, 2, 1, 0]
    same = set(KEYS) - {"status", "line"}
    assert all({key: line[key] for key in same} == {key: first[line["id"]][key] for key in same} for line in again)
    monkeypatch.setattr(assemble, "load", load)
    (tmp_path / first[1]["path"]).unlink()
    with (tmp_path / first[2]["path"]).open("ab") as file:
        file.write(b"!")
    third = {line["id"]: line for line in lines_of(batch(jobs))}
    assert {number: line["status"] for number, line in third.items()} == {
        0: "cached",
        1: "done",
        2: "done",
        3: "cached",
    }
    assert third[1]["path"] == first[1]["path"]
    assert third[2]["path"] == first[2]["path"].replace(".png", "-2.png")
    assert all(third[number]["sha256"] == first[number]["sha256"] for number in range(4))
    assert {line["status"] for line in lines_of(batch(jobs))} == {"cached"}


def test_models_are_loaded_once_each_and_lines_come_by_model(batch, sd15, tmp_path, monkeypatch):
    other = tiny.make_folder("sd15", tmp_path / "other", seed=1)
    loaded = []
    load = assemble.load
    monkeypatch.setattr(
        assemble,
        "load",
        lambda weights, recipe, **more: loaded.append(weights.model.path) or load(weights, recipe, **more),
    )
    models = [str(sd15), str(other)] * 2
    done = lines_of(batch([{"prompt": "a", "model": model, "seed": 1, "id": n} for n, model in enumerate(models)]))
    assert loaded == [sd15, other]
    assert [line["id"] for line in done] == [0, 2, 1, 3]
    assert [line["model"] for line in done] == [str(sd15)] * 2 + [str(other)] * 2
    assert len({line["pixels_sha256"] for line in done}) == 2
    assert len({line["path"] for line in done}) == 4


def test_job_three_of_five_broken(batch, tmp_path):
    jobs = [{"prompt": f"fox {number}"} for number in range(5)]
    jobs[2]["steps"] = 0
    done = batch(jobs)
    assert done.status == 7
    assert len(pictures(tmp_path / "out")) == 4
    lines = lines_of(done)
    assert sorted((line["line"], line["status"]) for line in lines) == [
        (1, "done"), (2, "done"), (3, "failed"), (4, "done"), (5, "done")
    ]  # fmt: skip
    broken = next(line for line in lines if line["status"] == "failed")
    assert (broken["column"], broken["field"]) == (30, "steps")
    assert list(broken) == [*KEYS, "column", "field"]
    assert done.stderr.splitlines() == [
        f"error: {broken['error']}",
        "error: 1 of 5 jobs failed",
        "hint: see the error of each; the same command tries only these jobs again",
    ]


def failing(on: str, error: Exception):
    """pipeline.run, failing in every call that holds the prompt `on`."""
    run = pipeline.run

    def fail(model, recipes, on_step, **inputs):
        if any(recipe.condition.prompt == on for recipe in recipes):
            raise error
        return run(model, recipes, on_step, **inputs)

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("shapes"), "RuntimeError: shapes (this is a bug"),
        (InvalidPicture("completely black picture", "try another seed"), "completely black picture (try another seed)"),
        (MemoryError(), "out of memory"),
    ],
)
def test_whatever_a_job_fails_by_the_others_are_made_and_it_is_tried_again(batch, tmp_path, monkeypatch, error, words):
    jobs = [{"prompt": "a"}, {"prompt": "b", "seed": 3}, {"prompt": "c"}]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "run", failing("b", error))
        done = batch(jobs)
    assert done.status == 7
    assert [line["status"] for line in lines_of(done)] == ["done", "failed", "done"]
    failed = lines_of(done)[1]
    assert (failed["seed"], failed["width"], failed["line"]) == (3, 64, 2)
    assert words in failed["error"]
    again = batch(jobs)
    assert again.status == 0
    assert sorted(line["status"] for line in lines_of(again)) == ["cached", "cached", "done"]


def test_a_model_that_does_not_load_fails_its_jobs_alone(batch, tmp_path, sd15):
    broken = shutil.copytree(sd15, tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    done = batch([{"prompt": "a", "model": str(broken)}, {"prompt": "b"}, {"prompt": "c", "model": str(broken)}])
    assert done.status == 7
    assert [(line["line"], line["status"]) for line in lines_of(done)] == [(1, "failed"), (3, "failed"), (2, "done")]


def test_fail_fast_stops_at_the_first(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", failing("b", RuntimeError("shapes")))
    done = batch([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}], "--fail-fast")
    assert (done.status, [line["status"] for line in lines_of(done)]) == (7, ["done", "failed"])
    assert len(pictures(tmp_path / "out")) == 1


def test_a_batch_size_joins_jobs_that_differ_in_their_seeds_and_is_recorded(batch, sdcli, monkeypatch):
    sizes = []
    run = pipeline.run

    def counting(model, recipes, on_step, **inputs):
        sizes.append(len(recipes))
        return run(model, recipes, on_step, **inputs)

    monkeypatch.setattr(pipeline, "run", counting)
    jobs = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate("aabaa")]
    lines = lines_of(batch(jobs, "--batch-size", 3))
    assert sizes == [3, 1, 1]
    assert [line["line"] for line in lines] == [1, 2, 4, 5, 3]
    recorded = [json.loads(sdcli("info", line["path"], "--json").stdout)["recipe"]["batch_size"] for line in lines]
    assert recorded == [3, 3, 3, 1, 1]


def test_a_call_for_several_that_fails_is_tried_one_by_one(batch, monkeypatch):
    run = pipeline.run

    def starved(model, recipes, on_step, **inputs):
        if len(recipes) > 1 or recipes[0].seed == 1:
            raise MemoryError
        return run(model, recipes, on_step, **inputs)

    monkeypatch.setattr(pipeline, "run", starved)
    done = batch([{"prompt": "a", "seed": seed} for seed in range(3)], "--batch-size", 3)
    assert done.status == 7
    assert [line["status"] for line in lines_of(done)] == ["done", "failed", "done"]


def test_lines_and_names_tell_what_varies(batch, sdcli, sd15, tmp_path):
    done = batch('{"prompt": "{a|b} fox", "seed": 7}\n', "--matrix", "scheduler=ddim,euler", "--matrix", "eta=0")
    lines = lines_of(done)
    assert [line["options"]["scheduler"] for line in lines] == ["ddim", "euler"]
    assert all(set(line["options"]) <= {"prompt", "scheduler"} for line in lines)
    assert [Path(line["path"]).name.split("-", 2)[2] for line in lines] == ["ddim-7.png", "euler-7.png"]


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("json_asked", "expected"), [(False, b"done    out/a.png\n"), (True, b'{"status"')])
def test_a_person_at_a_terminal_gets_paths_and_a_program_json(json_asked, expected):
    out = Terminal()
    run = making._Run(making.Batch((), "out", json=json_asked), out, None)
    making._print(run, {"status": "done", "path": "out/a.png", "id": 1})
    making._print(run, {"status": "failed", "path": None})
    assert out.getvalue().startswith(expected)
    assert out.getvalue().count(b"\n") == (2 if json_asked else 1)


def test_a_matrix_of_wildcards(batch, tmp_path):
    options = ("--matrix", "seed=1,2,3", "--matrix", "scheduler=ddim,euler")
    done = batch("a {red|blue} fox\n", *options)
    lines = lines_of(done)
    assert done.status == 0
    assert [line["seed"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert len(pictures(tmp_path / "out")) == len({line["id"] for line in lines}) == 6
    assert {line["status"] for line in lines_of(batch("a {red|blue} fox\n", *options))} == {"cached"}


def test_the_pictures_of_a_matrix_have_one_seed_and_one_choice(sdcli, sd15, tmp_path):
    (tmp_path / "prompts").write_text("a {red|blue|green} fox\na {red|blue|green} owl\n")
    words = ("batch", "prompts", "-o", "out", "-m", sd15, "--dry-run", "--json")
    several = ("--matrix", "steps=1,2,3", "--matrix", "scheduler=ddim,euler")

    def planned(*options):
        recipes = [each["recipe"] for each in json.loads(sdcli(*words, *options).lines[0])["jobs"]]
        return [(each["prompt"], each["seed"]) for each in recipes]

    alike = planned(*several)
    assert len(alike) == 12
    assert [len(set(alike[:6])), len(set(alike[6:])), len({seed for _, seed in alike})] == [1, 1, 2]
    assert len({prompt for prompt, _ in planned("--matrix", "seed=1..20")}) > 2


def test_strict_makes_what_deserves_a_word_a_failure(batch, tmp_path, monkeypatch):
    jobs = [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2, "negative_prompt": "c", "guidance_scale": 1}]
    done = batch(jobs, "--strict")
    failed, made = lines_of(done)
    assert (done.status, made["status"], failed["field"], failed["line"]) == (7, "done", "negative_prompt", 2)
    assert "negative_prompt has no effect" in failed["error"]
    lax = batch(jobs)
    assert (lax.status, [line["status"] for line in lines_of(lax)]) == (0, ["cached", "done"])
    assert lines_of(lax)[1]["warnings"] == ["negative_prompt has no effect: guidance is disabled"]
    assert lax.stderr == "warning: line 2: negative_prompt has no effect: guidance is disabled\n"


def test_a_flat_picture_is_a_failure_where_strict_whether_it_is_there_or_not(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "flatness", lambda picture: "the picture is all of one colour")
    refused = batch([{"prompt": "a"}], "--strict")
    assert (refused.status, pictures(tmp_path / "out")) == (7, {})
    assert "all of one colour" in lines_of(refused)[0]["error"]
    (made,) = lines_of(batch([{"prompt": "a"}]))
    assert (made["status"], made["warnings"]) == ("done", ["the picture is all of one colour"])
    again = batch([{"prompt": "a"}], "--strict")
    assert (again.status, lines_of(again)[0]["status"]) == (7, "failed")
    assert lines_of(batch([{"prompt": "a"}]))[0]["status"] == "cached"


def test_a_batch_size_is_no_option_without_effect(batch):
    assert batch([{"prompt": "a"}, {"prompt": "b"}], "--batch-size", 3, "--strict").status == 0


def planned(done: Finished) -> dict:
    return json.loads(done.stdout)


def test_a_plan_is_what_the_run_then_does(batch, tmp_path, monkeypatch):
    jobs = [{"prompt": f"a {{red|blue}} fox {number}", "id": number} for number in range(4)]
    jobs += [{"prompt": "x", "seed": 1, "id": "first"}, {"prompt": "x", "seed": 1, "output": "a/b.png"}]
    jobs += [{"prompt": "x", "seed": 1, "id": "third"}]
    monkeypatch.setattr(assemble, "load", None)
    plan = planned(batch(jobs, "--dry-run", "--json"))
    assert not (tmp_path / "out").exists()
    assert (plan["status"], plan["planned"], plan["cached"], plan["failed"]) == ("planned", 7, 0, 0)
    assert plan["memory"]["peak"] > plan["memory"]["weights"] > 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    made = lines_of(batch(jobs))
    same = ("id", "path", "seed", "width", "height", "model", "line")
    assert [[line[key] for key in same] for line in plan["jobs"]] == [[line[key] for key in same] for line in made]
    assert {line["path"] for line in plan["jobs"]} >= {"out/x-1.png", "out/x-1-2.png", "out/a/b.png"}
    (tmp_path / made[0]["path"]).unlink()
    after = planned(batch(jobs, "--dry-run", "--json"))
    assert (after["planned"], after["cached"]) == (1, 6)
    assert [line["id"] for line in after["jobs"] if line["status"] == "planned"] == [made[0]["id"]]


def test_a_plan_counts_what_fails_and_says_what_all_takes(batch, sd15, tmp_path):
    jobs = [{"prompt": "a", "seed": seed, "width": side} for seed, side in ((1, 64), (2, 128), (3, 70))]
    jobs.append({"prompt": "a", "clip_skip": 12})
    done = batch(jobs, "--dry-run", "--json", "--device", "cpu", "--threads", 1)
    plan = planned(done)
    assert (done.status, plan["planned"], plan["failed"], plan["seconds"]) == (7, 2, 2, None)
    assert done.stderr.splitlines()[0] == "error: 2 of 4 jobs would fail"
    small, large = (line for line in plan["jobs"] if line["status"] == "planned")
    assert plan["memory"] == large["memory"] != small["memory"]
    assert [model["path"] for model in plan["models"]] == [str(sd15)]
    for line in plan["jobs"]:
        if line["status"] == "planned":
            timings.record(Recipe.from_dict(line["recipe"] | {"device": "cpu"}), Weights(Source(sd15)), 2)
    assert planned(batch(jobs, "--dry-run", "--json", "--device", "cpu", "--threads", 1))["seconds"] == 4
    said = batch(jobs, "--dry-run", "--device", "cpu", "--threads", 1).stdout.decode()
    assert "jobs:     2 to make, 0 cached, 2 failed\n" in said
    assert "seconds:  about 4.0, plus loading the model\n" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_refuses_the_places_that_the_run_would(sdcli, tmp_path):
    (tmp_path / "jobs").write_text("a fox\n")
    (tmp_path / "file").write_text("")
    assert sdcli("batch", "jobs", "-o", "file/sub", "--dry-run").status == 8
    assert sdcli("batch", "jobs", "-o", "new/sub", "--dry-run").status == 0


def test_outputs_are_named_and_kept(batch, tmp_path):
    jobs = [{"prompt": "a", "seed": 1, "output": "sub/a.png"}, {"prompt": "a", "seed": 1, "output": "b-{seed}.png"}]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b-1.png").write_bytes(b"mine")
    done = batch(jobs)
    assert done.status == 7
    assert [line["path"] for line in lines_of(done)] == ["out/sub/a.png", None]
    assert "out/b-1.png already exists" in lines_of(done)[1]["error"]
    forced = batch(jobs, "--force")
    assert [(line["path"], line["status"]) for line in lines_of(forced)] == [
        ("out/sub/a.png", "cached"), ("out/b-1.png", "done")
    ]  # fmt: skip


def interrupting(times: int):
    """pipeline.run, with SIGINT `times` times at its first step."""
    run = pipeline.run

    def interrupted(model, recipes, on_step, **inputs):
        def step(each):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            on_step(each)

        return run(model, recipes, step, **inputs)

    return interrupted


@pytest.mark.parametrize(("times", "finished"), [(1, 1), (2, 0)])
def test_interrupted_once_the_picture_in_hand_is_finished_twice_it_is_not(
    batch, tmp_path, monkeypatch, times, finished
):
    jobs = [{"prompt": "a"}, {"prompt": "b"}]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "run", interrupting(times))
        done = batch(jobs)
    assert done.status == 130
    asked, told = done.stderr.splitlines()
    assert asked == "interrupted: finishing the current picture; press Ctrl-C again to stop now"
    assert told == f"note: {finished} of 2 pictures were made; the same command makes the others"
    assert len(done.lines) == len(pictures(tmp_path / "out")) == finished
    assert signal.getsignal(signal.SIGINT) is signals.interrupt
    again = batch(jobs)
    assert sorted(line["status"] for line in lines_of(again)) == ["cached"] * finished + ["done"] * (2 - finished)


def test_interrupted_where_nobody_reads_stderr_any_more_the_picture_in_hand_is_finished(batch, tmp_path, monkeypatch):
    run = pipeline.run
    stderr = os.dup(2)

    def interrupted(model, recipes, on_step, **inputs):
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)
        os.close(writer)
        os.kill(os.getpid(), signal.SIGINT)
        os.dup2(stderr, 2)
        return run(model, recipes, on_step, **inputs)

    monkeypatch.setattr(pipeline, "run", interrupted)
    done = batch([{"prompt": "a"}, {"prompt": "b"}])
    os.close(stderr)
    assert done.status == 130
    assert [line["status"] for line in lines_of(done)] == ["done"]
    assert len(pictures(tmp_path / "out")) == 1


def test_what_the_user_has_set_counts_for_jobs_too(sdcli, tmp_path, monkeypatch):
    (tmp_path / "jobs").write_text('{"prompt": "a fox"}\n{"prompt": "a cat", "seed": 5}\n')
    monkeypatch.setenv("SDCLI_SEED", "9")
    monkeypatch.setenv("SDCLI_OUTPUT", "pictures/")
    planned = [line.split()[1] for line in sdcli("batch", "jobs", "--dry-run").lines if line.startswith("planned")]
    assert planned == ["pictures/a-fox-9.png", "pictures/a-cat-5.png"]
    assert "elsewhere/a-fox-8.png" in sdcli("batch", "jobs", "-o", "elsewhere", "-s", 8, "--dry-run").stdout.decode()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SDCLI_STEPS", "zero", "SDCLI_STEPS is 'zero'"),
        ("SDCLI_OUTPUT", "fox-{seed}.png", "SDCLI_OUTPUT: output 'fox-{seed}.png' is a file name"),
        ("SDCLI_OUTPUT", "jobs", "SDCLI_OUTPUT: output 'jobs' is not a directory"),
    ],
)
def test_what_the_user_has_set_wrongly_is_no_job_s_fault(sdcli, tmp_path, monkeypatch, variable, value, words):
    (tmp_path / "jobs").write_text("a fox\n")
    monkeypatch.setenv(variable, value)
    done = sdcli("batch", "jobs", "-m", "kit", "--dry-run")
    assert (done.status, done.stdout) == (2, b"")
    assert words in done.stderr


def test_no_jobs_are_done_at_once(batch, tmp_path):
    done = batch("\n\n")
    assert (done.status, done.stdout, done.stderr) == (0, b"", "warning: there are no jobs in jobs\n")


def test_nothing_on_stdin_is_an_error(run):
    done = run("batch", "-", stdin=b"\n")
    assert (done.status, done.stdout, done.stderr.splitlines()[0]) == (4, b"", "error: there are no jobs on stdin")
    assert run("batch").status == 2


def test_a_matrix_of_prompts_needs_no_file(batch, sdcli, sd15):
    done = sdcli(
        "batch", "-m", sd15, "--dry-run", "--json", "-n", "2", "--matrix", "prompt=a,b", "--matrix", "seed=1..3"
    )
    jobs = planned(done)["jobs"]
    assert [job["seed"] for job in jobs] == [1, 2, 2, 3, 3, 4] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["jobs", "-o", "file"], 2, "is not a directory"),
        (["jobs", "--steps", "0"], 2, "steps is 0"),
        (["jobs", "--format", "xml"], 2, "unknown format"),
        (["jobs", "--matrix", "sede=1"], 2, "did you mean 'seed'"),
        (["jobs", "--matrix", "seed=1", "--seed", "2"], 2, "by an option"),
        (["jobs", "-m", "no-such-model"], 3, "no model"),
        (["nothing"], 4, "cannot read nothing"),
        (["bad.csv"], 4, "unknown key"),
        (["."], 4, "cannot read ."),
        (["jobs", "-o", "file/sub"], 8, "cannot write"),
    ],
)
def test_what_no_job_could_mend_is_refused_at_once(sdcli, tmp_path, arguments, status, words):
    (tmp_path / "jobs").write_text("a fox\n")
    (tmp_path / "bad.csv").write_text("prompt,sede\na,1\n")
    (tmp_path / "file").write_text("")
    done = sdcli("batch", *arguments)
    assert (done.status, done.stdout) == (status, b""), done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 2


FORTY = "".join(json.dumps({"prompt": f"a {{red|blue}} fox {number % 8}"}) + "\n" for number in range(40))


@pytest.mark.slow  # tests/jobs/test_ledger.py kills a batch at each of its steps, in one process
@pytest.mark.parametrize("model", [None, "kit"])
def test_forty_jobs_killed_three_times_are_forty_pictures(sd15, tmp_path, model):
    """`kill -9` at random moments after the first picture; then once to the end."""
    (tmp_path / "jobs.jsonl").write_text(FORTY)
    command = [sys.executable, "-m", "sdcli", "batch", "jobs.jsonl", "-o", "out", "-m", model or str(sd15), *FAST]
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    seen: dict[str, dict] = {}
    made = []
    moments = random.Random(0)

    def take(line: bytes) -> None:
        said = json.loads(line)
        assert said["status"] == "cached" or said["id"] not in seen
        assert said["sha256"] == hashlib.sha256((tmp_path / said["path"]).read_bytes()).hexdigest()
        if said["status"] == "done":
            made.append(said["id"])
        elif said["id"] in seen:  # else its line was lost with the process, though not its picture
            assert (said["path"], said["sha256"]) == (seen[said["id"]]["path"], seen[said["id"]]["sha256"])
        seen[said["id"]] = said

    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as process:
            for _ in range(len(seen) + moments.randrange(1, 9)):
                take(process.stdout.readline())
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    take(line)
        assert process.returncode == -9
    last = subprocess.run(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, check=True)
    finished = [json.loads(line) for line in last.stdout.splitlines()]
    assert len({line["id"] for line in finished}) == 40
    assert len({line["path"] for line in finished}) == 40
    assert {line["id"] for line in finished if line["status"] == "cached"} >= set(seen)
    assert len(made) == len(set(made))
    everything = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert everything == {".sdcli-batch.jsonl", *(Path(line["path"]).name for line in finished)}
    assert pictures(tmp_path / "out") == {Path(line["path"]).name: line["sha256"] for line in finished}


def test_lines_go_down_a_pipe_as_pictures_are_made(forked, sd15, tmp_path):
    script = """
    printf 'a fox\\na cat\\n' | "$@" batch - -o out/ -m "$0" --steps 1 |
    "$1" -c 'import json, sys
for line in sys.stdin: print(json.loads(line)["path"])' | xargs ls
    """
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, str(sd15), *forked],
        capture_output=True, text=True, cwd=tmp_path, check=True, env=clean_environment(tmp_path),
    )  # fmt: skip
    listed = done.stdout.splitlines()
    assert [name.rsplit("-", 1)[0] for name in listed] == ["out/a-cat", "out/a-fox"]
    assert sorted(Path(name).name for name in listed) == sorted(pictures(tmp_path / "out"))


FULL_DISK = """
import os, subprocess, sys
from sdcli import cli

def shell(script):
    subprocess.run(["sh", "-ec", script], check=True)

def batch(lines):
    kept = os.dup(1)
    with open(lines, "w") as file:
        os.dup2(file.fileno(), 1)
    status = cli.run(["batch", "jobs.jsonl", "-o", "disk/out", *sys.argv[1:]])
    os.dup2(kept, 1)
    return int(status)

shell("mkdir disk; mount -t tmpfs -o size=40k tmpfs disk")
print(batch("first"), flush=True)
shell("find disk -type f | sort; cd disk/out; sha256sum *.png")
shell("mount -o remount,size=10m disk")
assert batch("second") == 0
shell("cp -r disk/out whole")
"""


def test_a_full_disk_ends_a_batch_and_room_resumes_it(sd15, tmp_path, mounts):
    if mounts is None:
        pytest.skip("this user may not mount a file system, not even in a namespace of its own")
    (tmp_path / "jobs.jsonl").write_text("".join(FORTY.splitlines(keepends=True)[:8]))
    done = subprocess.run(
        [*mounts, sys.executable, "-c", FULL_DISK, "-m", str(sd15), "--steps", "1"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = [json.loads(line) for line in (tmp_path / "first").read_text().splitlines()]
    second = [json.loads(line) for line in (tmp_path / "second").read_text().splitlines()]
    status, *listed = done.stdout.splitlines()
    made = {line["path"]: line["sha256"] for line in first if line["status"] == "done"}
    assert status == "8"
    assert 0 < len(made) < 8
    assert [line["status"] for line in first] == ["done"] * len(made) + ["failed"]
    assert "No space left on device" in first[-1]["error"]
    assert "hint: free some space" in done.stderr
    assert listed[: len(made) + 1] == ["disk/out/.sdcli-batch.jsonl", *sorted(made)]
    assert [line.split() for line in listed[len(made) + 1 :]] == [
        [made[path], Path(path).name] for path in sorted(made)
    ]
    assert [line["status"] for line in second] == ["cached"] * len(made) + ["done"] * (8 - len(made))
    assert {line["path"]: line["sha256"] for line in second}.items() >= made.items()
    assert len(pictures(tmp_path / "whole")) == 8


def test_where_stdout_has_no_room_the_status_is_8(run, tmp_path):
    (tmp_path / "jobs.jsonl").write_text("{\n")
    done = subprocess.run(
        ["sh", "-c", '"$0" -m sdcli batch jobs.jsonl > /dev/full', sys.executable],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 8
    assert "error: stdout: No space left on device" in done.stderr


def test_a_sheet_of_what_is_there_and_a_command_at_the_end(batch, tmp_path):
    jobs = [{"prompt": "a fox", "seed": 1}, {"prompt": "a fox", "steps": 0}, {"prompt": "a fox", "seed": 2}]
    ending = ["--sheet", "out/grid.png", "--html", "--notify", "echo $BATCH_DONE,$BATCH_FAILED; echo x > told"]
    done = batch(jobs, *ending)
    assert done.status == 7
    assert len(done.lines) == 3  # what the command prints is not on stdout
    assert {"1,1", "2,1"} & {*done.stderr.split()}
    assert (tmp_path / "told").exists()
    first = (tmp_path / "out" / "grid.png").read_bytes()
    page = (tmp_path / "out" / "grid.html").read_text()
    assert "seed 1" in page
    assert batch([jobs[0]], *ending).status == 0  # all is cached, and the sheet is replaced by one of the job
    assert (tmp_path / "out" / "grid.png").read_bytes() != first
    (tmp_path / "mine.png").write_bytes(b"mine")
    for options, status, words in (
        (["--sheet", "mine.png"], 8, "mine.png already exists"),
        (["--html"], 2, "--html has no effect without --sheet"),
        (["--sheet", "x.gif"], 2, "neither .png nor .html"),
        (["--sheet", "-"], 2, "--sheet - is not a file"),
    ):
        refused = batch([jobs[0]], *options)
        assert (refused.status, words in refused.stderr, refused.stdout) == (status, True, b"")
