"""The sizes of a model's parts, from the headers of their files: how many numbers, and how many bytes in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcli.models import families
from sdcli.models.families import Entry, flow
from sdcli.models.families.gguf_header import QUANTISED, stored_bytes
from sdcli.models.source import Source

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "class_embedder")
_IN_BLOCKS = re.compile(r"\.\d+\..*\.weight$")


@dataclass(frozen=True)
class Size:
    """The numbers of a part, those of them that `quantize` applies to, and those that are quantised in its file."""

    numbers: int
    in_blocks: int = 0
    quantised: int = 0
    quantised_bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def in_memory(self, bytes_of_number: int, quantize: str = "none") -> int:
        """Return the bytes of the weights in memory; `quantize` is a format, if it applies to the part."""
        plain, others = self.numbers - self.quantised, self.quantised_bytes
        if quantize != "none":
            block, size = QUANTISED[quantize.upper()]
            plain, others = plain - self.in_blocks, others + self.in_blocks * size // block
        return plain * bytes_of_number + others


def of_file(file: Path) -> Size:
    """Return the size of all tensors in a file. Raises what `families.read_header` raises."""
    return _of(families.read_header(file).tensors.items())


def _of(tensors: Iterable[tuple[str, Entry]]) -> Size:
    total = Size(0)
    for name, each in tensors:
        count = math.prod(each.shape)
        if each.dtype in QUANTISED:
            total += Size(count, 0, count, stored_bytes(each.dtype, each.shape))
        else:
            taken = len(each.shape) == 2 and each.shape[1] % 32 == 0 and bool(_IN_BLOCKS.search(name))
            total += Size(count, count if taken else 0)
    return total


def of_source(source: Source) -> dict[str, Size]:
    """Return the size of each part of a model; the text encoders of a single file of SDXL count as one.

    Raises ModelError for files that are missing, truncated or unsafe.
    """
    found: dict[str, Size] = {}
    if source.is_file:
        found |= _in_single_file(source)
    for part in PARTS:
        if source.is_elsewhere(part) or (not source.is_file and source.folder(part).is_dir()):
            found[part] = _of_part(source, part)
    return found


def _of_part(source: Source, part: str) -> Size:
    file = source.file(part)
    if file is None:
        return sum(map(of_file, source.weights(part)), Size(0))
    tensors = families.read_header(file).tensors
    return _of((name, tensors[name]) for name in flow.own_names(tensors, part))


def _in_single_file(source: Source) -> Mapping[str, Size]:
    tensors = families.read_header(source.path).tensors
    kind = flow.kind_of(tensors)
    if kind is not None:
        encoders = flow.KINDS[kind].encoders
        own = {
            part: flow.own_names(tensors, part, encoders.get(part, ""))
            for part in ("transformer", *flow.KINDS[kind].files)
            if not source.is_elsewhere(part)
        }
        return {part: _of((name, tensors[name]) for name in names) for part, names in own.items() if names}
    if not source.is_elsewhere("vae"):
        families.check_has_vae(source.path, tensors)
    prefixes = {families.UNET: "unet", families.VAE: "vae", families.CLASSES: "class_embedder"}
    prefixes |= dict.fromkeys(("cond_stage_model.", "conditioner."), "text_encoder")
    found: dict[str, Size] = {}
    for name, tensor in tensors.items():
        part = next((part for prefix, part in prefixes.items() if name.startswith(prefix)), None)
        if part is not None:
            found[part] = found.get(part, Size(0)) + _of([(name, tensor)])
    return found
