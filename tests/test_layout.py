"""Convolutions have their channels last where that is faster, and float32 is never touched."""

import copy
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sdcli.diffusion import heap, layout
from sdcli.models import assemble
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import pairs

ROOT = Path(__file__).parent.parent
FLAT = {**pairs.DEFAULTS, "model": "tiny"}


def wide(module: nn.Module) -> list[torch.Tensor]:
    """The weights whose order in memory can differ."""
    return [each.weight for each in module.modules() if isinstance(each, nn.Conv2d) and each.kernel_size != (1, 1)]


def has_channels_last(module: nn.Module) -> bool:
    return all(each.is_contiguous(memory_format=torch.channels_last) for each in wide(module))


@pytest.mark.parametrize(("dtype", "last"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_only_weights_of_16_bits_are_rearranged(sd15, dtype, last):
    model = assemble.load(Weights(Source(sd15)), Recipe.from_dict({**FLAT, "dtype": dtype}))
    assert has_channels_last(model.network) == has_channels_last(model.vae) == last


def test_a_vae_in_float32_keeps_its_order(pair):
    shared = pair("sdxl").model
    model = replace(shared, network=copy.deepcopy(shared.network).to(torch.bfloat16))
    layout.arrange(model)
    assert has_channels_last(model.network)
    assert not has_channels_last(model.vae)


def test_it_computes_the_same(sd15):
    recipe = Recipe.from_dict({**FLAT, "dtype": "bfloat16"})
    model = assemble.load(Weights(Source(sd15)), recipe)
    generator = torch.Generator().manual_seed(1)
    sample, states = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 4, 8, 8), (2, 77, 32)))

    def outputs() -> list[torch.Tensor]:
        predicted = model.network(sample, 500, encoder_hidden_states=states, return_dict=False)[0]
        return [predicted.float(), model.vae.decode(sample, return_dict=False)[0].float()]

    with torch.inference_mode():
        arranged = outputs()
        for part in (model.network, model.vae):
            part.to(memory_format=torch.contiguous_format)
        for one, other in zip(arranged, outputs(), strict=True):
            assert (one - other).std() < 0.05 * other.std()


def test_activations_in_place_decode_to_the_same_bits(sd15):
    model = assemble.load(Weights(Source(sd15)), Recipe.from_dict(FLAT))
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    activations = [each for each in model.vae.modules() if isinstance(each, nn.SiLU)]
    assert activations
    made = []
    with torch.inference_mode():
        for wanted in (True, False):
            assert all(each.inplace == wanted for each in activations)
            encoded = model.vae.encode(torch.ones(1, 3, 64, 64)).latent_dist.mean
            made.append((model.vae.decode(latents, return_dict=False)[0], encoded))
            layout.use_less_memory(model.vae, wanted=False)
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))


OF_THE_SYSTEM = """
import ctypes, resource
from pathlib import Path
from sdcli.diffusion import heap

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = library.memset.argtypes = [ctypes.c_void_p]

def fill(size):
    place = library.malloc(ctypes.c_size_t(size << 20))
    ctypes.memset(place, 1, size << 20)
    library.free(place)

def new_pages():
    fill(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        fill(40)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

with heap.kept():
    few, within = new_pages(), resident()
    heap.trim()
    trimmed = resident()
    again, until = new_pages(), resident()
print(few, within, trimmed, until, resident(), new_pages())
"""


@pytest.mark.skipif(heap._glibc() is None, reason="another C library")
def test_memory_is_kept_only_within_and_until_it_is_trimmed():
    """The pages that the system gives for three times 40 MiB after 100, and those that are in memory."""
    done = subprocess.run([sys.executable, "-c", OF_THE_SYSTEM], capture_output=True, check=True, cwd=ROOT)
    few, within, trimmed, until, after, many = map(int, done.stdout.split())
    assert few < many / 2
    assert trimmed < within - (30 << 20) // resource.getpagesize()
    assert after < until - (30 << 20) // resource.getpagesize()
