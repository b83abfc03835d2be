"""Loads IP-Adapters into U-Nets, by diffusers' own converter, and the image encoders that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdcli.diffusion import packed
from sdcli.diffusion.model import ImageEncoder, LatentDiffusionModel
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import families, ip_adapter_file
from sdcli.models.imports import lean_imports
from sdcli.models.loading import construct, with_tables
from sdcli.models.loading.find import find_in_folder
from sdcli.models.loading.weights import fill, read, read_headers
from sdcli.models.source import Source
from sdcli.terminal.printable import one_line

with lean_imports():
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection


def attach(model: LatentDiffusionModel, paths: Sequence[Path]) -> LatentDiffusionModel:
    """Load the IP-Adapter at `paths`, one or none, into the U-Net, in place of the one before.

    Raises ModelError for tensors that do not fit the U-Net, and ModelCorrupt for numbers that are not finite.
    """
    unet = model.network
    _detach(unet)
    if not paths:
        return replace(model, sees_patches=False)
    path, made = paths[0], ip_adapter_file.read(paths[0])
    state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in read(read_headers([path])):
        part, _, rest = name.partition(".")
        if part in state and rest:
            state[part][rest] = tensor.to(model.dtype)
    if not all(each.isfinite().all() for part in state.values() for each in part.values()):
        raise ModelCorrupt(f"{path} has numbers that are not finite", "download it again, or use another one")
    layers = sum(not name.endswith("attn1.processor") for name in unet.attn_processors)
    if made.layers != layers:
        what = f"{path} is made for U-Nets with {made.layers} cross-attentions, and this one has {layers}"
        raise ModelError(what, "use an IP-Adapter that was trained for this family of models")
    packed.undo(unet)  # diffusers moves the whole U-Net to its device
    try:
        unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    except (RuntimeError, KeyError, ValueError) as error:
        _detach(unet)
        what = f"{path} does not fit this model: {one_line(str(error))[:200]}"
        raise ModelError(what, "use an IP-Adapter that was trained for this family of models") from error
    unet.requires_grad_(False).eval()
    return replace(model, sees_patches=made.patches)


def _detach(unet: Any) -> None:
    """Remove an IP-Adapter, as diffusers' `unload_ip_adapter` does."""
    if getattr(unet.config, "encoder_hid_dim_type", None) != "ip_image_proj":
        return
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet.encoder_hid_proj = None
    unet.config.encoder_hid_dim_type = None
    unet.set_attn_processor({name: AttnProcessor2_0() for name in unet.attn_processors})


def load_encoder(source: Source, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """Load the image encoder in the folder at `source`. Raises ModelUnsafe, ModelCorrupt and ModelError."""
    count = len(read_headers(families.component_files(source.path, source.variant)))
    encoder = construct(source.path, CLIPVisionModelWithProjection, count)
    fill(encoder, find_in_folder(source.path, source.variant, encoder), device, dtype)
    return ImageEncoder(with_tables(encoder, device), _processor(encoder.config.image_size))


def _processor(side: int) -> Any:
    """Return what prepares an image, with CLIP's own values, as diffusers' pipelines make it."""
    with lean_imports():
        try:
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Kind
        except ImportError:  # transformers before 5.10 has one class
            from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Kind
    return Kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
