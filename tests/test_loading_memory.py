"""How much memory a model of Stable Diffusion 1.5's real size takes to load, and to draw with.

Makes a folder of 2 GB of random weights; run it by itself with `pytest -m slow tests/test_loading_memory.py -s`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcli.models import families, loading
from tests import tiny

ROOT = Path(__file__).parent.parent
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

# Anonymous memory is watched from a thread, because the kernel keeps a high-water mark of all pages only, those
# of the mapped file included.
MEASURE = """
import json, sys, threading, time
from pathlib import Path
import torch
from sdcli.diffusion import device, pipeline
from sdcli.models import loading
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)

baseline = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = loading.load(Source(Path(sys.argv[1])), name="sd15", device=torch.device("cpu"), dtype=torch.bfloat16)
parts = (model.network, model.vae, *(each.model for each in model.text_encoders))
weights = sum(each.numel() * each.element_size() for part in parts for each in part.parameters())
found = {"weights": weights, "load": (peak - baseline) / weights}
if sys.argv[2] == "draw":
    asked = dict(prompt="arctic fox", model="sd15", steps=2, guidance_scale=7.5, scheduler="ddim")
    recipe = Recipe.from_dict({**asked, "width": 512, "height": 512, "seed": 7, "dtype": "bfloat16"})
    pipeline.run(model, [device.resolve_execution(recipe)])
    found["draw"] = (peak - baseline) / weights
done = True
watcher.join()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SD 1.5 at its real size: random weights in float16, and CLIP's own vocabulary."""
    path = tmp_path_factory.mktemp("real") / "sd15"
    configs = families.config_folder("sd15")
    shutil.copytree(configs, path)
    index = json.loads((path / "model_index.json").read_text())
    generator = torch.Generator().manual_seed(0)
    for part, name in WEIGHTS.items():
        shapes = loading.build(configs / part, part, index[part][1]).state_dict()
        state = {key: torch.randn(each.shape, generator=generator).mul_(0.02).half() for key, each in shapes.items()}
        save_file(state, path / part / f"{name}.safetensors")
    (path / "tokenizer" / "merges.txt").write_bytes(families.CLIP_MERGES.read_bytes())
    tiny.write_json(path / "tokenizer" / "vocab.json", clip_vocabulary())
    yield path
    shutil.rmtree(path)


def clip_vocabulary():
    from sdcli.models.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(families.config_folder("sd15") / "tokenizer", window=77, vocab_size=49_408)
    return tokenizer.byte_pairs.get_vocab()


def measure(folder, what):
    command = [sys.executable, "-c", MEASURE, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\n{what}: {found}")
    assert found["weights"] == 2 * (859_520_964 + 83_653_863 + 123_060_480)
    return found


@pytest.mark.slow
def test_loading_takes_little_more_than_the_weights(folder):
    assert measure(folder, "load")["load"] <= 1.3


@pytest.mark.slow
def test_a_picture_takes_little_more_than_the_weights(folder):
    assert measure(folder, "draw")["draw"] <= 1.6
