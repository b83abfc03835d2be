"""What the arithmetic runs on: device, dtype and threads as this machine has them, and running out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdcli.errors import InvalidRecipe, OutOfMemory
from sdcli.recipe.recipe import Recipe

DEFAULT_THREADS = torch.get_num_threads()
_NO_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "CUDA error: out of memory",  # the driver's, beside torch's own
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "Invalid buffer size",  # Metal's, of one tensor that is too large
)
"""What torch says in a plain RuntimeError where an allocation failed."""


def resolve_execution(recipe: Recipe) -> Recipe:
    """The recipe with `auto` replaced by what this machine runs: device, dtype and number of CPU threads.

    Raises InvalidRecipe for a device that is not there.
    """
    device = _device(recipe.execution.device)
    # Said each time: an earlier recipe may have changed it, and where nobody says, MKL may take fewer.
    torch.set_num_threads(recipe.execution.threads or DEFAULT_THREADS)
    dtype = _dtype(recipe.execution.dtype, device)
    return recipe.replace(device=device, dtype=dtype, threads=torch.get_num_threads())


def devices() -> tuple[str, ...]:
    """The devices that are here, the one that `auto` takes first."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(device for device, found in present.items() if found)


def _device(asked: str) -> str:
    here = devices()
    if asked == "auto":
        return here[0]
    if asked not in here:
        hint = f"choose --device auto or {', '.join(here)}"
        raise InvalidRecipe(f"there is no {asked} device here", hint, "device")
    return asked


def _dtype(asked: str, device: str) -> str:
    """bfloat16 where the hardware computes in it, for it halves the memory and keeps float32's range."""
    if asked != "auto":
        return asked
    if device == "mps":
        return "float16"
    if device == "cuda":
        # Without tensor cores for it (before Ampere) torch emulates bfloat16, which is slower than float32.
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


@contextmanager
def memory_of(recipe: Recipe) -> Iterator[None]:
    """Turn an allocator's complaint, which torch words as a RuntimeError on the CPU, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        starved = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not starved and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise OutOfMemory(
            f"not enough memory for {recipe.width}×{recipe.height} pixels in {recipe.execution.dtype}",
            "make the picture smaller with -W and -H, or take --batch-size 1 or --dtype bfloat16",
        ) from error
