"""The header of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md): reads it, and checks it against the file.

Reads no weights; imports no torch, and not the `gguf` package, whose reader takes seconds for a tokenizer's words.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from typing import BinaryIO

MAGIC = b"GGUF"
MAX_TENSORS = 2**16
MAX_ITEMS = 2**22
"""Keys and items of arrays; a tokenizer has some hundred thousand."""
MAX_DIMENSIONS = 8
MAX_NAME = 2**10

QUANTISED: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}
"""The formats of quantised weights: the numbers in a block, and its bytes."""
_PLAIN = {"F32": 4, "F16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BF16": 2}
_SIZES = {**QUANTISED, **{name: (1, size) for name, size in _PLAIN.items()}}
_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Tensor = tuple[str, tuple[int, ...], int]
"""A tensor's format, its shape in torch's order, and the offset of its first byte in the file."""


def read(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors by name, and the metadata that are single values. Raises ValueError for an invalid file."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(data, size).header()


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor takes. Raises ValueError if its rows are no whole blocks."""
    block, size = _SIZES[dtype]
    if block > 1 and (not shape or shape[-1] % block):
        raise ValueError(f"the shape {list(shape)} has no whole blocks of {dtype}")
    return math.prod(shape) // block * size


class _Reader:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.place, self.items = data, size, 4, 0

    def header(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} of GGUF is not supported")
        count, keys = self.number("Q"), self.number("Q")
        if count > MAX_TENSORS or keys > MAX_TENSORS:
            raise ValueError(f"it lists {count:,} tensors and {keys:,} keys")
        metadata = {}
        for _ in range(keys):
            key, value = self.text(), self.value(self.number("I"))
            if value is not None:
                metadata[key] = value
        listed = [self.tensor() for _ in range(count)]
        alignment = int(metadata.get("general.alignment", 32))
        if not 1 <= alignment <= 2**16:
            raise ValueError(f"its alignment is {alignment}")
        start = -(-self.place // alignment) * alignment
        return {name: self.placed(name, tensor, start) for name, tensor in listed}, metadata

    def placed(self, name: str, tensor: Tensor, start: int) -> Tensor:
        dtype, shape, offset = tensor
        if start + offset + stored_bytes(dtype, shape) > self.size:
            raise ValueError(f"the file ends inside of tensor {name}")
        return dtype, shape, start + offset

    def tensor(self) -> tuple[str, Tensor]:
        name = self.text(MAX_NAME)
        dimensions = self.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in _TYPES:
            raise ValueError(f"tensor {name} has the format {kind}, which is not supported")
        return name, (_TYPES[kind], shape, offset)

    def value(self, kind: int) -> str | None:
        """Read a value, or skip an array."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return str(self.number(_SCALARS[kind]))
        inner, length = self.number("I"), self.number("Q")
        self.items += length
        if self.items > MAX_ITEMS or inner == _ARRAY:
            raise ValueError("an array in its metadata is too long, or holds arrays")
        if inner == _STRING:
            for _ in range(length):
                self.skip(self.number("Q"))
        else:
            self.skip(length * struct.calcsize(_SCALARS[inner]))
        return None

    def text(self, most: int = 2**20) -> str:
        length = self.number("Q")
        if length > most:
            raise ValueError("a name in its header is too long")
        self.skip(length)
        return self.data[self.place - length : self.place].decode("utf-8", "replace")

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self.skip(size)
        found: int = struct.unpack_from(f"<{form}", self.data, self.place - size)[0]
        return found

    def skip(self, count: int) -> None:
        self.place += count
        if self.place > self.size:
            raise ValueError("the file ends inside of its header")
