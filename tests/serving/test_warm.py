"""`sdcli serve` and `sdcli generate` with SDCLI_SOCKET, as a shell sees them: nothing but the time is different."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from sdcli import __version__
from sdcli.errors import InvalidPicture, InvalidRecipe, ServerBusy, ServerUnavailable, UsageError
from sdcli.files import metadata
from sdcli.making import warm as client
from sdcli.making.maker import Task
from sdcli.making.picture import Picture
from sdcli.models import registry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import tiny
from tests.conftest import clean_environment
from tests.serving.conftest import ROOT, serving, wait_for
from tests.test_light import HEAVY, PROBE

FAST = ("--steps", "2", "--dtype", "float32")
ENDLESS = {"steps": 900}
FOX = {"prompt": "x", "model": "m", "steps": 1, "guidance_scale": 1.0, "scheduler": "ddim", "width": 64, "height": 64}
FOX["seed"] = 1
NOWHERE = Weights(Source(Path("/nowhere"))).to_wire()


@pytest.fixture
def warmly(run, warm):
    """`run`, with the warm process."""
    return lambda *arguments, **options: run(*arguments, **{"env": {"SDCLI_SOCKET": warm.socket}, **options})


@pytest.fixture
def ask(warm):
    """`ask(folder, on_step, steps=…)`: the pictures, from within this process."""

    def ask_warm(folder, on_step=lambda step: None, *, path=warm.socket, count=1, **options):
        entry = registry.find(str(folder))
        flat = {"prompt": "a fox", "model": str(folder), "steps": 2, "seed": 7, "dtype": "float32", **options}
        first = tiny.recipe_for(entry, flat)
        maker, weights = client.WarmMaker(path), Weights(registry.locate(entry))
        tasks = [Task(weights, [first.replace(seed=first.seed + index)]) for index in range(count)]
        return [maker.submit(task, on_step).result()[0] for task in tasks]

    return ask_warm


@pytest.fixture(scope="module")
def nan(sd15, tmp_path_factory):
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(sd15, tmp_path_factory.mktemp("broken") / "nan")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] = torch.full_like(weights["conv_out.bias"], float("nan"))
    save_file(weights, file)
    return broken


def test_bytes_lines_and_files_are_those_of_a_cold_run(run, warmly, sd15, tmp_path):
    command = ("generate", "a (red:1.2) fox", "-m", sd15, "-n", 3, "--batch-size", 2, "-s", 7, *FAST, "--json")
    runs = []
    for name, runner in (("cold", run), ("warm", warmly)):
        (tmp_path / name).mkdir()
        old_umask = os.umask(0o027)
        try:
            done = runner(*command, cwd=tmp_path / name)
        finally:
            os.umask(old_umask)
        lines = [json.loads(line) for line in done.lines]
        seconds = [line.pop("seconds") for line in lines]
        assert all(each > 0 for each in seconds)
        runs.append((done.status, lines, done.stderr))
    assert runs[0] == runs[1]
    assert runs[0][0] == 0
    names = sorted(path.name for path in (tmp_path / "cold").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "warm").iterdir())
    assert len(names) == 3
    for name in names:
        cold, warm = tmp_path / "cold" / name, tmp_path / "warm" / name
        assert cold.read_bytes() == warm.read_bytes()
        assert stat.S_IMODE(warm.stat().st_mode) == stat.S_IMODE(cold.stat().st_mode) == 0o640


def test_paths_templates_and_stdout_are_the_caller_s(warmly, sd15, tmp_path):
    assert warmly("generate", "A fox!", "-m", sd15, "-s", 1, *FAST).stdout == b"a-fox-1.png\n"
    assert warmly("generate", "A fox!", "-m", sd15, "-s", 1, *FAST).stdout == b"a-fox-1-2.png\n"
    assert warmly("generate", "x", "-m", sd15, "-s", 1, *FAST, "-o", "t-{seed}.png").stdout == b"t-1.png\n"
    piped = warmly("generate", "-", "-m", sd15, "-s", 1, *FAST, "-o", "-", stdin=b"A fox!")
    assert piped.stdout == (tmp_path / "a-fox-1.png").read_bytes() == (tmp_path / "a-fox-1-2.png").read_bytes()


def both_ways(run, warmly, tmp_path, *commands, prepare=lambda folder: None):
    """What cold and warm runs of `commands` say and leave behind, each in a folder of its own; they must be alike."""
    told = []
    for name, runner in (("cold", run), ("warm", warmly)):
        folder = tmp_path / name
        folder.mkdir()
        prepare(folder)
        done = [runner(*command, cwd=folder) for command in commands]
        said = [[json.loads(line) if line.startswith("{") else line for line in each.lines] for each in done]
        for line in (line for lines in said for line in lines if isinstance(line, dict)):
            line.pop("seconds")
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix == ".png"
        }
        told.append(([each.status for each in done], said, [each.stderr for each in done], files))
    assert told[0] == told[1]
    return told[0]


def test_batches_are_those_of_a_cold_run(run, warmly, sd15, tmp_path):
    jobs = [{"prompt": f"a {{red|blue}} fox {number}"} for number in range(3)]
    jobs += [{"prompt": "a", "seed": seed, "batch_size": 2} for seed in range(3)] + [{"prompt": "a", "device": "mps"}]

    def prepare(folder):
        (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))

    command = ("batch", "jobs.jsonl", "-o", "out", "-m", sd15, *FAST)
    statuses, lines, errors, files = both_ways(run, warmly, tmp_path, command, command, prepare=prepare)
    assert statuses == [7, 7]
    assert sorted(line["status"] for line in lines[1]) == ["cached"] * 6 + ["failed"]
    assert "there is no mps device here" in errors[0]
    assert len(files) == 6


def test_pictures_that_start_from_pictures_and_replays_are_those_of_a_cold_run(run, warmly, sd15, tmp_path):
    import numpy as np
    from PIL import Image

    def prepare(folder):
        pixels = np.random.default_rng(1).integers(0, 256, (80, 96, 3), dtype=np.uint8)
        (folder / "in").mkdir()
        Image.fromarray(pixels).save(folder / "in" / "photo.png")
        Image.fromarray(pixels[..., 0]).save(folder / "in" / "mask.png")

    common = ("-m", sd15, "-s", 7, *FAST)
    statuses, lines, _, files = both_ways(
        run,
        warmly,
        tmp_path,
        ("img2img", "in/photo.png", "a fox", *common, "-o", "again.png"),
        ("inpaint", "in/photo.png", "a fox", "--mask", "in/mask.png", *common, "-o", "inpainted.png"),
        ("replay", "again.png", "inpainted.png", "--verify", "-m", sd15),
        ("replay", "again.png", "-o", "replayed.png", "--json", "-m", sd15),
        prepare=prepare,
    )
    assert statuses == [0, 0, 0, 0]
    assert lines[2] == ["again.png", "inpainted.png"]
    assert files["replayed.png"] == files["again.png"]


def test_a_model_that_needs_a_mask_is_loaded_in_advance(run, serve, tmp_path):
    import numpy as np

    inpainting = tiny.make_folder("sd15", tmp_path / "inpainting", in_channels=9)
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("photo.png", "mask.png"):
        Image.fromarray(pixels).convert("RGB").save(tmp_path / name)
    words = ("inpaint", "photo.png", "a fox", "--mask", "mask.png", "-m", inpainting, "-s", 7, *FAST)
    with serve("-m", inpainting) as warm:
        assert run(*words, "-o", "warm.png", env={"SDCLI_SOCKET": warm.socket}).stderr == ""
        refused = run("generate", "a fox", "-m", inpainting, env={"SDCLI_SOCKET": warm.socket})
    assert (refused.status, "can only inpaint" in refused.stderr) == (2, True)
    assert run(*words, "-o", "cold.png").status == 0
    assert (tmp_path / "warm.png").read_bytes() == (tmp_path / "cold.png").read_bytes()


def test_latents_are_saved_and_started_from_as_by_a_cold_run(run, warmly, sd15, tmp_path):
    for name, runner in (("cold", run), ("warm", warmly)):
        (tmp_path / name).mkdir()
        make = partial(runner, "generate", "a fox", "-m", sd15, "-s", 1, *FAST, cwd=tmp_path / name)
        assert make("-o", "x.png", "--save-latents", "z.safetensors").status == 0
        assert make("-o", "y.png", "--init-latents", "z.safetensors", "--strength", 1).status == 0
    for file in ("x.png", "z.safetensors", "y.png"):
        assert (tmp_path / "warm" / file).read_bytes() == (tmp_path / "cold" / file).read_bytes()


def test_pictures_that_follow_pictures_are_those_of_a_cold_run(run, warmly, sd15, tmp_path, tmp_path_factory):
    """ControlNets by name and by a path of the caller's, and a U-Net that takes a map."""
    import numpy as np
    from PIL import Image

    from sdcli.files.palette import Class

    weights = tmp_path_factory.mktemp("weights")  # not below the home, which is another one in this warm process
    edges = tiny.make_controlnet("sd15", weights / "edges")
    classes = (Class(0, "sky", (1, 2, 3)), Class(1, "sea", (4, 5, 6)))
    semantic = tiny.make_semantic_folder(weights / "semantic", classes)

    def prepare(folder):
        indices = np.random.default_rng(1).integers(0, 2, (64, 64), dtype=np.uint8)
        Image.fromarray(indices).save(folder / "map.png")
        (folder / "net").symlink_to(edges)

    common = ("-m", sd15, "-s", 7, *FAST)
    statuses, _, _, files = both_ways(
        run,
        warmly,
        tmp_path,
        ("generate", "a fox", "--control", "net=map.png:0.7", *common, "-o", "one.png"),
        ("generate", "a fox", *common, "-W", "64", "-H", "64", "-o", "none.png"),
        ("synthesize", "map.png", "a fox", "--control", "net", *common, "-o", "two.png"),
        ("synthesize", "map.png", "a fox", "-m", semantic, "-s", 7, *FAST, "-o", "three.png"),
        ("replay", "one.png", "two.png", "three.png", "--verify"),
        prepare=prepare,
    )
    assert statuses == [0] * 5
    assert len(set(files.values())) == len(files) == 5  # with the map


