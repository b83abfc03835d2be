"""Weights of eight bits with scales: each scale becomes a part of its weight. Reads headers, and small marks.

ComfyUI's files have a scale next to each weight of a layer, as `.scale_weight` or `.weight_scale`, and a mark: a tensor
`scaled_fp8` for the file, or a `.comfy_quant` for each layer. A scale or mark of another kind is refused: without it
the pictures would be noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models.loading.weights import Stored

SCALES = (".scale_weight", ".weight_scale")
OF_INPUTS = (".input_scale", ".scale_input")
"""Scales of inputs, for tools that also compute in eight bits."""
MARK, LAYER_MARK = "scaled_fp8", ".comfy_quant"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8")
_SUSPECT = re.compile(r"scale|zero|absmax|amax|quant|codebook")
_MAX_MARK = 2**12
_HINT = "use another file of the model: plain fp8, fp8 with scale_weight, GGUF, fp16 or bf16"


def fold(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the tensors without scales and marks: weights have their scales.

    Raises ModelError, with the tensor's name, for a scale or mark of an unknown kind, and ModelCorrupt for a missing
    scale.
    """
    if not any(each.entry.dtype in (*_EIGHT_BITS, "U8") or key.endswith(MARK) for key, each in stored.items()):
        return dict(stored)
    marked = tuple(key.removesuffix(MARK) for key in stored if key.split(".")[-1] == MARK)
    found = {}
    for key, each in stored.items():
        layer, _, leaf = key.rpartition(".")
        if leaf == MARK or (key.endswith(OF_INPUTS) and f"{layer}.weight" in stored):
            continue
        if key.endswith(LAYER_MARK):
            _check_mark(each)
        elif key.endswith(SCALES) and f"{layer}.weight" in stored:
            _check_scale(each, stored[f"{layer}.weight"])
        elif leaf == "weight" and each.entry.dtype in _EIGHT_BITS:
            found[key] = _scaled(each, layer, stored, marked)
        elif f"{layer}.weight" in stored and _SUSPECT.search(leaf):
            raise ModelError(f"{each.file}: {key} is a scale or mark of an unknown kind", _HINT)
        else:
            found[key] = each
    return found


def _scaled(weight: Stored, layer: str, stored: Mapping[str, Stored], marked: tuple[str, ...]) -> Stored:
    scale = next((stored[layer + name] for name in SCALES if layer + name in stored), None)
    if scale is not None:
        return replace(weight, scale=scale)
    needed = layer + LAYER_MARK in stored or (bool(marked) and layer.startswith(marked) and not _is_embedding(layer))
    if needed and len(weight.entry.shape) > 1:
        raise ModelCorrupt(f"{weight.file}: tensor {weight.key} has no scale", "download the file again")
    return weight


def _is_embedding(layer: str) -> bool:
    return "embed" in layer or "shared" in layer


def _check_scale(scale: Stored, weight: Stored) -> None:
    rows = weight.entry.shape[0] if weight.entry.shape else 1
    if weight.entry.dtype not in _EIGHT_BITS or scale.entry.dtype not in ("F32", "F16", "BF16"):
        what = f"{scale.key} has the dtype {scale.entry.dtype}, for a weight of {weight.entry.dtype}"
        raise ModelError(f"{scale.file}: {what}", _HINT)
    if scale.entry.shape not in ((), (1,), (rows,), (1, 1), (rows, 1)):
        what = f"{scale.key} has the shape {list(scale.entry.shape)}, for a weight of {list(weight.entry.shape)}"
        raise ModelError(f"{scale.file}: {what}", _HINT)


def _check_mark(mark: Stored) -> None:
    """Raise ModelError unless the mark of a layer is of a format that is known."""
    try:
        with mark.file.open("rb") as file:
            file.seek(mark.entry.start)
            content = json.loads(file.read(min(math.prod(mark.entry.shape), _MAX_MARK)))
        known = content.get("format") in _FORMATS
    except (ValueError, AttributeError, TypeError, OSError):
        known, content = False, "unreadable"
    if not known:
        raise ModelError(f"{mark.file}: {mark.key} is {content}, which is not supported", _HINT)
