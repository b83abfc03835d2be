"""Weights that wait in main memory, and are on the GPU only while they are used. Knows nothing of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel


@contextmanager
def on_device(model: LatentDiffusionModel, *modules: nn.Module) -> Iterator[None]:
    """Have `modules` of `model` on its device. If they wait in main memory, they are copied to it for the body.

    What waits is kept, so nothing is copied back. Modules whose layers are moved one by one are left to that.
    """
    if model.offload == "none":
        yield
        return
    moved = [each for each in modules if not hasattr(each, _BY_LAYER)]
    with _copied(moved, model.device):
        yield


@contextmanager
def _copied(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    tensors = list(chain.from_iterable(chain(each.parameters(), each.buffers()) for each in modules))
    waiting = [each.data for each in tensors]
    try:
        with torch.inference_mode(False):
            for each, data in zip(tensors, waiting, strict=True):
                each.data = data.to(device, non_blocking=True)
        yield
    finally:
        for each, data in zip(tensors, waiting, strict=True):
            each.data = data


def in_groups(module: nn.Module, device: torch.device) -> None:
    """Have each layer of `module`, which waits in main memory, on `device` only while it is used.

    On a GPU the next layer is copied while one computes. Memory is pinned for each copy, because to pin all of it would
    copy the whole file.
    """
    from diffusers.hooks.group_offloading import apply_group_offloading

    streams: dict[str, Any] = {}
    if device.type == "cuda":
        streams = {"use_stream": True, "record_stream": True, "low_cpu_mem_usage": True}
    apply_group_offloading(module, onload_device=device, offload_type="leaf_level", **streams)
    setattr(module, _BY_LAYER, True)


_BY_LAYER = "sdcli_moved_by_layer"
"""The attribute of modules whose layers are moved one by one."""
