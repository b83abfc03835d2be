"""`sdcli generate` as a shell sees it: stdout, stderr, exit status, files."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from sdcli.files.images import pixels_sha256
from sdcli.models import assemble
from tests.conftest import Finished, clean_environment

FAST = ("--steps", "2", "--dtype", "float32", "--threads", "1")


def two_lines(done: Finished) -> tuple[str, str]:
    """The error and the hint, and a check that nothing else was said."""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert done.stdout == b""
    return error, hint


def files(folder: Path) -> set[str]:
    """All files in `folder` but for the user's cache, which holds what can be lost."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != ".cache"}


def test_stdout_is_exactly_the_path(run, sd15, tmp_path):
    done = run("generate", "Arctic fox!", "--seed", 7, "-m", sd15, *FAST)
    assert (done.status, done.stdout) == (0, b"arctic-fox-7.png\n")
    assert done.stderr == ""
    with Image.open(tmp_path / "arctic-fox-7.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")


def test_libraries_that_print_and_warn_do_not_reach_stdout(run, sd15, monkeypatch):
    load = assemble.load

    def loud(*arguments, **options):
        print("python print")
        sys.stdout.write("python write\n")
        os.write(1, b"raw write\n")
        subprocess.run(["echo", "child"], check=True)
        warnings.warn("a warning", stacklevel=1)
        return load(*arguments, **options)

    monkeypatch.setattr(assemble, "load", loud)
    done = run("generate", "x", "-s", 1, "-m", sd15, *FAST)
    assert (done.status, done.stdout) == (0, b"x-1.png\n")
    for said in ("python print", "python write", "raw write", "child", "a warning"):
        assert said in done.stderr


def test_same_recipe_same_pixels_and_the_second_run_takes_the_next_name(run, sd15, tmp_path):
    first = run("generate", "a fox", "-s", 7, "-m", sd15, *FAST, "--json")
    second = run("generate", "a fox", "-s", 7, "-m", sd15, *FAST, "--json")
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert (one["path"], two["path"]) == ("a-fox-7.png", "a-fox-7-2.png")
    assert one["pixels_sha256"] == two["pixels_sha256"]
    assert one["sha256"] == two["sha256"] == hashlib.sha256((tmp_path / one["path"]).read_bytes()).hexdigest()


def test_json_has_the_keys_promised_and_picture_i_is_the_picture_of_seed_plus_i(run, sd15, tmp_path):
    series = run("generate", "a fox", "-n", 3, "-s", 7, "-m", sd15, *FAST, "--json", "-o", "out/")
    alone = run("generate", "a fox", "-s", 9, "-m", sd15, *FAST, "--json")
    lines = [json.loads(line) for line in series.lines]
    keys = [
        "status",
        "path",
        "seed",
        "width",
        "height",
        "model",
        "sha256",
        "pixels_sha256",
        "seconds",
        "memory",
        "warnings",
        "error",
    ]
    assert all(list(line) == keys for line in lines)
    assert [line["seed"] for line in lines] == [7, 8, 9]
    assert len({line["pixels_sha256"] for line in lines}) == 3
    assert lines[2]["pixels_sha256"] == json.loads(alone.stdout)["pixels_sha256"]
    with Image.open(tmp_path / lines[2]["path"]) as image:
        assert pixels_sha256(image) == lines[2]["pixels_sha256"]
    assert files(tmp_path / "out") == {"a-fox-7.png", "a-fox-8.png", "a-fox-9.png"}


def test_the_recipe_in_the_picture_is_resolved_and_makes_it_again(run, sd15, tmp_path):
    run("generate", "a fox", "-m", sd15, "--steps", 3, "-o", "fox.png")
    recipe = json.loads(run("info", "fox.png", "--json").stdout)["recipe"]
    assert recipe["device"] == "cpu"
    assert recipe["dtype"] in {"float32", "bfloat16"}
    assert recipe["threads"] >= 1
    assert 0 <= recipe["seed"] < 2**32
    again = run(
        "generate", recipe["prompt"], "-m", recipe["model"], "--steps", recipe["steps"], "-s", recipe["seed"],
        "--scheduler", recipe["scheduler"], "--cfg-scale", recipe["guidance_scale"], "--dtype", recipe["dtype"],
        "--threads", recipe["threads"], "-o", "again.png",
    )  # fmt: skip
    assert again.status == 0, again.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "fox.png").read_bytes()


def test_a_batch_is_opted_into_and_recorded(run, sd15, tmp_path):
    done = run("generate", "a fox", "-n", 3, "--batch-size", 2, "-s", 1, "-m", sd15, *FAST)
    assert done.status == 0, done.stderr
    sizes = [json.loads(run("info", path, "--json").stdout)["recipe"]["batch_size"] for path in done.lines]
    assert sizes == [2, 2, 1]


