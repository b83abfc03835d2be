"""`sdcli replay`: pictures made again, and proven or disproven. In one process: the fixture makes one picture."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import cli
from sdcli.files.metadata import read
from sdcli.models.source import Source
from tests import tiny
from tests.test_foreign import A1111

FAST = ["--steps", "2", "--dtype", "float32", "--threads", "1"]


@pytest.fixture(scope="module")
def made(sd15, tmp_path_factory) -> Path:
    """A folder with fox.png, and pair-7.png and pair-8.png, made in one batch."""
    folder = tmp_path_factory.mktemp("made")
    model = ["-m", str(sd15), "-s", "7", *FAST]
    assert cli.run(["generate", "a fox", *model, "-o", f"{folder}/fox.png"]) == 0
    assert cli.run(["generate", "a fox", *model, "-n2", "--batch-size", "2", "-o", f"{folder}/pair-{{seed}}.png"]) == 0
    return folder


@pytest.fixture
def fox(made, tmp_path, monkeypatch) -> str:
    """fox.png, in an empty current directory."""
    shutil.copy(made / "fox.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    return "fox.png"


def rewritten(path: str, pixel=None, **changes) -> str:
    """The picture with changes to the recipe in its chunk, and to one pixel."""
    with Image.open(path) as image:
        said = json.loads(image.info["sdcli"])
        said["recipe"] |= changes
        chunks = PngInfo()
        chunks.add_text("sdcli", json.dumps(said))
        copy = image.copy()
        if pixel:
            red, green, blue = copy.getpixel(pixel)
            copy.putpixel(pixel, (red ^ 8, green, blue))
        copy.save("rewritten.png", pnginfo=chunks)
    return "rewritten.png"


def ran(capfd, *arguments: str) -> tuple[int, str, str]:
    status = cli.run(["replay", *arguments])
    return status, *capfd.readouterr()


def test_a_picture_is_proven(capfd, fox):
    assert ran(capfd, "--verify", fox) == (0, "fox.png\n", "")
    assert sorted(path.name for path in Path().iterdir()) == ["fox.png"]


def test_one_changed_pixel_is_found(capfd, fox):
    status, out, err = ran(capfd, "--verify", rewritten(fox, pixel=(3, 5)))
    assert (status, out) == (9, "")
    error, hint = err.splitlines()
    assert error.startswith(
        "error: rewritten.png differs from its replay in 1 of 4,096 pixels, by 8 of 255 at most, PSNR"
    )
    assert hint.startswith("hint: the file was changed later")


def test_of_several_each_is_told(capfd, fox, made):
    status, out, err = ran(capfd, "--verify", "--json", rewritten(fox, pixel=(0, 0)), fox, rewritten(fox, seed=8))
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 9
    assert [line["status"] for line in lines] == ["differs", "identical", "differs"]
    assert lines[0]["path"] == lines[2]["path"] == "rewritten.png"
    assert lines[1]["difference"] is None
    assert lines[2]["difference"]["pixels"] > 1000
    assert lines[2]["reasons"]
    assert err.count("error: ") == 2


def test_without_verify_it_is_made_again_under_the_next_name(capfd, fox):
    first = ran(capfd, fox)
    second = ran(capfd, fox, "--json")
    assert first == (0, "a-fox-7.png\n", "")
    line = json.loads(second[1])
    assert (line["path"], line["status"]) == ("a-fox-7-2.png", "done")
    assert Path("a-fox-7.png").read_bytes() == Path(fox).read_bytes()


def test_a_dry_run_tells_what_would_be_made(capfd, fox, made, sd15):
    status, out, err = ran(capfd, fox, str(made / "pair-8.png"), "--dry-run", "--json", "-o", "again/")
    plans = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [(plan["paths"], plan["seeds"]) for plan in plans] == [
        (["again/a-fox-7.png"], [7]),
        (["again/a-fox-8.png"], [8]),
    ]
    assert plans[0]["model"]["path"] == str(sd15)
    status, out, err = ran(capfd, fox, fox, "--dry-run")
    assert (status, err) == (0, "")
    assert out.count("seeds:  ") == 2
    assert sorted(path.name for path in Path().iterdir()) == ["fox.png"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--verify"], 2, "--verify compares pixels, and --dry-run makes none"),
        (["-o", "nowhere/fox.png"], 8, "nowhere"),
        (["-m", "./none"], 3, "there is no file or folder ./none"),
        (["-o", "-", "--json"], 2, "-o - and --json both write to stdout"),
    ],
)
def test_a_dry_run_fails_as_the_run_does(capfd, fox, words, status, message):
    assert ran(capfd, fox, "--dry-run", *words)[:2] == (status, "")
    assert ran(capfd, fox, *words)[0] in (status, 0)


def test_one_of_a_batch_is_made_again_with_the_others(capfd, made):
    for name in ("pair-7.png", "pair-8.png"):
        assert ran(capfd, "--verify", str(made / name)) == (0, f"{made / name}\n", "")
    assert read(made / "pair-8.png").chunk["batch"] == {"seeds": [7, 8], "index": 1}


def test_the_command_that_info_shows_makes_the_same_picture(capfd, fox, made):
    assert cli.run(["info", "--json", fox]) == 0
    command = json.loads(capfd.readouterr().out)["command"]
    words = shlex.split(command)
    assert words[:2] == ["sdcli", "generate"]
    assert cli.run([*words[1:], "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path(fox).read_bytes()
    assert cli.run(["info", str(made / "pair-8.png")]) == 0
    assert "-n 2" in next(line for line in capfd.readouterr().out.splitlines() if line.startswith("command:"))


def test_the_digest_of_the_model_is_recorded(fox, sd15):

    assert read(fox).chunk["model_digest"] == Source(sd15).sha256


def test_a_device_that_is_not_here_is_said(capfd, fox):
    picture = rewritten(fox, device="mps")
    status, out, err = ran(capfd, "--verify", picture)
    assert (status, out, err) == (
        0,
        "rewritten.png\n",
        "warning: there is no mps device on this machine; the picture is made on cpu\n",
    )
    status, out, err = ran(capfd, "--verify", "--strict", picture)
    assert (status, out) == (2, "")
    assert "no mps device" in err


def test_an_unknown_key_is_said_and_strict_refuses_it(capfd, fox):
    picture = rewritten(fox, cleverness=9)
    status, out, err = ran(capfd, "--verify", "--json", picture)
    assert (status, err) == (0, "warning: unknown metadata key 'cleverness' is not used\n")
    assert json.loads(out)["warnings"] == ["unknown metadata key 'cleverness' is not used"]
    assert ran(capfd, "--verify", "--strict", picture)[0] == 2
    assert cli.run(["info", picture, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["warnings"] == ["unknown metadata key 'cleverness' is not used"]


def test_weights_that_are_not_the_picture_s_are_said_and_strict_refuses_them(capfd, fox, tmp_path):
    other = str(tiny.make_folder("sd15", tmp_path / "other", seed=1))
    capfd.readouterr()
    status, out, err = ran(capfd, fox, "-m", other)
    assert (status, out) == (0, "a-fox-7.png\n")
    assert err.startswith("warning: the model is not what the picture was made with: sha256 ")
    status, out, err = ran(capfd, fox, "-m", other, "--strict")
    assert (status, out) == (2, "")
    assert "hint: select the original model with -m" in err


def test_pictures_go_where_the_user_has_set_and_verify_writes_none(capfd, fox, monkeypatch, tmp_path):
    monkeypatch.setenv("SDCLI_OUTPUT", "again/")
    assert ran(capfd, fox) == (0, "again/a-fox-7.png\n", "")
    monkeypatch.setenv("SDCLI_OUTPUT", "more/")
    assert ran(capfd, fox, "--verify") == (0, "fox.png\n", "")
    assert not (tmp_path / "more").exists()


def test_a_picture_of_a1111_is_made_as_far_as_it_says(capfd, fox, sd15):
    chunks = PngInfo()
    chunks.add_text("parameters", A1111.replace("512x768", "64x64").replace("30", "2").replace("lora", "hypernet"))
    Image.new("RGB", (64, 64)).save("theirs.png", pnginfo=chunks)
    status, out, err = ran(capfd, "theirs.png")
    assert (status, out) == (3, "")
    assert "v1-5-pruned-emaonly" in err
    assert "-m" in err.splitlines()[1]
    status, out, err = ran(capfd, "theirs.png", "-m", str(sd15))
    assert (status, err.count("warning: ")) == (0, 2)
    assert "<hypernet:fluffy:0.8>" in err
    recipe = read(out.strip()).recipe
    assert recipe is not None
    assert (recipe["seed"], recipe["sigmas"], recipe["clip_skip"]) == (4294967295, "karras", 2)
    status, out, err = ran(capfd, "theirs.png", "-m", str(sd15), "--verify")
    assert status == 9
    assert "hint: A1111 made it" in err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["gone.png"], 4),
        (["fox.png", "--verify", "-o", "-"], 2),
        (["fox.png", "fox.png", "-o", "-"], 2),
        (["fox.png", "-o", "fox.png"], 8),
        (["fox.png", "-m", "gone"], 3),
        ([], 2),
    ],
)
def test_refusals_are_two_lines(capfd, fox, arguments, status):
    before = Path(fox).read_bytes()
    found, out, err = ran(capfd, *arguments)
    assert (found, out) == (status, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert Path(fox).read_bytes() == before
