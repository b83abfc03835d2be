"""Writes folders of real size quickly: random numbers from one block, repeated, in shards."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

BLOCK = torch.Generator().manual_seed(0)
SHARD = 4 * 2**30
"""Bytes of a shard at most."""


def numbers(count: int = 32 * 2**20) -> bytes:
    """`count` normal numbers of the size of fresh weights, bfloat16."""
    drawn = torch.empty(count).normal_(std=0.02, generator=BLOCK).bfloat16()
    return drawn.view(torch.uint8).numpy().tobytes()


def shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names of tensors, divided into shards by their bytes."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(map(sizes.__getitem__, names)) + size > SHARD:
            yield names
            names = []
        names.append(name)
    yield names


def write(module: nn.Module, folder: Path, stem: str) -> int:
    """Write weights for `module`, which is on the meta device, and return their bytes."""
    shapes = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    sizes = {name: 2 * each.numel() for name, each in module.state_dict().items()}
    divided, block = list(shards(sizes)), memoryview(numbers())
    places = {}
    for number, names in enumerate(divided, start=1):
        file = folder / f"{stem}-{number:05}-of-{len(divided):05}.safetensors"
        places |= dict.fromkeys(names, file.name)
        header, end = {}, 0
        for name in names:
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + sizes[name]]}
            end += sizes[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, len(block)):
                out.write(block[: min(len(block), end - start)])
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(sizes.values())