def test_png_bytes_on_stdout(run, sd15, tmp_path):
    done = run("generate", "a fox", "-s", 1, "-m", sd15, *FAST, "-o", "-")
    assert done.status == 0
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.size == (64, 64)
    assert files(tmp_path) == set()


def test_prompt_from_stdin(run, sd15):
    done = run("generate", "-", "-s", 1, "-m", sd15, *FAST, stdin="ein Füchschen\n".encode())
    assert done.stdout.decode() == "ein-füchschen-1.png\n" or done.stdout == b"ein-fuchschen-1.png\n"


@pytest.mark.parametrize(
    ("arguments", "status", "error", "hint"),
    [
        (["x", "--steps", "0"], 2, "steps is 0", "between 1 and 1000"),
        (["x", "--steps", "many"], 2, "--steps", "--help"),
        (["x", "-W", "250"], 2, "width is 250", "248 and 256"),
        (["x", "--scheduler", "eular"], 2, "eular", "euler"),
        (["x", "--seed", "-2"], 2, "seed is -2", "4294967295"),
        (["x", "--seed", "4294967295", "-n", "2"], 2, "seed is 4294967296", "4294967295"),
        (["x", "-n", "0"], 2, "--num-images", "--help"),
        (["x", "-n", "2", "-o", "-"], 2, "one picture", "directory"),
        (["x", "-o", "-", "--json"], 2, "--json", "omit"),
        (["x", "-m", "no-such-model"], 3, "no-such-model", "sdcli models list"),
        (["x", "-m", "sdxl"], 3, "not on this machine", "stabilityai/stable-diffusion-xl-base-1.0"),
        (["fox", "-o", "no/such/place.png"], 8, "no/such", ""),
        (["fox", "-o", "taken.png"], 8, "taken.png", "--force"),
        (["x", "--frobnicate"], 2, "--frobnicate", "--help"),
        ([], 2, "PROMPT", "--help"),
    ],
)
def test_refusals_are_two_lines_and_leave_nothing(run, tmp_path, arguments, status, error, hint):
    (tmp_path / "taken.png").write_bytes(b"mine")
    done = run("generate", *arguments)
    assert done.status == status, done.stderr
    said, advised = two_lines(done)
    assert error in said
    assert hint in advised
    assert files(tmp_path) == {"taken.png"}
    assert (tmp_path / "taken.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "status"),
    [(["x", "--steps", "0"], 2), (["x", "-m", "nothing"], 3), (["-"], 4), (["x", "-o", "no/x.png"], 8)],
)
def test_a_failure_is_a_line_of_json_where_it_is_asked_for(run, words, status):
    done = run("generate", *words, "--json")
    (line,) = map(json.loads, done.lines)
    assert (done.status, line["status"], line["path"]) == (status, "failed", None)
    assert f"error: {line['error']}" in done.stderr.splitlines()


def test_a_plan_without_a_seed_shows_the_name_as_a_template(run, sd15):
    words = ["generate", "a fox", "-m", sd15, "-n", "3", "--dry-run", "--json", "-o", "{prompt}/{seed}.png"]
    plan = json.loads(run(*words).stdout)
    assert (plan["paths"], plan["seeds"], plan["recipe"]["seed"]) == (["a-fox/{seed}.png"], None, None)
    plan = json.loads(run("generate", "a fox", "-m", sd15, "--dry-run", "--json").stdout)
    assert (plan["paths"], plan["seeds"]) == (["a-fox-{seed}.png"], None)
    assert b"seeds:            random" in run("generate", "a fox", "-m", sd15, "--dry-run").stdout
    assert json.loads(run("generate", "a", "-m", sd15, "-s", "7", "--dry-run", "--json").stdout)["seeds"] == [7]


def test_a_name_without_a_suffix_is_told(run, sd15):
    done = run("generate", "a fox", "-m", sd15, "-s", "7", "--dry-run", "-o", "out")
    assert "note: -o out is the name of a file; for a directory, use -o out/" in done.stderr


@pytest.mark.parametrize("stdin", [b"", b" \r\n", b"\xef\xbb\xbf\n"])
def test_a_prompt_from_an_empty_stdin_is_an_error(run, stdin):
    done = run("generate", "-", stdin=stdin)
    assert done.status == 4
    assert "stdin is empty" in two_lines(done)[0]


def test_a_prompt_from_another_system_is_the_same_prompt(run, sd15):
    plans = [
        json.loads(run("generate", "-", "-m", sd15, "-s", 1, "--dry-run", "--json", stdin=each).stdout)
        for each in (b"a fox\nin snow\n", b"\xef\xbb\xbfa fox\r\nin snow\r\n", b"a fox\rin snow\r")
    ]
    assert [each["recipe"]["prompt"] for each in plans] == ["a fox\nin snow"] * 3


