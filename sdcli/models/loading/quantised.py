"""Layers whose weights stay quantised in memory, in a format of GGUF, and are dequantised for each call.

The formats are those of the `gguf` package; diffusers dequantises them with torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gguf
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from torch import Tensor, nn


def dequantise(raw: Tensor, dtype_name: str, dtype: torch.dtype) -> Tensor:
    """Return the weights in rows of bytes, as `dtype`.

    bfloat16 has too few digits for the products of scales: they are computed in float16, as diffusers does.
    """
    kind = gguf.GGMLQuantizationType[dtype_name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    inner = torch.float32 if dtype == torch.float32 else torch.float16
    values = dequantize_functions[kind](raw.view(torch.uint8).reshape(-1, size), block, size, inner)
    return values.reshape(*raw.shape[:-1], -1).to(dtype)  # type: ignore[no-any-return]


def quantise(weight: Tensor, name: str) -> Tensor:
    """Return a weight as rows of bytes in a format of recipe.parts.QUANTIZATIONS."""
    raw = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[name.upper()])
    return torch.from_numpy(raw).view(torch.int8)


def takes(module: nn.Module, name: str) -> bool:
    """Whether the parameter `name` is quantised: a weight of a linear layer in a list of blocks, in whole blocks of 32.

    The layers at the ends of a network are small, and errors of theirs are seen in every pixel.
    """
    path, _, leaf = name.rpartition(".")
    layer, parents = module.get_submodule(path), path.split(".")
    listed = any(
        isinstance(module.get_submodule(".".join(parents[:count])), nn.ModuleList) for count in range(len(parents))
    )
    return leaf == "weight" and type(layer) is nn.Linear and listed and layer.in_features % 32 == 0


Changed = Callable[[Tensor], Tensor]


class QuantisedLinear(nn.Module):
    """A linear layer with quantised weights, to which changes can be added."""

    down: Tensor | None
    up: Tensor | None

    def __init__(self, like: nn.Linear, raw: Tensor, dtype_name: str, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight = _empty(raw)
        self.bias: nn.Parameter | None = like.bias
        self.dtype_name, self.compute_dtype = dtype_name, compute_dtype
        self.changed: Changed | None = None
        self.register_buffer("down", None, persistent=False)
        self.register_buffer("up", None, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in), without changes."""
        return dequantise(self.weight, self.dtype_name, dtype)

    def change(self, factors: Sequence[tuple[Tensor, Tensor]] = (), changed: Changed | None = None) -> None:
        """Replace the changes: the sum of up · down for pairs (down, up) of `factors`, which is added to the output, or
        a function from the weight, float32, to the changed one, which is called each time.
        """
        self.changed = changed
        self.down = self.up = None
        if factors:
            downs, ups = zip(*factors, strict=True)
            self.down = torch.cat(downs).to(self.weight.device, self.compute_dtype)
            self.up = torch.cat(ups, dim=1).to(self.weight.device, self.compute_dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute in `compute_dtype`."""
        inputs = inputs.to(self.compute_dtype)
        if self.changed is None:
            weight = self.dequantised(self.compute_dtype)
        else:
            weight = self.changed(self.dequantised(torch.float32)).to(self.compute_dtype)
        output = nn.functional.linear(inputs, weight, self.bias)
        if self.down is not None and self.up is not None:
            output = output + nn.functional.linear(nn.functional.linear(inputs, self.down), self.up)
        return output


class QuantisedEmbedding(nn.Module):
    """An embedding with quantised rows, of which only those that are looked up are dequantised."""

    def __init__(self, like: nn.Embedding, raw: Tensor, dtype_name: str, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.weight = _empty(raw)
        self.dtype_name, self.compute_dtype = dtype_name, compute_dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows."""
        return dequantise(self.weight[ids], self.dtype_name, self.compute_dtype)


_KINDS = {nn.Linear: QuantisedLinear, nn.Embedding: QuantisedEmbedding}


def _empty(raw: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(raw.shape, dtype=raw.dtype, device="meta"), requires_grad=False)


def replace(module: nn.Module, name: str, raw: Tensor, dtype_name: str, compute_dtype: torch.dtype) -> bool:
    """Replace the layer with the parameter `name` by one for quantised weights; False if there is none for it."""
    path, _, leaf = name.rpartition(".")
    layer = module.get_submodule(path)
    kind = _KINDS.get(type(layer))
    if kind is None or leaf != "weight":
        return False
    module.set_submodule(path, kind(layer, raw, dtype_name, compute_dtype))
    return True