def test_a_batch_ends_where_the_warm_process_does_and_goes_on_without_it(run, sd15, tmp_path):
    (tmp_path / "jobs").write_text("a fox\nan owl\n")
    command = ("batch", "jobs", "-o", "out", "-m", sd15, *FAST)
    done = run(*command, env={"SDCLI_SOCKET": "gone.sock"})
    assert done.status == 10
    assert [(json.loads(line)["line"], json.loads(line)["status"]) for line in done.lines] == [(1, "failed")]
    assert "no process answers at SDCLI_SOCKET=gone.sock" in done.stderr
    assert run(*command).status == 0


def test_ctrl_c_in_a_batch_finishes_the_current_picture_and_then_not(warm, ask, forked, sd15, tmp_path):
    (tmp_path / "jobs").write_text("".join(f"a fox {number}\n" for number in range(200)))
    command = [*forked, "batch", "jobs", "-m", str(sd15), *FAST[2:], "--steps", "20"]
    environment = clean_environment(tmp_path) | {"SDCLI_SOCKET": warm.socket}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"finishing the current picture" in stderr
    lines = [json.loads(line) for line in (first + stdout).splitlines()]
    assert {line["path"] for line in lines} == {path.name for path in tmp_path.glob("*.png")}
    assert 1 <= len(lines) < 200
    assert ask(sd15)
    assert warm.process.poll() is None


