"""Both halves of guidance are the same until they meet their contexts: a U-Net computes its first layers once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@contextmanager
def computed_once(network: Any) -> Iterator[None]:
    """Have the layers of a UNet2DConditionModel before its first context compute half of their batch, and repeat it.

    Both halves of the batch must have the same latents and time embeddings. If `network.forward` was replaced by an
    object with a method `computed_once`, this is left to it. A network that is compiled, or whose `forward` is replaced
    by anything else, is left as it is.
    """
    forward = vars(network).get("forward") if isinstance(network, nn.Module) else None
    if isinstance(forward, Shared):
        with forward.computed_once():
            yield
    elif isinstance(network, nn.Module) and forward is None and network._compiled_call_impl is None:
        with computed_in_part(network, 2):
            yield
    else:
        yield


@runtime_checkable
class Shared(Protocol):
    """What computes the halves' common layers once by its own means."""

    def computed_once(self) -> AbstractContextManager[None]:
        """Do so within the context."""


@contextmanager
def computed_in_part(network: Any, parts: int | Tensor) -> Iterator[None]:
    """Have the layers before the first context compute one of this many equal parts of their batch, and repeat it.

    A tensor of one integer remains an input when `network` is traced.
    """
    with ExitStack() as stack:
        for each in before_the_context(network):
            stack.callback(_restore, each, vars(each).get("forward"))
            each.forward = _on_part(each.forward, parts)
        yield


def before_the_context(network: Any) -> Iterator[nn.Module]:
    """Yield the layers that see nothing of the context, in order, up to the first one that does."""
    yield network.conv_in
    for block in network.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            yield block
            continue
        yield block.resnets[0]
        attention = block.attentions[0]
        layer = getattr(attention, "transformer_blocks", [None])[0]
        if layer is not None and layer.norm_type == "layer_norm" and not layer.only_cross_attention:
            yield from (attention.norm, attention.proj_in, layer.norm1, layer.attn1)
        return


def _on_part(forward: Callable[..., Any], parts: int | Tensor) -> Callable[..., Any]:
    def once(*inputs: Any, **named: Any) -> Any:
        def part(value: Any) -> Any:
            return value[: value.shape[0] // parts] if isinstance(value, Tensor) else value

        return _repeated(forward(*map(part, inputs), **{name: part(value) for name, value in named.items()}), parts)

    return once


def _repeated(made: Any, parts: int | Tensor) -> Any:
    if not isinstance(made, Tensor):
        return tuple(_repeated(each, parts) for each in made)
    if isinstance(parts, int):
        return torch.cat([made] * parts)  # unlike `repeat`, this keeps channels last
    repeats: Any = (parts, *[1] * (made.ndim - 1))
    return made.repeat(repeats)


def _restore(module: Any, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
