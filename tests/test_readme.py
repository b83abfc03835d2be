"""Runs every shell block of the README and of docs/, without the installation that the first one begins with."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.models import registry
from tests import tiny
from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(document.stem, block) for document in DOCUMENTS for block in SHELL.findall(document.read_text())]
INSTALL = re.compile(r"^pip install \S+ && ")
TEST_COMMAND = "python -m pytest -n 2"
MANY_PICTURES = ("how-it-works",)


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
    return clean_environment(home) | {"HF_HUB_CACHE": str(home / "hub"), "PYTHONPATH": str(ROOT)}


def with_command(shell: dict[str, str], folder: Path, words: list[str]) -> dict[str, str]:
    """The environment with an `sdcli` on PATH that these words run."""
    folder.mkdir()
    (folder / "sdcli").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / "sdcli").chmod(0o755)
    return shell | {"PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture(scope="module")
def quick(shell: dict[str, str], forked: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `sdcli` is a fork of a process that has imported the libraries; it makes three steps."""
    few = {"SDCLI_STEPS": "3", "SDCLI_WIDTH": "64", "SDCLI_HEIGHT": "64"}
    return with_command(shell | few, tmp_path_factory.mktemp("forked") / "bin", forked)


def test_the_first_block_installs_and_generates_and_another_tests():
    document, first = BLOCKS[0]
    assert document == "README"
    assert INSTALL.match(first)
    assert "sdcli generate" in first
    assert any(INSTALL.sub("", block).strip() == TEST_COMMAND for _, block in BLOCKS)


def test_the_readme_fits_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{stem} {block[:30]}", marks=[pytest.mark.slow] if stem in MANY_PICTURES else [])
        for stem, block in BLOCKS
        if TEST_COMMAND not in block
    ],
)
def test_a_block_runs(block: str, quick: dict[str, str], tmp_path: Path):
    """Pictures are small, and so is a mask of kit's size."""
    script = "set -euo pipefail\n" + INSTALL.sub("", block).replace("(256, 256)", "(64, 64)")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=quick, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_links_in_the_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_ci_runs_the_documented_test_command():
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()
