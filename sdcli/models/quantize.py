"""Writes any model as a diffusers folder whose network and language models are quantised, as GGUF files.

Such a folder loads faster than its model is quantised, and takes less of the disk. The names of tensors in the files
are those of the modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from sdcli.files import palette
from sdcli.files.json_files import load_json
from sdcli.models import export, families, loading, vocabulary
from sdcli.models.loading import quantised
from sdcli.models.loading.weights import read
from sdcli.models.source import INDEX, Source
from sdcli.terminal.display import OnBytes

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def quantize(source: Source, folder: Path, name: str, on_bytes: OnBytes) -> None:
    """Write the model at `source` to the empty `folder`, with large weights in the format `name`.

    Weights that are not quantised keep their values and dtype. Parts are written one at a time. Raises ModelError if
    the model cannot be read, and OSError if the folder cannot be written.
    """
    source.check()
    index = dict(loading.read_index(source))
    parts = [part for part in loading.COMPONENTS if index.get(part, [None, None])[1]]
    for part, (module, stored) in loading.check_parts(source, index, parts).items():
        (folder / part).mkdir()
        export.write_json(folder / part / "config.json", load_json(source.folder(part) / "config.json"))
        counted = _counted(read(export.each_once(stored), mapped=False), part, on_bytes)
        if loading.takes_quantised(part, module):
            _write_gguf(module, counted, folder / part / f"{families.STEMS[0]}.gguf", name)
        else:
            export.save({export.name_of(part, key): each for key, each in counted}, folder / part)
        if part.startswith("text_encoder"):
            export.write_tokenizer(source, part, module, folder)
    export.copy_folders(source, folder)
    known = vocabulary.read(source.path)
    if known is not None:
        vocabulary.write(folder, known)
    if palette.find(source.folder("unet")).exists():
        palette.write(folder, palette.read(palette.find(source.folder("unet")).parent))
    export.write_json(folder / INDEX, index)


def _counted(pairs: Iterable[tuple[str, Tensor]], part: str, on_bytes: OnBytes) -> Iterable[tuple[str, Tensor]]:
    for key, each in pairs:
        on_bytes(part, each.nbytes)
        yield key, each


def _write_gguf(module: Any, pairs: Iterable[tuple[str, Tensor]], file: Path, name: str) -> None:
    """Write tensors to a file; the writer keeps them on disk until the header is complete."""
    writer = gguf.GGUFWriter(file, "sdcli", use_temp_file=True)
    for key, tensor in pairs:
        if quantised.takes(module, key):
            raw, kind = quantised.quantise(tensor, name).view(torch.uint8), name.upper()
        else:
            plain = tensor if tensor.dtype in _PLAIN else tensor.float()
            raw, kind = plain.contiguous().reshape(-1).view(torch.uint8), _PLAIN[plain.dtype]
        shape = gguf.quant_shape_to_byte_shape(tensor.shape or (1,), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(key, raw.reshape(shape).numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
