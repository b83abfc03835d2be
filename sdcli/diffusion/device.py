"""Chooses device, dtype and threads, and handles running out of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdcli.diffusion import hardware, openvino_engine, room
from sdcli.errors import InvalidRecipe, OutOfMemory
from sdcli.recipe.parts import OF_OPENVINO
from sdcli.recipe.recipe import Recipe

DEFAULT_THREADS = torch.get_num_threads()
_NO_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "CUDA error: out of memory",  # from the driver; torch has its own
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "Invalid buffer size",  # from Metal, for a tensor that is too large
)
"""Messages of a RuntimeError that means a failed allocation."""


def resolve_execution(recipe: Recipe) -> Recipe:
    """Replace `auto` in the recipe by this machine's device, dtype and number of CPU threads.

    Raises InvalidRecipe for a device that this machine does not have.
    """
    chosen = openvino_engine.choose if recipe.execution.engine == "openvino" else choose
    device = chosen(recipe.execution.device)
    # Set every time: an earlier recipe can have changed it, and MKL can use fewer threads if it is not set.
    torch.set_num_threads(recipe.execution.threads or DEFAULT_THREADS)
    dtype = _dtype(recipe.execution.dtype, device)
    return recipe.replace(device=device, dtype=dtype, threads=torch.get_num_threads())


def devices() -> tuple[str, ...]:
    """Return this machine's devices; `auto` selects the first."""
    return hardware.by_preference(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available())


def choose(asked: str) -> str:
    """Return the device that `asked` means on this machine. Raises InvalidRecipe if it does not have it."""
    here = devices()
    if asked == "auto":
        return here[0]
    if asked not in here:
        hint = f"choose --device auto or {', '.join(here)}"
        raise InvalidRecipe(f"there is no {asked} device here", hint, "device")
    return asked


def _dtype(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    if device in OF_OPENVINO:
        return "bfloat16"
    if device == "cuda":
        # Before Ampere torch emulates bfloat16, which is slower than float32.
        return hardware.dtype_for(device, bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return hardware.dtype_for(device, bfloat16=on_cpu)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means a failed allocation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def free_memory() -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def room_for(device: str) -> int | None:
    """Return the bytes that this process can have on `device`, with those that it has now; None if unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved()
    return room.room(device)


@contextmanager
def memory_of(recipe: Recipe) -> Iterator[None]:
    """Convert a failed allocation, which is a RuntimeError on the CPU, to OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"not enough memory for {recipe.size[0]}×{recipe.size[1]} pixels in {recipe.execution.dtype}",
            "make the picture smaller with -W and -H, or use --memory low, --batch-size 1 or --dtype bfloat16",
        ) from error
