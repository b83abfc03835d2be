"""Loads tensors from `.safetensors` and GGUF files into modules, one at a time and without a second copy in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models.families import Entry
from sdcli.models.families.gguf_header import MAGIC, QUANTISED, stored_bytes
from sdcli.models.families.split import header_of

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, and the view to take of it, such as a slice or a transposition.

    `scale` is another tensor that it is multiplied by before the view is taken. Views of quantised tensors are of whole
    rows.
    """

    file: Path
    key: str
    entry: Entry
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor
    scale: Stored | None = None

    @property
    def is_quantised(self) -> bool:
        """Whether it is in a format of GGUF, in blocks that share scales."""
        return self.entry.dtype in QUANTISED


def read_headers(files: Iterable[Path]) -> dict[str, Stored]:
    """Return every tensor in `files` by its name."""
    return {key: Stored(file, key, entry) for file in files for key, entry in header_of(file).tensors.items()}


def fill(
    module: nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    dtype: torch.dtype,
    quantize: str = "none",
) -> None:
    """Load the parameters of `module`, which is on the meta device, from `stored`, as `dtype` on `device`.

    All shapes are checked before the first tensor is read. Tensors that need no conversion stay views of their file.
    Quantised weights of layers stay quantised, and others are quantised to the format `quantize`; their layers are
    replaced by ones that compute in `dtype`.

    Raises ModelCorrupt, with the tensor's name, for a wrong shape or an unreadable tensor.
    """
    check_shapes(module, stored)
    exact = _kept_in_float32(module) if dtype == torch.float16 else ()
    state: dict[str, Tensor] = {}
    tied: dict[tuple[int, torch.dtype], Tensor] = {}
    converted = quantize != "none" or any(_DTYPES.get(each.entry.dtype) != dtype for each in stored.values())
    for name, tensor in _raw(stored, mapped=quantize == "none", ahead=converted):
        each, kept = stored[name], any(part in name.split(".") for part in exact)
        wanted = torch.float32 if kept else dtype
        kind = each.entry.dtype
        if each.is_quantised or quantize != "none":
            from sdcli.models.loading import quantised

            if not each.is_quantised and quantised.takes(module, name):
                tensor, kind = quantised.quantise(tensor, quantize), quantize.upper()
            if kind in QUANTISED and quantised.replace(module, name, tensor, kind, wanted):
                state[name] = tensor.to(device=device).contiguous()
                continue
            tensor = quantised.dequantise(tensor, kind, torch.float32) if kind in QUANTISED else tensor
        made = tied.get((id(each), wanted))  # an embedding can have two names
        if made is None:
            made = tied[id(each), wanted] = _aligned(tensor.to(device=device, dtype=wanted).contiguous())
        state[name] = made
    state |= {name: torch.zeros((), dtype=torch.int64) for name in module.state_dict() if name.endswith(_COUNTS)}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


def _aligned(tensor: Tensor) -> Tensor:
    """Copy a small tensor that starts anywhere in its file, because results can depend on where data start.

    A large one stays a view: copies would need memory and time.
    """
    small = tensor.nbytes < _LARGE and tensor.device.type == "cpu"
    return tensor.clone() if small and tensor.data_ptr() % _ALIGNMENT else tensor


_ALIGNMENT, _LARGE = 64, 2**22

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