def test_stdin_that_is_no_text_is_an_unfit_input(run):
    done = run("generate", "-", stdin=b"\xff\xfe\x00")
    assert done.status == 4
    two_lines(done)


def test_a_device_that_is_not_here(run, sd15):
    done = run("generate", "x", "-m", sd15, "--device", "mps", *FAST)
    assert done.status == 2
    assert "cpu" in two_lines(done)[1]


def test_json_in_full_has_the_recipe_that_info_prints(run, sd15):
    done = run("generate", "a fox", "-s", 7, "-m", sd15, *FAST, "--json=full")
    line = json.loads(done.stdout)
    assert line["recipe"] == json.loads(run("info", line["path"], "--json").stdout)["recipe"]
    plain = json.loads(run("generate", "a fox", "-s", 7, "-m", sd15, *FAST, "--json").stdout)
    assert list(line) == [*plain, "recipe"]
    assert json.loads(run("generate", "", "-m", "./none", "--json=full").stdout)["recipe"] is None


def test_json_in_full_is_a_prompt_after_two_dashes(run, sd15):
    assert run("generate", "-s", 7, "-m", sd15, *FAST, "--", "--json=full").lines == ["json-full-7.png"]


@pytest.mark.parametrize("words", [("generate", "x", "--json=all"), ("info", "x.png", "--json=full")])
def test_another_value_of_json(run, words):
    done = run(*words)
    assert done.status == 2
    assert two_lines(done) == (
        "error: --json takes no such value",
        "hint: use --json, or --json=full where pictures are made",
    )


def test_force_replaces_a_file(run, sd15, tmp_path):
    (tmp_path / "taken.png").write_bytes(b"mine")
    assert run("generate", "x", "-m", sd15, *FAST, "-o", "taken.png", "--force").status == 0
    assert (tmp_path / "taken.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_nan_is_an_invalid_picture(run, sd15, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(sd15, tmp_path / "nan")
    weights = load_file(broken / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] = torch.full_like(weights["conv_out.bias"], float("nan"))
    save_file(weights, broken / "unet" / "diffusion_pytorch_model.safetensors")
    before = files(tmp_path)
    done = run("generate", "x", "-s", 1, "-m", broken, *FAST, "--json")
    assert done.status == 6
    line = json.loads(done.stdout)
    assert (line["status"], line["path"], line["seed"]) == ("failed", None, 1)
    assert line["error"] in done.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "status", "error", "hint"),
    [
        (["a", "fox"], 2, "unexpected arguments: fox", 'quote a prompt of several words, as in "arctic fox"; see'),
        (["fox", "-m", "./none.safetensors"], 3, "there is no file or folder ./none.safetensors", "check the path"),
        (["fox", "--strength", "0.5"], 2, "strength has no effect without an image", "init_latents"),
        (["", "--strict"], 2, "the prompt is empty", "give a prompt"),
    ],
)
def test_slips_of_the_hand_are_told_with_the_way_out(run, words, status, error, hint):
    done = run("generate", *words)
    assert (done.status, done.stdout) == (status, b"")
    first, second = done.stderr.splitlines()
    assert error in first
    assert hint in second


def test_debug_adds_the_traceback(run):
    done = run("generate", "x", "-m", "no-such-model", "--debug")
    assert done.status == 3
    assert "Traceback" in done.stderr
    assert "error: no model 'no-such-model'" in done.stderr


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def started(folder: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command under way in `folder`; killed at the end if it still runs."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=clean_environment(folder)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_written_picture(forked, sd15, tmp_path, number, status):
    with started(tmp_path, *forked, "generate", "x", "-m", sd15, "-n", "1000", "-s", "0", "-o", "out/") as process:
        wait_for(lambda: (tmp_path / "out" / "x-0.png").exists())
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in stderr
    named = {Path(line).name for line in stdout.decode().splitlines()}
    assert named <= files(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            image.load()


def test_a_closed_pipe_ends_it_quietly(forked, sd15, tmp_path):
    with started(tmp_path, *forked, "generate", "x", "-m", sd15, "-n", "1000", "-s", "0", *FAST) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"x-0.png\n"
        process.stdout.close()
        assert process.wait(timeout=60) == -signal.SIGPIPE
        assert process.stderr.read() == b""


def test_a_full_stdout_is_an_output_error(forked, sd15, tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*forked, "generate", "x", "-m", str(sd15), *FAST, "-o", "-"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=clean_environment(tmp_path),
            check=False,
        )
    assert done.returncode == 8
    assert done.stderr.startswith(b"error: stdout")
