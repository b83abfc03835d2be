"""Every shell block of the README is run, but for the installing, which whoever runs this has done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.models import registry
from tests import tiny
from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
INSTALL = re.compile(r"^pip install \S+ && ")
TEST_COMMAND = "python -m pytest -n 2"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, sd15: Path) -> dict[str, str]:
    """An environment whose hub cache holds tiny models under the names of Stable Diffusion 1.5, ControlNets and DiT."""
    home = tmp_path_factory.mktemp("home")
    net = tiny.make_controlnet("sd15", tmp_path_factory.mktemp("net"))
    dit = tiny.make_dit(tmp_path_factory.mktemp("dit"))
    for name, folder in (("sd15", sd15), ("canny-sd15", net), ("seg-sd15", net), ("dit-256", dit)):
        repository = home / "hub" / f"models--{str(registry.shipped()[name].repo).replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / "0123abcd")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123abcd")
    (home / "bin").mkdir()
    command = home / "bin" / "sdcli"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdcli "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    extra = {"PATH": path, "HF_HUB_CACHE": str(home / "hub"), "PYTHONPATH": str(ROOT)}
    return clean_environment(home) | extra


def test_the_first_block_installs_and_draws_and_another_tests():
    assert INSTALL.match(BLOCKS[0])
    assert "sdcli generate" in BLOCKS[0]
    assert any(INSTALL.sub("", block).strip() == TEST_COMMAND for block in BLOCKS)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if TEST_COMMAND not in block], ids=lambda block: block[:30]
)
def test_a_block_runs(block: str, shell: dict[str, str], tmp_path: Path):
    (tmp_path / "fox.png").write_bytes(b"")
    script = "set -euo pipefail\n" + INSTALL.sub("", block)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=shell, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_ci_runs_the_readme_s_test_command():
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()
