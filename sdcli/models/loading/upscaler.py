"""Loads networks that enlarge pictures: spandrel tells their architecture by the names of the tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sdcli.diffusion.upscale import Upscaler
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelError
from sdcli.models.imports import stand_ins
from sdcli.models.loading.weights import read, read_headers
from sdcli.terminal.printable import one_line

INSTALL = "pip install --no-deps spandrel einops"
"""Without its dependencies: torchvision must be of the same build as torch, and is not needed."""
_UNUSED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
"""What spandrel imports for two architectures that do not enlarge pictures."""
_KNOWN = "sdcli takes those of ESRGAN, Real-ESRGAN, SwinIR, HAT, DAT and others that spandrel knows, as .safetensors"


def load(path: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> Upscaler:
    """Load the upscaler at `path`, in `dtype`, or else in float32, or in float16 on a GPU if it supports that.

    Raises ModelError without spandrel or for another kind of network, ModelCorrupt for tensors that do not fit each
    other or are not finite numbers, and InvalidRecipe for a dtype that it does not support.
    """
    spandrel = _spandrel()
    tensors = {name: each for name, each in read(read_headers([path])) if each is not None}
    if not all(each.isfinite().all() for each in tensors.values() if each.is_floating_point()):
        raise ModelCorrupt(f"{path} has numbers that are not finite", "download it again, or use another one")
    try:
        found = spandrel.MAIN_REGISTRY.load(tensors)
    except spandrel.UnsupportedModelError as error:
        raise ModelError(f"{path} is no upscaler of a known architecture", _KNOWN) from error
    except Exception as error:  # it builds what the names and shapes say, whatever they say
        what = one_line(str(error))[:200]
        raise ModelCorrupt(
            f"{path} is not a whole upscaler: {what}", "download it again, or use another one"
        ) from error
    _check(path, found)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" and found.supports_half else torch.float32
    supported = {torch.float16: found.supports_half, torch.bfloat16: found.supports_bfloat16}
    if not supported.get(dtype, True):
        name = str(dtype).removeprefix("torch.")
        raise InvalidRecipe(f"{path} does not support {name}", "use --dtype float32", "dtype")
    found.model.requires_grad_(False)
    found.eval().to(device=device, dtype=dtype)
    whole = found.tiling == spandrel.ModelTiling.INTERNAL
    return Upscaler(found, found.scale, found.input_channels, device, dtype, whole=whole)


def is_upscaler(names: Iterable[str]) -> bool:
    """Whether tensors of these names belong to an architecture that spandrel knows; False without spandrel."""
    try:
        registry = _spandrel().MAIN_REGISTRY
    except ModelError:
        return False
    tensors = dict.fromkeys(names)
    return any(each.architecture.detect(tensors) for each in registry.architectures("detection"))


def _check(path: Path, found: Any) -> None:
    """Raise ModelError unless the network enlarges pictures."""
    kind, scale = found.architecture.name, found.scale
    if found.purpose != "SR" or scale < 2:
        raise ModelError(f"{path} does not enlarge pictures: it is a {kind} for {found.purpose}, ×{scale}", _KNOWN)
    if found.input_channels != found.output_channels or found.input_channels not in (1, 3):
        channels = f"{found.input_channels} channels and gives {found.output_channels}"
        raise ModelError(f"{path} takes {channels}", "use an upscaler of grey or RGB pictures")


def _spandrel() -> Any:
    try:
        with stand_ins(*_UNUSED):
            import spandrel
    except ImportError as error:
        missing = f"upscalers need the package {error.name or 'spandrel'}, which is not installed"
        raise ModelError(missing, f"install it with: {INSTALL}; or use lanczos, which needs no model") from error
    return spandrel