def test_the_client_imports_nothing_heavy(warm, sd15, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "generate", "x", "-m", str(sd15), *FAST, "--json"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT), "SDCLI_SOCKET": warm.socket},
    )
    report = json.loads(done.stdout.decode().splitlines()[-1])
    assert report["status"] == 0, done.stderr.decode()
    assert not set(report["modules"]) & (HEAVY | {"fastapi", "uvicorn", "httpx", "asyncio"})


def test_a_relative_model_is_the_caller_s_and_errors_name_it_so(run, warmly, sd15, tmp_path):
    place = shutil.copytree(sd15, tmp_path / "here" / "model")
    good = warmly("generate", "x", "-m", "model", "-s", 1, *FAST, "-o", "x.png", cwd=tmp_path / "here")
    assert good.status == 0, good.stderr
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    command = ("generate", "x", "-m", "model", "-s", 1, *FAST, "--json", "-o", "y.png")
    cold, warm = run(*command, cwd=tmp_path / "here"), warmly(*command, cwd=tmp_path / "here")
    assert (cold.status, cold.stdout, cold.stderr) == (warm.status, warm.stdout, warm.stderr)
    assert cold.status == 3
    assert "error: model/unet" in warm.stderr


def test_a_model_of_nan_is_an_invalid_picture(warmly, nan, tmp_path):
    done = warmly("generate", "x", "-m", nan, "-s", 1, *FAST, "--json")
    assert done.status == 6
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    line = json.loads(done.stdout)
    assert (line["status"], line["path"], line["seed"]) == ("failed", None, 1)
    assert line["error"] in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--steps", "0"], 2, "steps is 0"),
        (["-m", "no-such-model"], 3, "no-such-model"),
        (["-o", "no/such/x.png"], 8, "no/such"),
        (["--device", "mps"], 2, "mps"),
    ],
)
def test_refusals_have_the_statuses_of_a_cold_run(warmly, sd15, arguments, status, said):
    done = warmly("generate", "x", "-m", sd15, *FAST, *arguments)
    assert (done.status, done.stdout) == (status, b"")
    assert said in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("left_behind", [False, True])
