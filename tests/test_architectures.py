"""The table of architectures."""

import subprocess
import sys

import pytest

from sdcli.diffusion import architectures
from sdcli.errors import ModelError
from sdcli.recipe import schedulers


def test_networks_are_told_by_the_part_and_the_class():
    assert architectures.find("unet", {"_class_name": "UNet2DConditionModel"}) == "unet"
    assert architectures.find("unet", {}) == "unet"
    assert architectures.find("transformer", {"_class_name": "Transformer2DModel"}) == "dit"
    assert architectures.find("transformer", {"_class_name": "FluxTransformer2DModel"}) == "flux"
    for part, class_name in (("transformer", "MochiTransformer3DModel"), ("unet", "UNetSpatioTemporalConditionModel")):
        with pytest.raises(ModelError, match=class_name):
            architectures.find(part, {"_class_name": class_name})


@pytest.mark.parametrize("name", architectures.TABLE)
def test_a_scheduler_of_another_kind_is_refused(name):
    flow = architectures.TABLE[name].flow
    own, other = {"prediction_type": schedulers.FLOW}, {"prediction_type": "epsilon"}
    architectures.check_scheduler(name, own if flow else other)
    with pytest.raises(ModelError, match="flow matching" if flow else "steps of noise"):
        architectures.check_scheduler(name, other if flow else own)


def test_reading_facts_loads_no_torch():
    program = "import sys\nfrom sdcli.diffusion import architectures\n"
    program += "for name in architectures.TABLE: assert callable(architectures.load(name).facts)\n"
    program += "print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
