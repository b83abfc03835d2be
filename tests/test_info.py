import json
import re

import pytest
from PIL import Image, PngImagePlugin

from sdcli import __version__
from sdcli.commands.info import info
from sdcli.errors import InputError
from sdcli.files.metadata import png_bytes, read
from tests.test_metadata import BASE, NEW, exif_comment, recipe

IMAGE = Image.new("RGB", (6, 5), (200, 100, 50))


@pytest.fixture
def fox(tmp_path):
    path = tmp_path / "fox.png"
    path.write_bytes(png_bytes(IMAGE, recipe(prompt="an arctic fox\nin snow")))
    return path


def a1111(path, text=NEW):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    IMAGE.save(path, pnginfo=chunks)
    return path


def shown(capsys, path, **options) -> str:
    info([str(path)], **options)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_recipe_is_listed_in_aligned_lines(capsys, fox):
    lines = shown(capsys, fox).splitlines()
    starts = {re.match(r"(\w+:)? +", line).end() for line in lines}
    assert len(starts) == 1
    said = dict(re.fullmatch(r"(\w+): +(.*)", line).groups() for line in lines if ":" in line)
    assert said["file"] == str(fox)
    assert said["size"] == "6x5"
    assert said["writer"] == "sdcli"
    assert said["seed"] == str(BASE["seed"])
    assert said["guidance_scale"] == "7.0"
    assert said["prompt_weights"] == "true"
    assert said["software"].startswith(f"sdcli {__version__}, torch 2.")
    assert lines[lines.index(next(each for each in lines if each.startswith("prompt:"))) + 1].strip() == "in snow"
    assert "pixels" not in said


def test_many_files_are_one_line_each_and_one_that_cannot_be_read_hides_no_other(run, tmp_path, fox):
    other = a1111(tmp_path / "other.png")
    done = run("info", fox, "nothing.png", other, "--json")
    assert [json.loads(line)["path"] for line in done.lines] == [str(fox), str(other)]
    assert (done.status, done.stderr.splitlines()[0]) == (
        4,
        "error: cannot read nothing.png: No such file or directory",
    )
    text = run("info", fox, other).stdout.decode()
    assert text == run("info", fox).stdout.decode() + "\n" + run("info", other).stdout.decode()


def test_the_digests_of_the_model_and_of_its_add_ons_are_shown(capsys, tmp_path):
    addons = [{"kind": "lora", "name": "ink", "scale": 0.7, "sha256": "cd" * 32}]
    path = tmp_path / "fox.png"
    path.write_bytes(png_bytes(IMAGE, recipe(), extra={"model_digest": "ab" * 32, "addons": addons}))
    lines = dict(line.split(":", 1) for line in shown(capsys, path).splitlines())
    assert lines["model_digest"].strip() == "ab" * 32
    assert lines["lora ink"].strip() == f"sha256 {'cd' * 32}"
    told = json.loads(shown(capsys, path, json=True))
    assert (told["model_digest"], told["addons"]) == ("ab" * 32, addons)


@pytest.mark.parametrize("addons", [None, 3, "x", [1, {}], {"a": 1}])
def test_digests_of_any_type_are_no_bug(capsys, tmp_path, addons):
    path = tmp_path / "fox.png"
    path.write_bytes(png_bytes(IMAGE, recipe(), extra={"model_digest": [1], "addons": addons}))
    info([str(path)])
    info([str(path)], json=True)
    assert "model_digest:" in capsys.readouterr().out


def test_json_is_one_line_with_all_there_is(capsys, fox):
    out = shown(capsys, fox, json=True)
    assert out.count("\n") == 1
    said = json.loads(out)
    assert said["recipe"] == recipe(prompt="an arctic fox\nin snow").to_dict()
    assert said["fields"]["Sampler"] == "DPM++ 2M"
    assert said["parameters"].startswith("an arctic fox\nin snow\nNegative prompt: owl, blurry\nSteps: 20")
    assert {key: said[key] for key in ("path", "format", "width", "height", "writer", "intact")} == {
        "path": str(fox),
        "format": "PNG",
        "width": 6,
        "height": 5,
        "writer": "sdcli",
        "intact": True,
    }
    assert said["pixels_sha256"] == read(fox).pixels_sha256


def test_a1111_files(capsys, tmp_path):
    IMAGE.save(tmp_path / "b.jpg", exif=exif_comment(b"UNICODE\0" + NEW.encode("utf-16-be")))
    for path in (a1111(tmp_path / "a.png"), tmp_path / "b.jpg"):
        out = shown(capsys, path)
        assert re.search(r"^writer: +A1111$", out, re.MULTILINE)
        assert re.search(r"^Model: +v1-5-pruned-emaonly$", out, re.MULTILINE)
        assert re.search(r"^Prompt: +castle <lora:old-stone:0.8>$", out, re.MULTILINE)
        assert "Negative" not in out
        assert json.loads(shown(capsys, path, json=True))["recipe"] is None


def test_a_picture_without_metadata_says_so(capsys, tmp_path):
    IMAGE.save(tmp_path / "plain.png")
    out = shown(capsys, tmp_path / "plain.png")
    assert "6x5" in out
    assert re.search(r"^metadata: none", out, re.MULTILINE)
    assert json.loads(shown(capsys, tmp_path / "plain.png", json=True))["parameters"] is None


def test_painted_over_pixels_are_told(capsys, fox):
    with Image.open(fox) as image:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("sdcli", image.info["sdcli"])
    Image.new("RGB", (6, 5)).save(fox, pnginfo=chunks)
    assert re.search(r"^pixels: +changed", shown(capsys, fox), re.MULTILINE)
    assert json.loads(shown(capsys, fox, json=True))["intact"] is False


def test_a_hostile_prompt_cannot_talk_to_the_terminal(capsys, tmp_path):
    prompt = "fox\x1b]0;owned\x07\x9b31m\r\nsecond"
    (tmp_path / "ours.png").write_bytes(png_bytes(IMAGE, recipe(prompt=prompt)))
    theirs = a1111(tmp_path / "theirs.png", "fox\x1b]0;owned\x07\x9b31m\nSteps: 1, Sampler: Euler, Seed: \x1b[2J")
    for out in (shown(capsys, tmp_path / "ours.png"), shown(capsys, theirs)):
        assert r"\x1b" in out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", out)
    raw = shown(capsys, tmp_path / "ours.png", json=True)
    assert raw.isascii()
    assert json.loads(raw)["recipe"]["prompt"] == prompt


def test_unreadable_files_are_input_errors(tmp_path):
    with pytest.raises(InputError):
        info([str(tmp_path / "missing.png")])


def test_on_the_shell(run, fox):
    done = run("info", fox)
    assert (done.status, done.stderr) == (0, "")
    assert done.lines[0].split() == ["file:", str(fox)]
    (fox.parent / "text.png").write_text("no picture")
    failed = run("info", "text.png")
    assert (failed.status, failed.stdout) == (4, b"")
    assert re.fullmatch(r"error: text\.png .*\nhint: .*\n", failed.stderr)


def test_info_loads_nothing_heavy(command, fox):
    done = command("info", fox, env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "PIL.Image" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "scipy"}