def read(stored: Mapping[str, Stored], *, mapped: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of `stored` unconverted, by its name there; quantised ones as float32.

    Tensors that are not `mapped` are copies, whose memory is freed with them. Raises ModelCorrupt for an
    unreadable one.
    """
    for name, tensor in _raw(stored, mapped=mapped):
        each = stored[name]
        if each.is_quantised:
            from sdcli.models.loading import quantised

            tensor = quantised.dequantise(tensor, each.entry.dtype, torch.float32)
        yield name, tensor


def _raw(stored: Mapping[str, Stored], *, mapped: bool, ahead: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of `stored` by its name there; a quantised one as bytes, one row of them for each of its rows.

    The order is that of the file, and with `ahead` the disk reads what follows while a tensor is used. Raises
    ModelCorrupt for an unreadable one.
    """
    opened = _open if mapped else _Copied
    with ExitStack() as stack:
        files = {each.file for each in stored.values()}
        readers = {file: stack.enter_context(opened(file)) for file in files}
        asked = {file: stack.enter_context(_Ahead(file)) for file in files} if ahead and _CAN_ASK else {}
        for name, each in sorted(stored.items(), key=lambda item: (item[1].file, item[1].entry.start)):
            if each.file in asked:
                asked[each.file].ask(each.entry.start)
            yield name, _read(readers[each.file], each)


def begin(files: Iterable[Path]) -> None:
    """Ask the kernel to read the beginnings of files that are used soon, while modules are made."""
    for file in files if _CAN_ASK else ():
        with suppress(OSError), _Ahead(file) as ahead:
            ahead.ask(0)


_CAN_ASK = hasattr(os, "posix_fadvise")


class _Ahead(AbstractContextManager[Any]):
    """Asks the kernel to read a part of a file that is used soon, and does not wait for it."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb", buffering=0)
        self._asked = 0

    def ask(self, place: int) -> None:
        """Ask for what follows `place`."""
        end = place + _AHEAD
        if end - self._asked >= _AHEAD // 4:
            os.posix_fadvise(self._file.fileno(), self._asked, end - self._asked, os.POSIX_FADV_WILLNEED)
            self._asked = end

    def __exit__(self, *_: object) -> None:
        self._file.close()


_AHEAD = 2**28


def check_shapes(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Check the shape of each tensor of `module`. Raises what `check_shape` raises."""
    for name, parameter in module.state_dict().items():
        if name.endswith(_COUNTS):
            continue
        check_shape(stored[name], tuple(parameter.shape))


def check_shape(stored: Stored, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless a stored tensor has a float dtype, and ModelCorrupt unless its view has this shape."""
    file, key, entry = stored.file, stored.key, stored.entry
    if entry.dtype not in _FLOATS and not stored.is_quantised and not (entry.dtype == "I8" and stored.scale):
        raise ModelError(
            f"{file}: tensor {key} has the dtype {entry.dtype}",
            "use float weights, GGUF, or fp8 or int8 with scales; other quantised weights are not supported",
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
        with file.open("rb") as start:
            if start.read(len(MAGIC)) == MAGIC:
                return _Gguf(file)
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{file} cannot be read: {error}", "download the file again") from error


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}


def _bytes_of(entry: Entry) -> int:
    if entry.dtype in QUANTISED:
        return stored_bytes(entry.dtype, entry.shape)
    return math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize


def _viewed(data: Tensor, entry: Entry) -> Tensor:
    """Return the bytes of a tensor as the tensor, those of a quantised one as rows."""
    if entry.dtype in QUANTISED:
        # int8, not uint8: text encoders convert their input to the dtype of weights that are not int8
        return data.view(torch.int8).reshape(*entry.shape[:-1], -1)
    return data.view(_DTYPES[entry.dtype]).reshape(entry.shape)


class _Gguf(AbstractContextManager[Any]):
    """A GGUF file in memory pages, read when they are used."""

    def __init__(self, file: Path) -> None:
        self._bytes = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)

    def get(self, entry: Entry) -> Tensor:
        """Return a tensor, or the bytes of a quantised one."""
        return _viewed(self._bytes[entry.start : entry.start + _bytes_of(entry)], entry)

    def __exit__(self, *_: object) -> None:
        return None


class _Copied(AbstractContextManager[Any]):
    """A file whose tensors are read to memory of their own. The pages of a mapped file stay until it is closed."""

    def __init__(self, file: Path) -> None:
        try:
            self._file = file.open("rb", buffering=0)
        except OSError as error:
            raise ModelCorrupt(f"{file} cannot be read: {error.strerror}", "download the file again") from error

    def get(self, entry: Entry) -> Tensor:
        """Return a tensor, or the bytes of a quantised one. Raises OSError if the file ends before."""
        data = torch.empty(_bytes_of(entry), dtype=torch.uint8)
        left = data.numpy().data
        self._file.seek(entry.start)
        while left:
            count = self._file.readinto(left)
            if not count:
                raise OSError("the file is shorter than its header says")
            left = left[count:]
        return _viewed(data, entry)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _read(reader: Any, stored: Stored) -> Tensor:
    try:
        tensor = _whole(reader, stored)
        if stored.scale is not None:
            scale = _whole(reader, stored.scale).float()
            if not (scale.isfinite() & (scale > 0)).all():
                what = f"{stored.scale.file}: {stored.scale.key} is not a positive number"
                raise ModelCorrupt(what, "download the file again, or use another one")
            tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1) if scale.numel() > 1 else ())
        return stored.view(tensor)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelCorrupt(f"{stored.file}: tensor {stored.key}: {error}", "download the file again") from error


def _whole(reader: Any, stored: Stored) -> Tensor:
    found: Tensor = reader.get(stored.entry) if hasattr(reader, "get") else reader.get_tensor(stored.key)
    return found
