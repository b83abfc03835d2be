"""Nearest upsampling by two and a 3 × 3 convolution, as convolutions of the small image.

Every second row of the large image repeats the one before. So two of the three rows of a kernel meet the same pixels,
and can be added first; which two depends on the parity of the output's row. The same holds for columns. This takes 16
multiplications instead of 36, and only rounding differs. It is one transposed convolution, or four of 2 × 2 whose
outputs are interleaved (Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient
Sub-Pixel Convolutional Neural Network"): the first is faster with torch, the others are with OpenVINO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.upsampling import Upsample2D
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

_ROWS = (((0,), (1, 2)), ((0, 1), (2,)))
"""The rows of the kernel that meet the same row of the small image, for even and for odd rows of the output."""


def shorten_decoder(vae: Any) -> None:
    """Replace such pairs in the decoder of an AutoencoderKL in bfloat16 on a CPU by transposed convolutions."""
    if type(vae).__name__ != "AutoencoderKL":
        return
    for each in vae.decoder.modules():
        if isinstance(each, Upsample2D) and _is_plain(each):
            each.conv, each.use_conv_transpose = _transposed(each.conv), True


def _is_plain(upsample: Any) -> bool:
    conv = upsample.conv if upsample.name == "conv" else None
    if not isinstance(conv, nn.Conv2d) or upsample.norm is not None or not upsample.interpolate:
        return False
    same = (conv.kernel_size, conv.padding, conv.groups, conv.padding_mode) == ((3, 3), (1, 1), 1, "zeros")
    return same and conv.weight.dtype == torch.bfloat16 and conv.weight.device.type == "cpu"


@torch.inference_mode(False)
@torch.no_grad()
def _transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    weight = conv.weight.float().transpose(0, 1).flip(2, 3)
    shifted = [functional.pad(weight, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1)]
    made = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1, device="meta")
    made.weight = nn.Parameter(torch.stack(shifted).sum(0).to(conv.weight.dtype), requires_grad=False)
    made.bias = conv.bias
    return made.eval()


def shorten(model: Any) -> None:
    """Replace such pairs in a model of OpenVINO whose sizes are fixed."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution" and _upsamples(node):
            node.output(0).replace(_interleaved(node).output(0))


def _upsamples(convolution: Any) -> bool:
    """Return whether a convolution is a 3 × 3 one of an image of the same size that was upsampled by two."""
    resized, attributes = convolution.input_value(0).get_node(), convolution.get_attributes()
    if resized.get_type_name() != "Interpolate" or resized.get_attributes()["mode"] != "nearest":
        return False
    small, large = resized.input_value(0).shape, resized.output(0).shape
    doubled = [*small[:2], 2 * small[2], 2 * small[3]]
    same = [attributes[each] for each in ("strides", "dilations", "pads_begin", "pads_end")] == [[1, 1]] * 4
    return list(large) == doubled and same and list(convolution.input_value(1).shape)[2:] == [3, 3]


def _interleaved(convolution: Any) -> Any:
    from openvino import opset13 as ops

    image = convolution.input_value(0).get_node().input_value(0)
    kernel = _kernel(convolution.input_value(1).get_node())
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            pads = [1 - row, 1 - column], [row, column]
            parts.append(ops.convolution(image, _summed(kernel, row, column), [1, 1], *pads, [1, 1]))
    return ops.depth_to_space(ops.concat(parts, 1), "blocks_first", 2)


def _kernel(node: Any) -> NDArray[np.float32]:
    while node.get_type_name() == "Convert":  # from the float16 of the file
        node = node.input_value(0).get_node()
    return np.asarray(node.data, dtype=np.float32)


def _summed(kernel: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """Return the 2 × 2 kernel, of shape (out, in, 2, 2), for rows and columns of the output of this parity."""
    rows = np.stack([kernel[:, :, each, :].sum(axis=2) for each in map(list, _ROWS[row])], axis=2)
    return np.stack([rows[..., list(each)].sum(axis=3) for each in _ROWS[column]], axis=3)
