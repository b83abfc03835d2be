"""Every file that a recipe names is read once, before the model is loaded; the pipeline opens none."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcli import cli
from sdcli.diffusion import device, pipeline
from sdcli.files import reading
from sdcli.models import assemble, located
from sdcli.planning import resolve
from tests import tiny
from tests.test_segmentation import CLASSES

FAST = ("--steps", "2", "--dtype", "float32", "--threads", "1", "-o", "out.png", "--quiet")
TWO = ("--control", "net-0=edges.png", "--control", "net-1=depth.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with models, pictures and latents, in which commands run in this process."""
    tiny.make_folder("sd15", tmp_path / "small")
    tiny.make_semantic_folder(tmp_path / "semantic", CLASSES)
    for number in range(2):
        tiny.make_controlnet("sd15", tmp_path / f"net-{number}", seed=number)
    rng = np.random.default_rng(1)
    for name in ("image", "edges", "depth"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.uint8(255) * rng.integers(0, 2, (64, 64), dtype=np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(rng.integers(0, len(CLASSES), (64, 64), dtype=np.uint8)).save(tmp_path / "map.png")
    save_file({"latents": torch.randn(1, 4, 8, 8)}, tmp_path / "z.safetensors")
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each input file has been opened; none may be once a model is loaded."""
    count: Counter[str] = Counter()
    read, load, loaded = reading.file_bytes, assemble.load, []

    def counted(path: str | Path, directory: Path = Path()) -> bytes:
        assert not loaded
        count[str(path)] += 1
        return read(path, directory)

    def loading(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(reading, "file_bytes", counted)
    monkeypatch.setattr(assemble, "load", loading)
    return count


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["img2img", "image.png", "a fox", "-m", "small"], ["image.png"]),
        (["inpaint", "image.png", "a fox", "--mask", "mask.png", "-m", "small"], ["image.png", "mask.png"]),
        (["generate", "a fox", "--init-latents", "z.safetensors", "-m", "small"], ["z.safetensors"]),
        (["synthesize", "map.png", "a fox", "-m", "semantic"], ["map.png"]),
        (
            ["synthesize", "map.png", "a fox", "-m", "semantic", "--control", "net-0=edges.png"],
            ["map.png", "edges.png"],
        ),
        (
            ["img2img", "image.png", "a fox", "-m", "small", "-n", "2", "-o", "{seed}.png", *TWO],
            ["image.png", "edges.png", "depth.png"],
        ),
    ],
)
def test_a_file_is_read_once(here: Path, opened: Counter[str], words: list[str], files: list[str]):
    assert cli.run([words[0], *FAST, *words[1:]]) == 0
    assert opened == dict.fromkeys(files, 1)


def test_the_pipeline_opens_no_file(here: Path):
    keys = {
        "prompt": "a fox",
        "model": "small",
        "seed": 7,
        "steps": 2,
        "dtype": "float32",
        "control": ["net-0=edges.png"],
    }
    resolved = resolve.resolve(located.find("small"), {**keys, "image": "image.png", "mask_image": "mask.png"})
    recipe = device.resolve_execution(resolved.recipe)
    model = assemble.load(resolved.weights, recipe)
    for file in here.glob("*.png"):
        file.unlink()
    (result,) = pipeline.run(model, [recipe], inputs=resolved.inputs)
    assert result.image.size == (64, 64)
    with pytest.raises(ValueError, match="names an image"):
        pipeline.run(model, [recipe])
