"""The pictures of tests/pixels.json are what they were when they were recorded, to the bit.

The list covers the embedded models and tiny models of every family, every context and every scheduler. It is made
in one process by `sdcli batch`, on the CPU, in float32 and with one thread. To record it again, after a change that is
meant to change pictures or kit's weights, and to commit the difference:

    SDCLI_RECORD_PIXELS=kit python -m pytest tests/test_pixels.py      # the sections: kit, tiny, or kit,tiny

Another processor or another version of a library rounds otherwise. Where it is not the recorded one, a picture need
only be close: its thumbnail is compared.
"""

import base64
import json
import math
import os
import platform
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcli import cli
from tests import tiny
from tests.test_segmentation import CLASSES

LIST = Path(__file__).with_name("pixels.json")
RECORD = os.environ.get("SDCLI_RECORD_PIXELS", "").split(",")
THUMBNAIL = (16, 16)
LEAST_PSNR = 50.0  # dB

Section = dict[str, Any]


def load() -> dict[str, Section]:
    return json.loads(LIST.read_text())


def machine() -> dict[str, str]:
    """What the last bits of a picture depend on besides its recipe."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    words = dict(tuple(map(str.strip, line.partition(":")[::2])) for line in reversed(lines) if ":" in line)
    cpu = [words.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return {"cpu": " ".join([platform.machine(), *cpu]), **{name: version(name) for name in ("torch", "diffusers")}}


def write_inputs(folder: Path) -> None:
    """The pictures, maps and latents that recipes of the list name."""
    rng = np.random.default_rng(5)

    def patches(cells: int, values: np.ndarray, side: int = 64) -> Image.Image:
        chosen = values[rng.integers(0, len(values), (cells, cells))]
        return Image.fromarray(chosen.repeat(side // cells, 0).repeat(side // cells, 1).astype(np.uint8))

    colours = rng.integers(0, 256, (32, 3))
    patches(8, colours).save(folder / "image.png")
    patches(4, np.array([0, 255])).save(folder / "mask.png")
    patches(16, np.array([[0] * 3, [255] * 3])).save(folder / "edges.png")
    patches(8, np.arange(len(CLASSES))).save(folder / "map.png")
    patches(8, colours, 256).save(folder / "large.png")
    patches(4, np.array([0, 255]), 256).save(folder / "large-mask.png")
    patches(8, np.arange(13), 256).save(folder / "large-map.png")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"latents": latents}, folder / "latents.safetensors")


def write_models(folder: Path) -> None:
    """The tiny models that recipes of the list name."""
    for family in tiny.FAMILIES:
        tiny.make_folder(family, folder / f"tiny-{family}")
    for family in ("sd15", "sdxl"):
        tiny.make_folder(family, folder / f"tiny-{family}-inpaint", in_channels=9)
        tiny.make_controlnet(family, folder / f"tiny-{family}-net")
    tiny.make_controlnet("sd15", folder / "tiny-sd15-net-2", seed=2)
    tiny.make_semantic_folder(folder / "tiny-semantic", CLASSES)
    tiny.make_dit(folder / "tiny-dit")
    tiny.make_ldm(folder / "tiny-ldm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the picture of each recipe, by its name."""
    folder = tmp_path_factory.mktemp("pixels")
    write_models(folder)
    write_inputs(folder)
    jobs = [{"output": f"{name}.png", **each["recipe"]} for part in load().values() for name, each in part.items()
            if name != "machine"]  # fmt: skip
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    threads, on_terminate = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            patch.setenv(name, os.environ.get(name, ""))
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(folder / "home"))
        same = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
        assert cli.run(["batch", "jobs.jsonl", "-o", "out", "--quiet", *same]) == 0
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, on_terminate)
    return folder / "out"


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize(THUMBNAIL, Image.Resampling.BOX).convert("RGB"))


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    error = np.mean((before.astype(float) - after.astype(float)) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def names(section: str) -> list[str]:
    return [name for name in load()[section] if name != "machine"]


@pytest.mark.parametrize(("section", "name"), [(part, name) for part in ("kit", "tiny") for name in names(part)])
def test_a_picture_is_what_it_was(pictures: Path, section: str, name: str) -> None:
    if section in RECORD:
        pytest.skip("the list is being recorded")
    recorded = load()[section]
    with Image.open(pictures / f"{name}.png") as picture:
        found = json.loads(picture.info["sdcli"])["pixels_sha256"]
        small = thumbnail(picture)
    expected = recorded[name]
    if found == expected["pixels_sha256"]:
        return
    assert machine() != recorded["machine"], f"{name} has other pixels than when it was recorded"
    before = np.frombuffer(base64.b64decode(expected["thumbnail"]), np.uint8).reshape(small.shape)
    assert psnr(before, small) > LEAST_PSNR


@pytest.mark.skipif(RECORD == [""], reason="nothing is to be recorded")
def test_record(pictures: Path) -> None:
    said = load()
    for section in RECORD:
        said[section]["machine"] = machine()
        for name in names(section):
            with Image.open(pictures / f"{name}.png") as picture:
                said[section][name]["pixels_sha256"] = json.loads(picture.info["sdcli"])["pixels_sha256"]
                said[section][name]["thumbnail"] = base64.b64encode(thumbnail(picture).tobytes()).decode()
    LIST.write_text(json.dumps(said, indent=1) + "\n")
