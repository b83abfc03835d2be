"""Adds the vectors of embeddings to the text encoders of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel, TextEncoder, Tokenizer
from sdcli.errors import ModelCorrupt
from sdcli.models.loading.weights import read, read_headers
from sdcli.models.weights import Addon

WithWords = Callable[[Tokenizer, int, Sequence[Addon]], Tokenizer]


def add(model: LatentDiffusionModel, addons: Sequence[Addon], with_words: WithWords) -> LatentDiffusionModel:
    """Add the vectors of `addons`, which fit the text encoders, in place of those that were added before.

    `with_words` adds their names to a tokenizer. Raises ModelCorrupt for unreadable files and numbers that are not
    finite.
    """
    return replace(model, text_encoders=tuple(_with_vectors(each, addons, with_words) for each in model.text_encoders))


def _with_vectors(encoder: TextEncoder, addons: Sequence[Addon], with_words: WithWords) -> TextEncoder:
    own = encoder.model.config.vocab_size
    table = encoder.model.get_input_embeddings()
    vectors = [_vectors(each, table.embedding_dim).to(table.weight) for each in addons]
    table.weight = nn.Parameter(torch.cat([table.weight[:own], *vectors]), requires_grad=False)
    if addons:
        _pool_at_first_end(encoder.model, encoder.tokenizer.eos_id)
    return TextEncoder(with_words(encoder.tokenizer, own, addons), encoder.model)


def _vectors(addon: Addon, width: int) -> Tensor:
    """Return the vectors (n, width) for the text encoder of this width, float32."""
    found = [each.reshape(-1, each.shape[-1]).float() for _, each in read(read_headers([addon.source.path]))]
    vectors = next(each for each in found if each.shape[1] == width)
    if not vectors.isfinite().all():
        raise ModelCorrupt(
            f"the embedding {addon.name} has numbers that are not finite", "download it again, or use another one"
        )
    return vectors


def _pool_at_first_end(model: Any, eos_id: int) -> None:
    """Make the pooled embedding that of the first `eos_id`.

    Configs of CLIP before transformers 4.30 have another eos_token_id, 2, for which transformers takes the largest id
    instead: with the ids of embeddings this is another token.
    """
    for module in model.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = eos_id