def test_where_nobody_answers_it_says_so_and_what_to_do(run, sd15, tmp_path, left_behind):
    if left_behind:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.path.relpath(tmp_path / "dead.sock"))
    done = run("generate", "x", "-m", sd15, *FAST, env={"SDCLI_SOCKET": "dead.sock"})
    assert (done.status, done.stdout) == (10, b"")
    error, hint = done.stderr.splitlines()
    assert "SDCLI_SOCKET=dead.sock" in error
    assert "sdcli serve --socket dead.sock" in hint


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("SDCLI_SOCKET", "")
    assert client.socket_path() is None


def test_another_version_is_refused_by_both_ends(ask, sd15, monkeypatch):
    monkeypatch.setattr(client, "__version__", "9.9.9")
    with pytest.raises(ServerUnavailable, match=r"is sdcli 0\.1\.0, and this is sdcli 9\.9\.9"):
        ask(sd15)
    monkeypatch.setattr(client, "_check_version", lambda *_: None)
    with pytest.raises(ServerUnavailable, match=r"is from version 9\.9\.9"):
        ask(sd15)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "is not sdcli serve"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "ended before"),
        (b"", "ended before"),
        (f"HTTP/1.1 200 OK\r\n{client.VERSION_HEADER}: {__version__}\r\n\r\n<html>\n".encode(), "ended before"),
        (
            f"HTTP/1.1 200 OK\r\n{client.VERSION_HEADER}: {__version__}\r\nTransfer-Encoding: chunked\r\n\r\n"
            '1d\r\n{"step": {"index": 0, "total": 2}}\n'.encode(),
            "ended before",
        ),
    ],
)
def test_who_is_no_warm_process_or_ends_too_soon_is_told_from_one(ask, sd15, tmp_path, monkeypatch, answer, said):
    monkeypatch.chdir(tmp_path)
    with answering(answer), pytest.raises(ServerUnavailable, match=said):
        ask(sd15, path="s.sock")


