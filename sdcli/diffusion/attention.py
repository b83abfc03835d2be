"""Where a network looks for each token of its context: attention maps, from the queries and keys of its layers.

Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention": the attention to a token,
averaged over heads, layers and steps at the size of the latents. Only watches: what a network computes does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

UNET = "unet"
JOINT: Mapping[str, bool] = {"sd3": False, "flux": True}
"""The transformers whose layers attend to text and picture together, and whether the text's tokens come first."""


class Maps(TorchFunctionMode):
    """A context in which attention is summed; `mean` returns its average afterwards.

    For latents of `size` (h, w), whose context has `tokens` tokens, and for a network of one of the architectures UNET
    and JOINT. Only the last picture of a batch counts, which is the conditional one.
    """

    def __init__(self, network: Any, architecture: str, size: tuple[int, int], tokens: int) -> None:
        super().__init__()
        self._network, self._architecture = network, architecture
        self._size, self._tokens = size, tokens
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}
        self._inside = False
        self._hooks = ExitStack()

    def __enter__(self) -> Any:
        """Watch the network's layers."""
        if self._architecture == UNET:
            for each in cross_attention(self._network):
                self._hooks.callback(each.register_forward_pre_hook(partial(self._mark, True)).remove)
                self._hooks.callback(each.register_forward_hook(partial(self._mark, False)).remove)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Watch no more."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        """Call `function`, and look at its arguments if it is attention."""
        options = options or {}
        if function is scaled_dot_product_attention:
            given = dict(zip(("query", "key"), arguments, strict=False)) | options
            self._look(given["query"][-1].float(), given["key"][-1].float(), given.get("scale"))
        return function(*arguments, **options)

    def mean(self) -> Tensor | None:
        """Return the attention (tokens, h, w) to each token, averaged over all that was seen, if there was any."""
        if not self._sums:
            return None
        total = sum(self._counts.values())
        maps = torch.zeros(self._tokens, *self._size)
        for places, summed in self._sums.items():
            small = summed.T.reshape(1, self._tokens, *self._grid(places))
            maps += interpolate(small, self._size, mode="bilinear", align_corners=False)[0] / total
        return maps

    def _mark(self, inside: bool, *_: Any) -> None:
        self._inside = inside

    def _look(self, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Add one layer's attention, from queries (heads, N, d) and keys (heads, L, d) in float32."""
        places = _picture_tokens(self._size)
        if self._architecture == UNET:
            height, width = self._grid(query.shape[1])
            if not self._inside or key.shape[1] != self._tokens or height * width != query.shape[1]:
                return
            of_text = slice(None)
        else:
            count = query.shape[1]
            if key.shape[1] != count or count < places + self._tokens:
                return
            first = JOINT[self._architecture]
            query = query[:, self._tokens : self._tokens + places] if first else query[:, :places]
            of_text = slice(self._tokens) if first else slice(places, places + self._tokens)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        heads = [(one @ other.T * scale).softmax(-1)[:, of_text].cpu() for one, other in zip(query, key, strict=True)]
        attention = torch.stack(heads).mean(0)
        found = len(attention)
        self._sums[found] = self._sums.get(found, torch.zeros(())) + attention
        self._counts[found] = self._counts.get(found, 0) + 1

    def _grid(self, places: int) -> tuple[int, int]:
        """Return the height and width of so many places: the latents' divided by a power of 2, rounded up."""
        height, width = self._size
        while height * width > places:
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


def can_be_seen(architecture: str) -> bool:
    """Whether the attention of an architecture to the tokens of a text can be seen."""
    return architecture == UNET or architecture in JOINT


def cross_attention(network: Any) -> list[Any]:
    """Return the layers of a U-Net that attend to its context."""
    return [each for each in network.modules() if getattr(each, "is_cross_attention", False)]


def _picture_tokens(size: tuple[int, int]) -> int:
    return (size[0] // 2) * (size[1] // 2)
