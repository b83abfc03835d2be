"""Low-rank changes of the layers of a model while it is trained (Hu et al. 2021, "LoRA"), and their file.

The layers stay as they are and keep their names; a hook adds the change to their output. The file has the layout of
kohya-ss/sd-scripts, which most tools read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files import atomic
from sdcli.models.loading import single_file
from sdcli.training.settings import LoraTraining

ATTENTION = ("Transformer2DModel", "CLIPAttention", "CLIPMLP")
"""Classes whose linear layers are changed, with the 1×1 convolutions among them, as in sd-scripts."""
BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
"""Classes whose convolutions are changed too if they have a rank of their own."""
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


class LowRank(nn.Module):
    """The change of a layer: alpha / rank · up · down, which is zero at first. Its weights are float32."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        shape = layer.weight.shape
        self.moves = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else None
        self.down = nn.Parameter(torch.empty(rank, *shape[1:]))
        self.up = nn.Parameter(torch.zeros(shape[0], rank, *[1] * (len(shape) - 2)))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, sample: Tensor) -> Tensor:
        """Return the change of the layer's output for its input, in the dtype of the input."""
        down, up = self.down.to(sample.dtype), self.up.to(sample.dtype)
        if self.moves is None:
            return F.linear(F.linear(sample, down), up) * self.scale
        stride, padding = self.moves
        return F.conv2d(F.conv2d(sample, down, None, stride, padding), up) * self.scale


def parts_of(model: LatentDiffusionModel) -> dict[str, nn.Module]:
    """Return the parts of a model that a LoRA can change, by their names in model_index.json."""
    encoders = (each.model for each in model.text_encoders)
    return dict(zip(PREFIXES, (model.network, *encoders), strict=False))


def inject(model: LatentDiffusionModel, settings: LoraTraining, *, text: bool) -> nn.ModuleDict:
    """Freeze `model`, add a change to its layers, and return the changes by the layers' names in the file.

    `text` adds them to the text encoders too.
    """
    added: dict[str, nn.Module] = {}
    for part, module in parts_of(model).items():
        module.requires_grad_(False)
        if part != "unet" and not text:
            continue
        for name, layer in layers(module, convolutions=settings.conv_rank > 0):
            wide = isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
            rank = settings.conv_rank if wide else settings.rank
            change = LowRank(layer, rank, settings.alpha * rank / settings.rank).to(layer.weight.device)
            layer.register_forward_hook(_added(change))
            added[file_name(part, name, model)] = change
    return nn.ModuleDict(added)


def _added(change: LowRank) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed: Tensor = output + change(inputs[0])
        return changed

    return hook


def layers(module: nn.Module, *, convolutions: bool) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Yield the layers that are changed, with their names."""
    kinds = (*ATTENTION, *BLOCKS) if convolutions else ATTENTION
    owners = [name for name, each in module.named_modules() if type(each).__name__ in kinds]
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(name.startswith(f"{owner}.") for owner in owners):
            yield name, layer


def file_name(part: str, layer: str, model: LatentDiffusionModel) -> str:
    """Return sd-scripts' name of a layer: for SDXL's U-Net after its original name, for others after diffusers'."""
    prefix, is_xl = PREFIXES[part], len(model.text_encoders) == 2
    if part == "unet" and is_xl:
        layer = single_file.unet(f"{layer}.weight", model.network.config).removesuffix(".weight")
    elif part != "unet":
        layer = f"text_model.{layer.removeprefix('text_model.')}"
        prefix = "lora_te1" if is_xl and part == "text_encoder" else prefix
    return f"{prefix}_{layer.replace('.', '_')}"


def write(path: Path, changes: nn.ModuleDict, metadata: Mapping[str, str]) -> None:
    """Write changes to a file, in float16, with sd-scripts' hash of its tensors in the metadata."""
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        assert isinstance(change, LowRank)
        rank = len(change.down)
        tensors |= {
            f"{name}.lora_down.weight": change.down.detach().half().cpu().contiguous(),
            f"{name}.lora_up.weight": change.up.detach().half().cpu().contiguous(),
            f"{name}.alpha": torch.tensor(change.scale * rank, dtype=torch.float16),
        }
    plain = save(tensors, dict(metadata))
    start = 8 + int.from_bytes(plain[:8], "little")
    data = save(tensors, {**metadata, "sshs_model_hash": hashlib.sha256(plain[start:]).hexdigest()})
    atomic.replace(path, data)
