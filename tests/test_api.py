"""The Python API: its names, what importing it costs, and the examples of docs/python.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdcli
from sdcli.recipe import recipe
from tests.conftest import clean_environment
from tests.test_light import HEAVY

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE)


def test_the_exported_names():
    assert sdcli.__all__ == [
        "InputError",
        "InvalidPicture",
        "InvalidRecipe",
        "Model",
        "ModelCorrupt",
        "ModelError",
        "ModelNotFound",
        "ModelUnsafe",
        "Options",
        "OutOfMemory",
        "OutputError",
        "OutputExists",
        "Picture",
        "Recipe",
        "SdcliError",
        "UsageError",
        "__version__",
        "generate",
        "load",
        "read_recipe",
    ]


def test_every_exported_name_exists_and_is_listed():
    for name in sdcli.__all__:
        assert getattr(sdcli, name) is not None
    assert set(sdcli.__all__) <= set(dir(sdcli))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sdcli.nonsense  # noqa: B018


def test_the_options_are_the_keys_of_a_recipe():
    recorded = {key for key in set(recipe.keys()) if key.endswith("_sha256")}
    assert set(sdcli.Options.__annotations__) == set(recipe.keys()) - recorded - {"model", "prompt"}


def test_a_recipe_is_made_without_importing_anything_heavy(tmp_path):
    program = (
        "import sys, sdcli\n"
        "assert sdcli.load('kit').recipe('a fox', seed=7).seed == 7\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    assert not set(done.stdout.decode().split()) & HEAVY


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_documentation_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(example, "docs/python.md", "exec"), {})
