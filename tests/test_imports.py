import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parent.parent
# What a bare import of diffusers' U-Net brings with it, and no picture needs.
UNUSED = (
    "diffusers.models.transformers.transformer_flux",
    "diffusers.models.unets.unet_1d",
    "diffusers.models.unets.unet_motion_model",
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.hooks.faster_cache",
    "diffusers.pipelines",
    "scipy.stats._stats_py",
    "transformers.pipelines",
    "transformers.models.bert",
    "torch._inductor.compile_fx",
    "pandas",
    "sklearn",
)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_folder("sd15", tmp_path_factory.mktemp("imports") / "model")


@pytest.fixture(scope="module")
def said(folder) -> list[str]:
    """The lines of a process that has loaded a model, and then uses what was deferred meanwhile."""
    done = run(
        "import gc, sys\n"
        "from sdcli.diffusion import samplers\n"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'the table is light'\n"
        "samplers.make('ddim', 'default', {})\n"
        "print(*(name for name in sys.modules if name.startswith('diffusers.schedulers.scheduling_')))\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from sdcli.models import loading\n"
        "from sdcli.models.source import Source\n"
        f"source = Source(Path({str(folder)!r}))\n"
        "model = loading.load(source, name='x', device=torch.device('cpu'), dtype=torch.float32)\n"
        f"print(sorted(set({UNUSED!r}) & set(sys.modules)), flush=True)\n"
        "from sdcli.models.imports import DEFERRED, lean_imports\n"
        "with lean_imports():\n"
        "    assert not gc.isenabled()\n"
        "    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel\n"
        "assert gc.isenabled()\n"
        "import diffusers.models.unets as unets, diffusers.models.autoencoders\n"
        "assert 'UNet1DModel' not in vars(unets)\n"
        "assert not hasattr(unets, 'no_such_name')\n"
        "assert unets.UNet2DConditionModel is UNet2DConditionModel\n"
        "assert unets.unet_2d_condition.UNet2DConditionModel is UNet2DConditionModel\n"
        "from diffusers.models.unets import UNet1DModel\n"
        "from diffusers.models.autoencoders import *\n"
        "print(AutoencoderKL.__name__, diffusers.models.autoencoders.AutoencoderTiny.__name__)\n"
        "import scipy.stats\n"
        "print(round(float(scipy.stats.beta.ppf(0.5, 0.6, 0.6)), 6))\n"
        "try:\n"
        "    from diffusers.models.transformers import NoSuchModel\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__)\n"
        f"print(sorted(name for name in {UNUSED!r} if name.startswith(('diffusers.m', 'scipy')) "
        "and name not in sys.modules))\n"
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_making_a_scheduler_imports_no_other(said):
    folder = "diffusers.schedulers"
    assert set(said[0].split()) <= {f"{folder}.scheduling_ddim", f"{folder}.scheduling_utils"}


def test_loading_a_model_imports_nothing_needless(said):
    assert said[1] == "[]"


def test_a_deferred_package_is_itself_when_it_is_used(said):
    assert said[2:5] == ["AutoencoderKL AutoencoderTiny", "0.5", "ImportError"]


def test_the_same_modules_are_there_without_lean_imports(said):
    """The list above speaks of what would be imported, not of names that no longer exist."""
    assert said[5:] == ["[]"]


def test_importing_it_costs_nothing():
    done = run("import sys, sdcli.models.imports; print({'torch', 'numpy', 'diffusers'} & set(sys.modules))")
    assert done.stdout == "set()\n"
