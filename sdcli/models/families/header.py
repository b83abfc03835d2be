"""The header of a `.safetensors` or GGUF file: reads it, and checks it against the file.

Reads no weights; imports no torch.
"""

from __future__ import annotations

import math
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sdcli.errors import ModelCorrupt, ModelNotFound, ModelUnsafe
from sdcli.files.json_files import parse_json
from sdcli.models.families import gguf_header

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
MAX_HEADER = 2**24
"""Larger than any known one; the format's own limit of 100 MB would take gigabytes of memory to parse."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_DOWNLOAD_AGAIN = "download the file again: it is damaged or incomplete"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its dtype in the notation of safetensors or GGUF, its shape and its offset."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """The offset of its first byte in the file."""


@dataclass(frozen=True)
class Header:
    """The header of a file of weights: its tensors by name, and its metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def refuse_pickle(path: Path) -> None:
    """Raise ModelUnsafe for a file with the suffix of a pickle."""
    if path.suffix.lower() in PICKLES:
        raise ModelUnsafe(
            f"{path} is a pickle, and loading one can run code",
            "use the .safetensors file of the same model, or convert it with: "
            f"sdcli models convert {shlex.quote(str(path))} {shlex.quote(f'{path.stem}.safetensors')}",
        )


def read_header(path: Path) -> Header:
    """Read the header of a `.safetensors` or GGUF file and check it against the size of the file.

    Raises ModelUnsafe for a pickle, ModelNotFound, and ModelCorrupt for an invalid or truncated file.
    """
    refuse_pickle(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(gguf_header.MAGIC):
                return _read_gguf(path, file, size)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            if length > min(MAX_HEADER, size - 8):
                raise _not_one(path, start + file.read(64), length, size)
            raw = file.read(length)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error
    try:
        return _parse(parse_json(raw), 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelCorrupt(
            f"{path}: {error}" if str(error) else f"{path} has an invalid header", _DOWNLOAD_AGAIN
        ) from error


def _read_gguf(path: Path, file: BinaryIO, size: int) -> Header:
    try:
        tensors, metadata = gguf_header.read(file, size)
    except (ValueError, KeyError) as error:
        raise ModelCorrupt(f"{path}: {error}" if str(error) else f"{path} is invalid", _DOWNLOAD_AGAIN) from error
    return Header({name: Entry(*each) for name, each in tensors.items()}, metadata)


def _parse(listed: dict[str, Any], data_start: int, size: int) -> Header:
    """Parse the header. Raises ValueError unless the tensors fill the file without gaps."""
    metadata = listed.pop("__metadata__", {})
    tensors, end = {}, 0
    for name, facts in sorted(listed.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape, (begin, finish) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"tensor {name} has the shape {list(shape)}")
        if begin != end or (dtype in _BYTES and finish - begin != _BYTES[dtype] * math.prod(shape)):
            raise ValueError(f"tensor {name} has wrong offsets")
        tensors[name], end = Entry(dtype, shape, data_start + begin), finish
    if data_start + end != size:
        raise ValueError(f"the file has {size - data_start} bytes of tensors, and its header lists {end}")
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def _not_one(path: Path, start: bytes, length: int, size: int) -> ModelCorrupt:
    """Describe a file that is not in the format, by its first bytes."""
    if MAX_HEADER < length <= size - 8:
        return ModelCorrupt(
            f"the header of {path} has {length:,} bytes, and the limit is {MAX_HEADER:,}", "use another file"
        )
    instead = what_instead(start)
    if instead is not None:
        return ModelCorrupt(f"{path} is {instead[0]}, not a safetensors file", instead[1])
    return ModelCorrupt(f"{path} is not a safetensors file, or its header is truncated", _DOWNLOAD_AGAIN)


def what_instead(start: bytes) -> tuple[str, str] | None:
    """Return what a download gave in place of a file, by its first bytes, with a hint; None if that is unknown."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "get the file itself with: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page", "download the file itself, signed in if its page requires that"
    if text.startswith(b'{"'):
        return "JSON, such as a server's error message", "open it to see the message, and download the file again"
    if text.startswith((b"pk\x03\x04", b"\x80\x02")):
        return "a pickle or an archive", "use the .safetensors file of the same model"
    return None
