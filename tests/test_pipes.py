"""Files that come from pipes, are named by absolute paths, or have moved since a picture was made."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.files import metadata, reading, user_files
from sdcli.recipe import paths
from sdcli.recipe.recipe import Recipe
from tests import tiny
from tests.conftest import Run
from tests.test_segmentation import CLASSES

FAST = ("--steps", "2", "--seed", "7", "--dtype", "float32", "-o", "out.png", "-q")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny.make_controlnet("sd15", tmp_path / "net")
    tiny.make_semantic_folder(tmp_path / "semantic", CLASSES)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    mask = Image.new("L", (72, 64))
    mask.paste(255, (10, 10, 60, 50))
    mask.save(tmp_path / "mask.png")
    Image.fromarray(rng.integers(0, len(CLASSES), (64, 72), dtype=np.uint8)).save(tmp_path / "map.png")
    return tmp_path


@pytest.fixture
def piped() -> Iterator[Callable[[bytes], str]]:
    """`piped(data)`: the path of a pipe with this content, as `<(command)` gives it to a command."""
    opened: list[int] = []

    def pipe(data: bytes) -> str:
        end, write = os.pipe()
        opened.append(end)

        def fill() -> None:
            with os.fdopen(write, "wb") as file, suppress(BrokenPipeError):
                file.write(data)

        threading.Thread(target=fill).start()
        return f"/dev/fd/{end}"

    yield pipe
    for each in opened:
        os.close(each)


WORDS = {
    "img2img": (["img2img", "{}", "a fox"], "photo.png"),
    "inpaint": (["inpaint", "photo.png", "a fox", "--mask", "{}"], "mask.png"),
    "outpaint": (["outpaint", "{}", "a fox", "--left", "8"], "photo.png"),
    "control": (["generate", "a fox", "--control", "net={}"], "photo.png"),
    "latents": (["generate", "a fox", "--init-latents", "{}"], "z.safetensors"),
    "map": (["synthesize", "{}", "a fox", "-m", "semantic"], "map.png"),
}


@pytest.mark.parametrize("name", WORDS)
def test_any_input_can_be_a_pipe_and_is_read_once(name, run: Run, here: Path, sd15: Path, piped):
    words, file = WORDS[name]
    model = [] if "-m" in words else ["-m", sd15]
    if name == "latents":
        assert run("encode", "photo.png", "-o", file, "-q", *model).status == 0
    data = (here / file).read_bytes()
    plain = run(*(each.format(file) for each in words), *model, *FAST)
    assert plain.status == 0, plain.stderr
    expected = metadata.read(here / "out.png")
    ways = [("-", data)]
    if name == "img2img":
        os.mkfifo(here / "fifo")
        threading.Thread(target=(here / "fifo").write_bytes, args=[data]).start()
        ways += [("/dev/stdin", data), (piped(data), b""), ("fifo", b"")]
    for path, stdin in ways:
        done = run(*(each.format(path) for each in words), *model, *FAST, "--force", stdin=stdin)
        assert done.status == 0, (path, done.stderr)
        found = metadata.read(here / "out.png")
        assert found.pixels_sha256 == expected.pixels_sha256
        assert found.recipe is not None
        recorded = [each for _, each, _ in paths.paths_of(found.recipe)]
        assert ("fifo" if path == "fifo" else "-") in recorded
        assert not any("/dev" in each for each in recorded)


def test_stdin_is_one_thing(run: Run, here: Path):
    done = run("img2img", "-", "-", stdin=b"a fox")
    assert done.status == 2
    assert "the prompt and image both read stdin" in done.stderr


def test_jobs_do_not_read_pipes(run: Run, here: Path):
    (here / "jobs.jsonl").write_text('{"prompt": "a fox", "image": "-"}\n{"prompt": "x", "control": "net=/dev/fd/5"}\n')
    done = run("batch", "jobs.jsonl", "-o", "out", "--dry-run")
    assert "- can be read only once" in done.stderr + done.stdout.decode()
    assert "/dev/fd/5 can be read only once" in done.stderr + done.stdout.decode()


def test_latents_and_pictures_go_through_pipes(run: Run, here: Path, sd15: Path, piped):
    data = (here / "photo.png").read_bytes()
    encoded = run("encode", "-", "-o", "-", "-m", sd15, "-q", stdin=data)
    assert encoded.status == 0, encoded.stderr
    assert run("encode", "photo.png", "-m", sd15, "-q").status == 0
    assert encoded.stdout == (here / "photo.safetensors").read_bytes()
    decoded = run("decode", "-", "-o", "-", "-m", sd15, "-q", stdin=encoded.stdout)
    with Image.open(io.BytesIO(decoded.stdout)) as image:
        assert (image.format, image.size) == ("PNG", (72, 64))
    named = run("decode", piped(encoded.stdout), "-m", sd15, "-q")
    assert named.lines == ["stdin.png"]
    assert (here / "stdin.png").read_bytes() == decoded.stdout
    assert run("encode", "photo.png", "-o", "-", "--json", "-m", sd15).status == 2


def test_info_and_replay_read_pipes(run: Run, here: Path, sd15: Path, piped):
    assert run("generate", "a fox", "-m", sd15, *FAST).status == 0
    data = (here / "out.png").read_bytes()
    for path, stdin in (("-", data), (piped(data), b"")):
        done = run("info", path, "--json", stdin=stdin)
        assert json.loads(done.stdout)["recipe"]["prompt"] == "a fox", done.stderr
        assert json.loads(done.stdout)["command"]
    for path, stdin in (("-", data), (piped(data), b"")):
        done = run("replay", "--verify", "--json", path, stdin=stdin)
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "identical"


def test_a_picture_does_not_tell_where_its_inputs_were(run: Run, here: Path, sd15: Path):
    files = [here / "photo.png", "--mask", here / "mask.png", "--control", f"{here}/net={here}/photo.png:0.5"]
    done = run("inpaint", *files[:1], "a fox", *files[1:], "-m", sd15, *FAST, "--save-latents", "z.safetensors")
    assert done.status == 0, done.stderr
    recipe = metadata.read(here / "out.png").recipe
    assert recipe is not None
    assert (recipe["image"], recipe["mask_image"]) == ("photo.png", "mask.png")
    assert recipe["control"] == ["~/net=photo.png:0.5"]
    for file in ("out.png", "z.safetensors"):
        data = (here / file).read_bytes()
        assert f"{here}/photo.png".encode() not in data
        assert f"{here}/mask.png".encode() not in data
    assert run("replay", "--verify", "out.png").status == 0


def test_replay_is_told_where_an_input_is_now(run: Run, here: Path, sd15: Path, piped):
    assert run("inpaint", "photo.png", "a fox", "--mask", "mask.png", "-m", sd15, *FAST).status == 0
    (here / "moved").mkdir()
    for name in ("photo.png", "mask.png"):
        (here / name).rename(here / "moved" / f"my-{name}")
    done = run("replay", "--verify", "out.png")
    assert done.status == 4
    assert "the image of out.png was read from photo.png, which is not here" in done.stderr
    assert "--image FILE; its sha256 is" in done.stderr
    images = ["--image", "moved/my-mask.png", "--image", "moved/my-photo.png"]
    done = run("replay", "--verify", "out.png", *images)
    assert done.status == 0, done.stderr
    data = (here / "moved/my-photo.png").read_bytes()
    done = run("replay", "--verify", "out.png", *images[:2], "--image", piped(data))
    assert done.status == 0, done.stderr
    done = run("replay", "--verify", "out.png", *images, "--image", "map.png")
    assert done.status == 4
    assert "map.png is no input of out.png" in done.stderr
    (here / "elsewhere").mkdir()
    (here / "out.png").rename(here / "elsewhere/out.png")
    for name in ("photo.png", "mask.png"):
        (here / "moved" / f"my-{name}").rename(here / "elsewhere" / name)
    done = run("replay", "--verify", "elsewhere/out.png")
    assert done.status == 0, done.stderr


@pytest.mark.parametrize("place", ["-", "/dev/stdin", "fifo"])
def test_a_recorded_pipe_is_not_read(run: Run, here: Path, sd15: Path, place):
    os.mkfifo(here / "fifo")
    data = (here / "photo.png").read_bytes()
    if place == "fifo":
        threading.Thread(target=(here / "fifo").write_bytes, args=[data]).start()
    assert run("img2img", place, "a fox", "-m", sd15, *FAST, stdin=data).status == 0
    done = run("replay", "--verify", "out.png", stdin=b"nothing of this is read")
    assert done.status == 4
    assert "--image FILE" in done.stderr
    assert run("replay", "--verify", "out.png", "--image", "photo.png").status == 0
    assert "command:" not in run("info", "out.png").stdout.decode()


@given(st.text(max_size=30))
def test_names_of_any_kind_are_streams_or_not(path):
    assert isinstance(reading.is_stream(path), bool)
    assert metadata._shareable(f"/a/b/{path.replace('/', '')}c").find("/") == -1


def test_models_and_add_ons_below_the_home_are_recorded_without_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/fox")
    flat = {
        "model": "/home/fox/a.safetensors", "prompt": "x", "steps": 2, "guidance_scale": 4.0, "scheduler": "ddim",
        "width": 64, "height": 64, "seed": 7, "lora": ["/home/fox/l.safetensors:0.5", "/home/foxes/l.safetensors"],
        "control": ["/home/fox/net=/home/fox/photo.png:0.5:0-0.5"], "embedding": ["/home/fox/e.safetensors", "word"],
        "part": ["vae=/home/fox/vae.safetensors"],
    }  # fmt: skip
    found = metadata.shareable(Recipe.from_dict(flat))
    assert {key: found[key] for key in ("model", "lora", "control", "embedding", "part")} == {
        "model": "~/a.safetensors",
        "lora": ["~/l.safetensors:0.5", "/home/foxes/l.safetensors"],
        "control": ["~/net=photo.png:0.5:0-0.5"],
        "embedding": ["~/e.safetensors", "word"],
        "part": ["vae=~/vae.safetensors"],
    }
    named = paths.exchange_weights(found, lambda key, name: str(user_files.home_path(name)))
    assert named == {
        **flat,
        **{key: value for key, value in named.items() if key not in flat},
        "control": named["control"],
    }


@given(st.text(max_size=30), st.sampled_from(["/", "/home/fox", "/home/fox/"]))
def test_paths_from_home_name_the_same_file(path, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        short = user_files.from_home(f"/home/fox/{path}")
        assert str(user_files.home_path(short)) == str(Path(f"/home/fox/{path}"))
        assert short.startswith("~") == (home != "/")


def test_a_home_that_is_a_link_is_known_by_both_names(monkeypatch, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert {user_files.from_home(f"{tmp_path}/{name}/a/b") for name in ("home", "real")} == {"~/a/b"}
    assert user_files.from_home(f"{tmp_path}/realm/a") == f"{tmp_path}/realm/a"
