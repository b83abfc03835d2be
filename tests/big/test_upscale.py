"""Memory of enlarging a large picture by a network of ESRGAN's real size, with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcli.models.loading import upscaler as loading
from tests.conftest import clean_environment

pytestmark = pytest.mark.slow

MEASURE = """
import json, resource, sys
from sdcli.cli import run
status = run(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"status": status, "peak": peak}), file=sys.stderr)
"""


def peak_of(folder: Path, side: int, filters: int, blocks: int) -> int:
    """Return the peak memory of enlarging a picture of `side` pixels by 4, by a network of this size."""
    loading._spandrel()
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    torch.manual_seed(0)
    network = RRDBNet(num_filters=filters, num_blocks=blocks)
    save_file({name: each.contiguous() for name, each in network.state_dict().items()}, folder / "esrgan.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    environment = clean_environment(folder) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = ["upscale", "a.png", "-m", "esrgan.safetensors", "-o", "b.png", "--force"]
    program = [sys.executable, "-c", MEASURE, *words]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, check=False, text=True)
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    with Image.open(folder / "b.png") as image:
        assert image.size == (4 * side, 4 * side)
    return int(found["peak"])


def test_a_large_picture_stays_under_four_gigabytes(tmp_path):
    """2048² to 8192²: one tile by the whole network, and all of the picture by a small one, since that takes hours."""
    tile, picture = peak_of(tmp_path, 256, 64, 23), peak_of(tmp_path, 2048, 8, 1)
    assert tile + picture < 4e9
