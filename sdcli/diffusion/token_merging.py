"""Token merging: self-attention of a U-Net on fewer tokens, each of which replaces those that resemble it.

Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion": in each 2 × 2 square of tokens one is drawn as a
destination. The others with the most similar destination are averaged into it, and get its result. Attention of the
level with the most tokens is merged, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from sdcli.diffusion.denoise import Denoiser, Evaluation

Change = Callable[[Tensor], Tensor]


class Merging:
    """Which tokens are merged: a `ratio` of those of each layer. `evaluation` seeds the draw of destinations."""

    def __init__(self, ratio: float) -> None:
        self.ratio, self.evaluation = ratio, 0

    def bind(self, denoiser: Denoiser) -> Denoiser:
        """Return `denoiser`, which also counts evaluations for this."""

        def counted(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
            self.evaluation = evaluation.index
            return denoiser(latents, timestep, evaluation)

        return counted


class _Merged:
    """An attention processor that calls another one with fewer tokens. `seen` is the input of the norm before it, of
    both halves of guidance even where attention is computed for the first half only.
    """

    def __init__(self, inner: Any, merging: Merging, size: tuple[int, int]) -> None:
        self.inner, self.merging, self.size = inner, merging, size
        self.seen: Tensor | None = None

    def __call__(self, attention: Any, hidden_states: Tensor, *inputs: Any, **options: Any) -> Tensor:
        assert self.seen is not None
        generator = Generator().manual_seed(self.merging.evaluation)
        count = int(hidden_states.shape[1] * self.merging.ratio)
        merge, unmerge = match(self.seen[: len(hidden_states)], self.size, count, generator)
        self.seen = None
        return unmerge(self.inner(attention, merge(hidden_states), *inputs, **options))


@contextmanager
def applied(network: Any, merging: Merging, size: tuple[int, int]) -> Iterator[None]:
    """Merge tokens in a UNet2DConditionModel for latents of `size` (h, w)."""
    level, blocks = _largest(network)
    for _ in range(level):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    before, handles = [], []
    for block in blocks:
        processor = _Merged(block.attn1.processor, merging, size)
        before.append((block.attn1, block.attn1.processor))
        handles.append(
            block.norm1.register_forward_pre_hook(lambda _, seen, to=processor: setattr(to, "seen", seen[0]))
        )
        block.attn1.processor = processor
    try:
        yield
    finally:
        for attention, processor in before:
            attention.processor = processor
        for handle in handles:
            handle.remove()


def _largest(network: Any) -> tuple[int, list[Any]]:
    """Return the first level that has attention, and its transformer blocks on both paths."""
    for level, down in enumerate(network.down_blocks):
        if getattr(down, "has_cross_attention", False):
            both = (down, network.up_blocks[-1 - level])
            found = [each for side in both for layer in side.attentions for each in layer.transformer_blocks]
            return level, found
    return 0, []


def match(tokens: Tensor, size: tuple[int, int], count: int, generator: Generator) -> tuple[Change, Change]:
    """Return how `count` of `tokens` (B, h · w, C) are merged into others, and how that is undone."""
    (height, width), (batch, total, _) = size, tokens.shape
    rows, columns = height // 2, width // 2
    drawn = torch.randint(4, (rows, columns), generator=generator)
    is_destination = torch.zeros(height, width, dtype=torch.bool)
    squares = torch.nn.functional.one_hot(drawn, 4).bool().reshape(rows, columns, 2, 2).permute(0, 2, 1, 3)
    is_destination[: 2 * rows, : 2 * columns] = squares.reshape(2 * rows, 2 * columns)
    places = is_destination.flatten().to(tokens.device)
    sources, destinations = (~places).nonzero()[:, 0], places.nonzero()[:, 0]
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    likeness, nearest = (unit[:, sources] @ unit[:, destinations].transpose(1, 2)).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True)
    count = min(count, len(sources))
    merged, kept = order[:, :count], order[:, count:]
    into = nearest.gather(1, merged)

    def merge(values: Tensor) -> Tensor:
        some, rest = values[:, sources], values[:, destinations]
        rest = rest.scatter_reduce(1, _wide(into, values), some.gather(1, _wide(merged, values)), "mean")
        return torch.cat([some.gather(1, _wide(kept, values)), rest], dim=1)

    def unmerge(values: Tensor) -> Tensor:
        alone, rest = values[:, : total - count - len(destinations)], values[:, total - count - len(destinations) :]
        whole = values.new_empty(batch, total, values.shape[-1])
        whole[:, destinations] = rest
        whole.scatter_(1, _wide(sources[kept], values), alone)
        return whole.scatter_(1, _wide(sources[merged], values), rest.gather(1, _wide(into, values)))

    return merge, unmerge


def _wide(index: Tensor, values: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, values.shape[-1])