def answered_with(change) -> bytes:
    """A response with the picture that `ask` wants, after `change` of its JSON."""
    of = Recipe.from_dict(FOX)
    made = metadata.png_bytes(Image.new("RGB", (64, 64)), of)
    line = Picture(png=made, pixels_sha256="0" * 64, recipe=of, seconds=1.0).to_wire()
    body = json.dumps({"pictures": change(line)}).encode() + b"\n"
    head = f"HTTP/1.1 200 OK\r\n{client.VERSION_HEADER}: {__version__}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: [line | {"png": b64encode(b"GIF89a").decode()}], "sha256"),
        (lambda line: [line | of_bytes(b"GIF89a")], "not a PNG"),
        (lambda line: [line | of_bytes(b"\x89PNG\r\n\x1a\n")], "lacks a chunk"),
        (lambda line: [line | of_bytes(b64decode(line["png"])[:-5])], "damaged"),
        (lambda line: [line | of_bytes(b64decode(line["png"])[:70] + b"x" + b64decode(line["png"])[71:])], "damaged"),
        (lambda line: [line | {"recipe": line["recipe"] | {"seed": 2}}], "another one"),
        (lambda line: [line | {"recipe": "x"}], "did not"),
        (lambda line: [line | {"seconds": "x"}], "another type"),
        (lambda line: [line | {"flat": 1}], "another type"),
        (lambda line: [line | {"pixels_sha256": "\x1b[2J"}], "out of range"),
        (lambda line: [line, line], "2 pictures came"),
        (lambda line: [], "0 pictures came"),
        (lambda line: {"a": 1}, "0 pictures came"),
        (lambda line: [1], "did not"),
    ],
)
def test_a_process_that_sends_something_else_than_the_picture_is_told(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    task = Task(Weights(Source(Path("/nowhere"))), [Recipe.from_dict(FOX)])
    with answering(answered_with(change)), pytest.raises(ServerUnavailable, match=said) as caught:
        client.WarmMaker("s.sock").submit(task).result()
    assert "did not send the picture" in caught.value.message
    with answering(answered_with(lambda line: [line])):
        (picture,) = client.WarmMaker("s.sock").submit(task).result()
    assert picture.recipe == task.recipes[0]


def test_a_process_of_another_user_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(struct, "unpack", lambda form, data: (1, 54321, 1))
    task = Task(Weights(Source(Path("/nowhere"))), [Recipe.from_dict(FOX)])
    with answering(b""), pytest.raises(ServerUnavailable, match="another user"):
        client.WarmMaker("s.sock").submit(task).result()


def test_only_errors_of_sdcli_are_raised():
    for kind in ("ExitStatus", "IntEnum", "__name__"):
        with pytest.raises(TypeError):
            client.error_from_wire({"kind": kind, "message": "a", "hint": "b"}, "/", "/")


def of_bytes(data: bytes) -> dict[str, str]:
    return {"png": b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest()}


@contextmanager
def answering(answer: bytes) -> Iterator[None]:
    """A process at s.sock that gives one answer."""
    Path("s.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.sock")
        listener.listen()
        listener.settimeout(20)

        def reply() -> None:
            connection, _ = listener.accept()
            connection.settimeout(20)
            with connection, suppress(OSError):  # a client that refuses leaves at once
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # what is unread when it closes would break the connection off
                    pass

        thread = threading.Thread(target=reply)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_steps_come_as_they_are_done(ask, sd15):
    steps, times = [], []

    def on_step(step):
        steps.append((step.index, step.total))
        times.append(time.monotonic())

    ask(sd15, on_step, steps=6)
    assert steps == [(index, 6) for index in range(1, 7)]
    assert times[-1] - times[0] > 0.01  # not all at the end


def test_errors_are_raised_as_what_they_were(ask, sd15, nan):
    with pytest.raises(InvalidPicture):
        ask(nan)
    with pytest.raises(InvalidRecipe, match="mps"):
        ask(sd15, device="mps")


def test_the_environment_s_threads_are_asked_for(ask, sd15, monkeypatch):
    def threads(**options):
        recipe = tiny.recipe_for(registry.find(str(sd15)), {"prompt": "", "model": "x", **options})
        return client.with_threads(recipe).execution.threads

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads() == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (threads(), threads(threads=5)) == (2, 5)
    assert ask(sd15, steps=1)[0].recipe.execution.threads == 2
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # torch uses it first
    assert threads() == 3
    for nonsense in ("many", "0", "-1", "1,2", "9999"):
        monkeypatch.setenv("MKL_NUM_THREADS", nonsense)
        assert threads() == 0


def test_clients_at_once_get_each_their_own(ask, sd15):
    alone = [ask(sd15, seed=seed)[0].png for seed in range(8)]
    made = {}

    def series(start):
        made[start] = [each.png for each in ask(sd15, seed=start, count=2)]

    threads = [threading.Thread(target=series, args=(start,)) for start in (0, 2, 4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [png for start in (0, 2, 4, 6) for png in made[start]] == alone


class Gone(Exception):
    pass


def test_who_goes_in_mid_picture_cancels_it(ask, sd15):
    def leave(step):
        if step.index == 2:
            raise Gone

    for _ in range(3):
        with pytest.raises(Gone):
            ask(sd15, leave, **ENDLESS)
    started = time.monotonic()
    ask(sd15)
    assert time.monotonic() - started < 10  # a thousand steps take far longer


def test_ctrl_c_ends_the_client_and_not_the_warm_process(warm, ask, forked, sd15, tmp_path):
    with subprocess.Popen(
        [*forked, "generate", "x", "-m", str(sd15), "-n", "1000", "-s", "0", *FAST],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(tmp_path) | {"SDCLI_SOCKET": warm.socket},
    ) as process:
        wait_for(lambda: (tmp_path / "x-0.png").exists())
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert re.fullmatch(rb"(note: \d+ of 1000 pictures were made\n)?", stderr)
    assert set(stdout.decode().splitlines()) <= {path.name for path in tmp_path.iterdir()}
    assert ask(sd15)
    assert warm.process.poll() is None


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ({"weights": NOWHERE, "directory": "/", "recipes": []}, UsageError, "an invalid request"),
        ({"recipes": 3}, UsageError, "an invalid request"),
        ({"weights": {}, "directory": "/", "recipes": [FOX]}, UsageError, "without weights"),
        ({"weights": NOWHERE, "directory": "/", "recipes": [{"prompt": "x"}]}, InvalidRecipe, "missing"),
    ],
)
def test_nonsense_is_refused_in_the_same_words(warm, body, error, said, monkeypatch):
    monkeypatch.chdir(Path(warm.socket).parent)
    with client._post("warm.sock", json.dumps(body).encode()) as response:
        assert response.status == 400
        wrong = client.error_from_wire(json.loads(response.read())["error"], "/", "/")
    assert isinstance(wrong, error)
    assert said in wrong.message


def post(url: str, body: dict) -> tuple[int, dict]:
    host = url.removeprefix("http://").split("/")[0]
    with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        connection.request("POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_a_full_line_turns_away_and_the_first_signal_finishes_the_picture_in_hand(run, serve, ask, sd15, tmp_path):
    with serve("--queue", 0, "-m", sd15) as own:
        made, begun = [], threading.Event()
        path = own.socket
        thread = threading.Thread(
            target=lambda: made.extend(ask(sd15, lambda step: begun.set(), path=path, steps=60)), daemon=True
        )
        thread.start()
        assert begun.wait(30)
        with pytest.raises(ServerBusy):
            ask(sd15, path=path)
        status, answer = post(own.url, {"prompt": "x", "model": str(sd15), "size": "64x64"})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        own.process.send_signal(signal.SIGINT)
        wait_for(lambda: not Path(path).exists())
        with pytest.raises(ServerUnavailable):
            ask(sd15, path=path)
        assert not made
        assert own.end() == (130, "")
        thread.join(10)
        assert len(made) == 1


def test_a_place_in_a_full_line_can_be_waited_for(ask, sd15, monkeypatch):
    """The server is real, and refuses the first three requests."""
    refusals, real = [ServerBusy("full", "later")] * 3, client._ask

    def busy_at_first(*arguments):
        if refusals:
            raise refusals.pop()
        return real(*arguments)

    monkeypatch.setattr(client, "_ask", busy_at_first)
    monkeypatch.setattr(client, "_SECONDS_BETWEEN", 0.01)
    monkeypatch.setenv("SDCLI_WAIT", "0")
    with pytest.raises(ServerBusy) as caught:
        ask(sd15)
    assert "SDCLI_WAIT=SECONDS" in caught.value.hint
    assert len(refusals) == 2
    monkeypatch.setenv("SDCLI_WAIT", "60")
    assert ask(sd15)
    assert not refusals


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_time_to_wait_is_a_number_of_seconds(ask, sd15, monkeypatch, text):
    monkeypatch.setenv("SDCLI_WAIT", text)
    with pytest.raises(UsageError, match="SDCLI_WAIT is"):
        ask(sd15)


def background(folder: Path, forked: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Start a server in the background, with pipes that end only when nobody has them open any more."""
    return subprocess.run(
        [*forked, "serve", "--background", *map(str, arguments)],
        cwd=folder,
        env=clean_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_in_the_background_it_returns_when_it_is_ready(run, forked, sd15, tmp_path):
    options = ("--port", 0, "--pid-file", "pid", "--log", "log", "-m", sd15)
    started = background(tmp_path, forked, "--socket", "s.sock", *options)
    try:
        assert started.returncode == 0, started.stderr
        socket_, url = started.stdout.splitlines()
        pid = int((tmp_path / "pid").read_text())
        assert (socket_, started.stderr) == (
            "s.sock",
            f"note: sdcli serve is process {pid}; stop it with: kill {pid}\n",
        )
        assert os.getsid(pid) == pid  # no signals of the terminal
        assert run("generate", "x", "-m", sd15, *FAST, env={"SDCLI_SOCKET": "s.sock"}).status == 0
        assert post(url, {"prompt": "x", "steps": 1})[0] == 200
        wait_for(lambda: (tmp_path / "log").read_text().count("POST /") == 2)  # written after the reply
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        wait_for(lambda: not (tmp_path / "pid").exists())
    assert not (tmp_path / "s.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--socket", "s.sock", "-m", "no-such-model"], 3, "no-such-model"),
        (["--socket", "no/such/s.sock"], 8, "mkdir -p no/such"),
        (["--port", "0", "--log", "no/such/log"], 8, "cannot write no/such/log"),
        (["--port", "0", "--pid-file", "no/such/pid"], 8, "cannot write no/such/pid"),
    ],
)
def test_in_the_background_it_fails_as_in_the_foreground(forked, tmp_path, arguments, status, said):
    started = background(tmp_path, forked, *arguments)
    assert (started.returncode, started.stdout) == (status, "")
    assert said in started.stderr
    assert list(tmp_path.glob("*")) == []


@pytest.mark.parametrize(("is_ready", "status"), [(True, 0), (False, 143)])
def test_sigterm_is_how_a_service_is_stopped_once_it_is_ready(is_ready, status):
    from sdcli.serving import process
    from sdcli.serving.limits import Limits
    from sdcli.serving.line import Line

    line, ready = Line(0), asyncio.Event()
    service = process.Service(None, None, (), 1, 0, None, Limits(), None, quiet=True, debug=False)

    async def life() -> None:
        if is_ready:
            ready.set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert asyncio.run(process._serve(service, [], line, ready, life())) == status
    finally:
        signal.signal(signal.SIGTERM, before)
        line.end()


def test_a_server_that_is_killed_before_it_is_ready_is_an_error(monkeypatch):
    from sdcli.serving import background as child

    monkeypatch.setattr(os, "waitpid", lambda *_: (1, signal.SIGKILL))
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(ServerUnavailable, match=r"ended before it was ready \(signal 9\)"):
        child._await(1, reader, 1)


def test_without_a_model_it_starts_at_once_and_torch_waits_for_the_first_picture(tmp_path):
    with serving(tmp_path, [sys.executable, "-m", "sdcli"]) as own:
        assert stat.S_IMODE(Path(own.socket).stat().st_mode) == 0o600
        mapped = Path(f"/proc/{own.process.pid}/maps").read_text()
        assert "libtorch" not in mapped
        own.process.terminate()
        assert own.end() == (0, "")  # a service that was stopped
    assert not Path(own.socket).exists()


def test_idle_it_ends_with_success_and_a_dead_socket_is_replaced(serve, tmp_path):
    with serve() as own:
        own.process.kill()
        own.end()
    assert Path(own.socket).exists()
    with serve("--idle-exit", 0.3) as own:
        started = time.monotonic()
        assert own.end() == (0, "")
        assert time.monotonic() - started > 0.2
    assert not Path(own.socket).exists()


def test_a_second_server_is_refused(run, warm):
    done = run("serve", "--socket", "warm.sock", cwd=Path(warm.socket).parent)
    assert (done.status, done.stdout) == (8, b"")
    assert "another process listens on warm.sock" in done.stderr
    assert Path(warm.socket).exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "needs an address"),
        (["--socket", "s.sock", "-m", "no-such-model"], 3, "no-such-model"),
        (["--socket", "no/such/s.sock"], 8, "mkdir -p no/such"),
        (["--socket", "s.sock", "--keep", "0"], 2, "--keep"),
        (["--socket", "s.sock", "--log", "x"], 2, "--log has no effect without --background"),
    ],
)
def test_what_cannot_be_served_is_refused(run, tmp_path, arguments, status, said):
    done = run("serve", *arguments)
    assert (done.status, done.stdout) == (status, b"")
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_ends_it(run, sd15, tmp_path):
    place = shutil.copytree(sd15, tmp_path / "model")
    (place / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    done = run("serve", "--socket", "s.sock", "-m", "model")
    assert (done.status, done.stdout) == (3, b"")
    assert "model/unet" in done.stderr.splitlines()[0]
    assert not (tmp_path / "s.sock").exists()


def test_without_its_packages_it_says_what_to_install(tmp_path):
    probe = "import sys; sys.modules['fastapi'] = None\nfrom sdcli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", probe, "serve", "--socket", "s.sock"],
        capture_output=True,
        cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert b"pip install 'sdcli[serve]'" in done.stderr


def test_what_comes_through_a_pipe_is_sent(run, warmly, sd15, tmp_path):
    Image.effect_noise((64, 72), 60).save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    asked = ("a fox", "-m", sd15, "-s", 7, *FAST)
    assert run("img2img", "photo.png", *asked, "-o", "plain.png").status == 0
    done = warmly("img2img", "-", *asked, "-o", "piped.png", stdin=data)
    assert done.status == 0, done.stderr
    plain, piped = (metadata.read(tmp_path / name) for name in ("plain.png", "piped.png"))
    assert plain.pixels_sha256 == piped.pixels_sha256
