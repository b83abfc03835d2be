"""Each planted fault makes the default tests fail: what they no longer run is not needed. `-m slow`, half an hour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations.faults import FAULTS, Fault
from tests.shell import ROOT

FAILED = 1  # of pytest's exit statuses; 2 to 5 tell of tests that did not run
NEEDED = ("sdcli", "tests", "docs", "models.toml", "pyproject.toml", "README.md")


def places(root: Path, text: str) -> list[Path]:
    """The modules of the package in which `text` stands, once for each time that it does."""
    return [path for path in sorted((root / "sdcli").rglob("*.py")) for _ in range(path.read_text().count(text))]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_code_is_still_there_to_be_broken(fault: Fault):
    assert len(places(ROOT, fault.before)) == 1
    assert all((ROOT / "tests" / file).exists() for file in fault.tests)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_is_noticed(fault: Fault, tmp_path: Path):
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (broken,) = places(tmp_path, fault.before)
    broken.write_text(broken.read_text().replace(fault.before, fault.after))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *(f"tests/{file}" for file in fault.tests)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == FAILED, f"not noticed by {', '.join(fault.tests)}:\n{done.stdout}\n{done.stderr}"
    print(done.stdout.splitlines()[-2:])
