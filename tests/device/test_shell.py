"""Commands on the device, in this process: their exit statuses, replays, and what they say when memory runs out."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdcli import cli
from sdcli.diffusion import autoencode
from tests.device.making import CLASSES, Studio
from tests.device.where import DEVICE

TINY = ("--steps", "2", "--seed", "7")
HUGE = ("-W", "2048", "-H", "2048")


@pytest.fixture
def shell(capfd, monkeypatch, tmp_path: Path, device):
    """`shell("generate", …)` gives the exit status, the lines on stdout, and stderr; on the device, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments) -> tuple[int, list[str], str]:
        capfd.readouterr()
        status = cli.run([str(each) for each in arguments])
        out, err = capfd.readouterr()
        return int(status), out.splitlines(), err

    return run


def test_every_command_that_makes_pictures(shell, studio: Studio, device):
    sd15, on = studio.folder("sd15"), ("--device", device, *TINY)
    photo, mask, segments = (studio.directory / name for name in ("photo.png", "mask.png", "map.png"))
    commands = [
        ("generate", "a fox", "-m", sd15, "-n", "3", "--batch-size", "2", "-o", "many-{index}.png"),
        ("generate", "--label", "279", "-m", studio.folder("dit"), "-o", "label.png"),
        ("img2img", photo, "a fox", "-m", sd15, "-o", "again.png", "--strength", "1"),
        ("inpaint", photo, "a fox", "--mask", mask, "-m", studio.folder("nine"), "-o", "painted.png"),
        ("outpaint", photo, "a fox", "--left", "16", "-m", sd15, "-o", "wide.png"),
        ("synthesize", segments, "a fox", "-m", studio.folder("semantic"), "-o", "scene.png"),
    ]
    assert len(CLASSES) == 3
    for command in commands:
        status, lines, err = shell(*command, *on)
        assert status == 0, (command, err)
        assert len(lines) == (3 if "-n" in command else 1)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_replay_on_the_device_is_the_same_to_the_bit(shell, studio: Studio, device, dtype):
    made = shell(
        "generate", "a fox", "-m", studio.folder("sdxl"), "-o", "a.png", "--device", device, "--dtype", dtype, *TINY
    )
    assert made[0] == 0, made[2]
    with Image.open("a.png") as picture:
        assert json.loads(picture.info["sdcli"])["recipe"]["device"] == device
    status, lines, err = shell("replay", "--verify", "a.png")
    assert (status, lines) == (0, ["a.png"]), err


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_replay_on_another_device_is_the_same_to_the_eye(shell, studio: Studio, device, way, record_property):
    first, second = (device, "cpu") if way == "there" else ("cpu", device)
    said = ("-m", studio.folder("sd15"), "--dtype", "float32", "--device", first, *TINY)
    made = shell("generate", "a fox", *said, "-o", "a.png")
    assert made[0] == 0, made[2]
    status, _, err = shell("replay", "--verify", "a.png", "--device", second)
    assert status in (0, 9), err
    if status == 9:
        record_property("said", err)
        psnr = re.search(r"PSNR ([\d.]+) dB", err)
        assert psnr is not None
        assert float(psnr[1]) > 45
        assert f"device: {first} then, {second} now" in err


@pytest.fixture
def little_memory(monkeypatch, device):
    """At most 256 MiB more than now; on the CPU, where none can be taken away, decoding fails as it would."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
        return
    decode = autoencode.decode

    def starved(model, latents):
        if latents.shape[-1] > 128:
            raise torch.OutOfMemoryError("Tried to allocate 4.00 GiB.")
        return decode(model, latents)

    monkeypatch.setattr(autoencode, "decode", starved)
    yield


def test_out_of_memory_is_status_5_with_a_hint_and_a_smaller_picture_works_then(
    shell, studio: Studio, device, little_memory, record_property
):
    said = ("generate", "a fox", "-m", studio.folder("sd15"), "--device", device, "--dtype", "float32", *TINY)
    size = HUGE if DEVICE != "cpu" else ("-W", "1032", "-H", "64")
    status, lines, err = shell(*said, *size, "-o", "huge.png")
    record_property("said", err)
    assert (status, lines) == (5, []), err
    complaint, hint = err.splitlines()[-2:]
    assert complaint.startswith("error: not enough memory for ")
    assert hint.startswith("hint: make the picture smaller")
    status, lines, err = shell(*said, "-o", "small.png")
    assert (status, lines) == (0, ["small.png"]), err


def test_a_job_that_is_too_large_does_not_stop_the_batch(shell, studio: Studio, device, little_memory):
    wide, high = (2048, 2048) if DEVICE != "cpu" else (1032, 64)
    jobs = [{"prompt": "a", "width": wide, "height": high}, {"prompt": "b", "width": 64, "height": 64}]
    Path("jobs.jsonl").write_text("".join(json.dumps({**each, "seed": 1}) + "\n" for each in jobs))
    on = ("--device", device, "--dtype", "float32", "--steps", "2")
    status, lines, err = shell("batch", "jobs.jsonl", "-o", "out", "-m", studio.folder("sd15"), *on)
    assert status == 7, err
    assert sorted(json.loads(line)["status"] for line in lines) == ["done", "failed"]
    assert "not enough memory" in err
