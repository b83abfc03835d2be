"""The wheel, installed by itself, draws: nothing it needs is left behind in the checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_what_it_should(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "sdcli/models.toml" in names
    assert "sdcli/kit/model_index.json" in names
    assert "sdcli/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_installed_wheel_draws(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import sdcli; print(sdcli.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, check=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(site)

    script = [str(site / "bin" / "sdcli"), "generate", "arctic fox", "--steps", "4", "--json"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    line = json.loads(done.stdout)
    assert line["model"] == "kit"
    with Image.open(tmp_path / line["path"]) as image:
        assert image.size == (line["width"], line["height"])
        assert max(image.convert("L").getextrema()) - min(image.convert("L").getextrema()) > 50
