"""U-Nets in bfloat16 on a CPU: weights in the order in which oneDNN multiplies them, and heads one after the other.

As torch calls oneDNN, the weights of each layer are brought into that order in each call; here this is done once, and
results are equal to the bit, except for tokens that are not contiguous. The packed weights replace the others, whose
parameters are left on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sdcli.diffusion import heap, subpixel
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.recipe.recipe import Recipe

_LEAST = 1 << 16
"""The least numbers in weights that are worth it. The first layer, whose device is taken as the network's, has less."""
_ROWS, _SIZE = 2048, (32, 32)
"""The rows of tokens, and the size of a picture's features, that weights are packed for; others have the same order."""


@torch.inference_mode(False)
@torch.no_grad()
def prepare(model: LatentDiffusionModel, recipe: Recipe) -> LatentDiffusionModel:
    """Pack the weights of U-Nets and ControlNets in bfloat16 on a CPU that are not packed; return `model`.

    Upsampling in the VAE's decoder is shortened too (see `subpixel`). Nothing is done if torch's compiler or another
    engine runs them, and on processors where it was not measured.
    """
    if recipe.execution.engine != "torch" or recipe.execution.compile or not is_measured():
        return model
    subpixel.shorten_decoder(model.vae)
    if model.architecture != "unet":
        return model
    refiners = [] if model.refiner is None else [model.refiner.network]
    for network in (model.network, *refiners, *(each.net for each in model.controlnets.values())):
        for layer in network.modules():
            if _gains(layer):
                _pack(layer)
            elif isinstance(layer, Attention) and _is_plain(layer) and _is_on_cpu(layer.to_q.weight):
                layer.set_processor(_HeadsApart())
    heap.trim()
    return model


def is_measured() -> bool:
    """Whether this processor is of the kind where all orders of weights are known: with AVX-512 bf16, without AMX."""
    known: bool = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return known and torch.backends.mkldnn.is_available()


@torch.inference_mode(False)
@torch.no_grad()
def undo(network: nn.Module) -> None:
    """Give a network its own weights and attention again."""
    for layer in network.modules():
        if is_packed(layer):
            _unpack(layer)
        elif isinstance(layer, Attention) and isinstance(layer.processor, _HeadsApart):
            layer.set_processor(AttnProcessor2_0())


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer has a packed weight; or had one, and has got another."""
    return isinstance(layer, _PackedLinear | _PackedConv2d)


def _gains(layer: Any) -> bool:
    """Whether a layer has a weight that is worth it, and whose order is the same for all sizes of pictures.

    With oneDNN 3.12, that of a convolution depends on the size if its channels can be divided into blocks of 64 and of
    48, or if it is of 1 × 1. A weight in another order than the size needs makes a call 10 times as slow, or worse.
    """
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == (3, 3) and layer.padding == (1, 1) and layer.padding_mode == "zeros"
        if not plain or layer.groups != 1 or layer.out_channels % 64 or layer.out_channels % 48 == 0:
            return False
    if type(layer) not in _KINDS and not is_packed(layer):
        return False
    return _is_on_cpu(layer.weight) and layer.weight.numel() >= _LEAST


def _is_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


class _PackedLinear(nn.Linear):
    """A linear layer with a packed weight, until it gets another one."""

    packed: Tensor

    def pack(self) -> None:
        """Pack the weight."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), _ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return result


class _PackedConv2d(nn.Conv2d):
    """A convolution with a packed weight, until it gets another one."""

    packed: Tensor

    def pack(self) -> None:
        """Pack the weight."""
        size = (2, self.in_channels, *_SIZE)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *self._shape(), size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer."""
        call = torch.ops.mkldnn._convolution_pointwise
        result: Tensor = call(inputs, self.packed, self.bias, *self._shape(), "none", [], "")
        return result

    def _shape(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


_KINDS: Mapping[type[nn.Module], type[nn.Module]] = {nn.Linear: _PackedLinear, nn.Conv2d: _PackedConv2d}


def _pack(layer: Any) -> None:
    layer.__class__ = _KINDS.get(type(layer), type(layer))
    layer.pack()
    layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)


def _unpack(layer: Any) -> None:
    if layer.weight.is_meta:
        weight = layer.packed.to_dense().reshape(layer.weight.shape)
        kind = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        layer.weight = nn.Parameter(weight.contiguous(memory_format=kind), requires_grad=False)
    del layer.packed
    layer.__class__ = next(kind for kind, packed in _KINDS.items() if isinstance(layer, packed))


def _is_plain(layer: Attention) -> bool:
    """Whether all that a layer computes is attention between its tokens, or to others."""
    parts: list[Any] = [layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k, layer.norm_cross]
    rest = layer.residual_connection or layer.rescale_output_factor != 1
    return type(layer.processor) is AttnProcessor2_0 and not rest and not any(parts)


class _HeadsApart:
    """Diffusers' AttnProcessor2_0 for a plain layer, with queries, keys and values of a head next to each other.

    torch's attention is faster with them than with tokens whose heads are next to each other: for Stable Diffusion
    1.5's shape at 512×512, 330 instead of 345 ms a call.
    """

    def __call__(
        self, layer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **masks: Any
    ) -> Tensor:
        """Compute the layer."""
        if any(each is not None for each in masks.values()):
            result: Tensor = AttnProcessor2_0()(layer, hidden_states, encoder_hidden_states, **masks)
            return result
        others = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = _heads(layer, hidden_states, others)
        attended = scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)
        projected: Tensor = layer.to_out[0](attended)
        return projected


def _heads(layer: Any, hidden_states: Tensor, others: Tensor) -> Iterator[Tensor]:
    for project, states in ((layer.to_q, hidden_states), (layer.to_k, others), (layer.to_v, others)):
        projected = project(states)
        yield projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2).contiguous()
