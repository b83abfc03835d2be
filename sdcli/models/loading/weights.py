"""Loads tensors from `.safetensors` files into modules, one at a time and without a second copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import families
from sdcli.models.families import Entry

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, and the view to take of it, such as a slice or a transposition."""

    file: Path
    key: str
    entry: Entry
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor


def read_headers(files: Iterable[Path]) -> dict[str, Stored]:
    """Return every tensor in `files` by its name."""
    return {
        key: Stored(file, key, entry) for file in files for key, entry in families.read_header(file).tensors.items()
    }


def fill(module: nn.Module, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype) -> None:
    """Load the parameters of `module`, which is on the meta device, from `stored`, as `dtype` on `device`.

    All shapes are checked before the first tensor is read. Tensors that need no conversion stay views of their file.

    Raises ModelCorrupt, with the tensor's name, for a wrong shape or an unreadable tensor.
    """
    read = tensors(module, stored)
    exact = _kept_in_float32(module) if dtype == torch.float16 else ()
    state = {}
    for name, tensor in read:
        kept = any(part in name.split(".") for part in exact)
        state[name] = tensor.to(device=device, dtype=torch.float32 if kept else dtype).contiguous()
    state |= {name: torch.zeros((), dtype=torch.int64) for name in module.state_dict() if name.endswith(_COUNTS)}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


_COUNTS = "num_batches_tracked"
"""The end of the names of batch norms' counts of training steps, which are not read."""


def _kept_in_float32(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that overflow in float16, such as those of T5."""
    return tuple(getattr(module, "_keep_in_fp32_modules", None) or ())


def tensors(module: nn.Module, stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of `stored` unconverted, by its name in `module`, which can be on the meta device.

    All shapes are checked before the first tensor is read. Raises what `fill` raises.
    """
    check_shapes(module, stored)
    yield from read(stored)


def read(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of `stored` unconverted, by its name there. Raises ModelCorrupt for an unreadable one."""
    with ExitStack() as stack:
        readers = {file: stack.enter_context(_open(file)) for file in {each.file for each in stored.values()}}
        for name, each in stored.items():
            yield name, _read(readers[each.file], each)


def check_shapes(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Check the shape of each tensor of `module`. Raises what `check_shape` raises."""
    for name, parameter in module.state_dict().items():
        if name.endswith(_COUNTS):
            continue
        check_shape(stored[name], tuple(parameter.shape))


def check_shape(stored: Stored, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless a stored tensor has a float dtype, and ModelCorrupt unless its view has this shape."""
    file, key, entry = stored.file, stored.key, stored.entry
    if entry.dtype not in _FLOATS:
        raise ModelError(
            f"{file}: tensor {key} has the dtype {entry.dtype}",
            "use float weights; quantised weights are not supported",
        )
    try:
        found = tuple(stored.view(torch.empty(entry.shape, device="meta")).shape)
    except (RuntimeError, IndexError, ValueError):
        found = entry.shape
    if found != shape:
        raise ModelCorrupt(
            f"{file}: tensor {key} has the shape {list(entry.shape)}, and its config requires {list(shape)}",
            "download the model again; its weights and its config must belong together",
        )


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{file} cannot be read: {error}", "download the file again") from error


def _read(reader: Any, stored: Stored) -> Tensor:
    try:
        return stored.view(reader.get_tensor(stored.key))
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{stored.file}: tensor {stored.key}: {error}", "download the file again") from error
