"""Loads a ControlNet's folder to a ControlNetModel."""

from __future__ import annotations

from typing import Any

import torch

from sdcli.models import families
from sdcli.models.imports import lean_imports
from sdcli.models.loading import construct
from sdcli.models.loading.find import find_in_folder
from sdcli.models.loading.weights import fill, read_headers
from sdcli.models.source import Source

with lean_imports():
    from diffusers.models.controlnets.controlnet import ControlNetModel


def load(source: Source, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the ControlNetModel at `source`, in diffusers' format. Raises ModelUnsafe, ModelCorrupt and ModelError."""
    count = len(read_headers(families.component_files(source.path, source.variant)))
    net = construct(source.path, ControlNetModel, count)
    fill(net, find_in_folder(source.path, source.variant, net), device, dtype)
    return net
