"""Tensors from `.safetensors` files into modules, one at a time and never twice in memory. Knows no pickles."""

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
    """A tensor as it lies in a file, and what is to be done to it (a view: a slice, a transposition)."""

    file: Path
    key: str
    entry: Entry
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor


def read_headers(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor in `files`, by its name there."""
    return {
        key: Stored(file, key, entry) for file in files for key, entry in families.read_header(file).tensors.items()
    }


def fill(module: nn.Module, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of `module`, which lies on the meta device, its tensor of `stored`, as `dtype` on `device`.

    All shapes are checked before the first tensor is read. What needs no conversion stays a view of its file.

    Raises ModelCorrupt, naming the tensor, for one that is of a wrong shape or unreadable.
    """
    read = tensors(module, stored)
    state = {name: tensor.to(device=device, dtype=dtype).contiguous() for name, tensor in read}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


def tensors(module: nn.Module, stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of `stored` as it is in its file, by its name in `module`, which may lie on the meta device.

    All shapes are checked before the first is read. Raises what `fill` raises.
    """
    for name, parameter in module.state_dict().items():
        check_shape(stored[name], tuple(parameter.shape))
    with ExitStack() as stack:
        readers = {file: stack.enter_context(_open(file)) for file in {each.file for each in stored.values()}}
        for name, each in stored.items():
            yield name, _read(readers[each.file], each)


def check_shape(stored: Stored, shape: tuple[int, ...]) -> None:
    """Raise ModelCorrupt unless a stored tensor is of floats and, seen through its view, of this shape."""
    file, key, entry = stored.file, stored.key, stored.entry
    if entry.dtype not in _FLOATS:
        raise ModelError(
            f"{file}: tensor {key} is of type {entry.dtype}", "use float weights; quantised ones are not supported"
        )
    try:
        found = tuple(stored.view(torch.empty(entry.shape, device="meta")).shape)
    except (RuntimeError, IndexError, ValueError):
        found = entry.shape
    if found != shape:
        raise ModelCorrupt(
            f"{file}: tensor {key} has the shape {list(entry.shape)}, and its config asks for {list(shape)}",
            "get the model anew; its weights and its config must come from the same place",
        )


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{file} cannot be read: {error}", "get the file anew") from error


def _read(reader: Any, stored: Stored) -> Tensor:
    try:
        return stored.view(reader.get_tensor(stored.key))
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{stored.file}: tensor {stored.key}: {error}", "get the file anew") from error
