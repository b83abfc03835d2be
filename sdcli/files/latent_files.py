"""Reads and writes files with the latents of one picture, (1, C, h, w). Knows numpy, nothing of models.

A file is `.safetensors` with the tensor `latents`, (1, C, h, w) in float32, multiplied by the VAE's scaling_factor,
like the latents of diffusers' pipelines for `output_type="latent"`. Its metadata are `model`, `model_digest`,
`scaling_factor` and, for a generated picture, `recipe` as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from sdcli.errors import InputError
from sdcli.files.metadata import shareable
from sdcli.files.reading import Files
from sdcli.files.user_files import from_home
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

KEY = "latents"

_HINT = "give a file written by sdcli encode or --save-latents"
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class LatentFile:
    """The latents in a file, (1, C, h, w) in float32, scaled, and the sha256 of the file in hex."""

    latents: NDArray[np.float32]
    sha256: str


def read(
    file: str, channels: int, scaling_factor: float, recorded: str | None = None, files: Files | None = None
) -> LatentFile:
    """Read the latents in `file` for a model with these `channels` and `scaling_factor`.

    Raises InputError for another kind of file, NaN or infinity, latents of another shape or scale, or a file that
    differs from the `recorded` sha256.
    """
    try:
        data = (files or Files()).read(file)
    except InputError as error:
        raise InputError(error.message, _HINT) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if recorded is not None and sha256 != recorded:
        raise InputError(f"{file} has changed since the recipe was made", f"give the file with the sha256 {recorded}")
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file, or is truncated: {error}", _HINT) from error
    if KEY not in tensors:
        raise InputError(f"{file} has no tensor {KEY!r}, only {', '.join(sorted(tensors)[:3]) or 'nothing'}", _HINT)
    entries = _metadata(data)
    other = f"select the model that made them with -m{' ' + entries['model'] if entries.get('model') else ''}"
    dtype, shape = tensors[KEY]["dtype"], list(tensors[KEY]["shape"])
    if len(shape) != 4 or shape[:2] != [1, channels] or 0 in shape or dtype not in _FLOATS:
        raise InputError(
            f"{file} holds {dtype} latents of the shape {shape}, and this model needs floats of [1, {channels}, h, w]",
            other,
        )
    numbers = _numbers(tensors[KEY])
    if not np.isfinite(numbers).all():
        raise InputError(f"{file} has latents that are not numbers (NaN or infinity)", _HINT)
    if entries.get("scaling_factor", str(scaling_factor)) != str(scaling_factor):
        raise InputError(
            f"{file} has latents scaled by {entries['scaling_factor']}, and this model scales by {scaling_factor}",
            other,
        )
    return LatentFile(numbers, sha256)


def _numbers(tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    """Convert a tensor's bytes to float32; bfloat16 is the upper half of it."""
    stored = np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]]).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the metadata of a valid safetensors file."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entries: Mapping[str, str] = header.get("__metadata__") or {}
    return entries


def file_of(latents: Tensor, digest: str, *, model: str, scaling_factor: float, recipe: Recipe | None = None) -> bytes:
    """Return the file of `latents` (1, C, h, w), with its model's name and digest and, if there is one, its recipe."""
    from safetensors.torch import save

    entries = {"model": from_home(model), "model_digest": digest, "scaling_factor": str(scaling_factor)}
    if recipe is not None:
        entries["recipe"] = json.dumps(shareable(recipe), allow_nan=False)
    return _in_order(save({KEY: latents.contiguous()}, entries))


def _in_order(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which the library shuffles, so that equal latents give equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
