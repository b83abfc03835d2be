"""Models of a family's real shape with random weights, made in memory: for measuring speed without a download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import families, loading
from sdcli.models.imports import lean_imports
from sdcli.models.source import Source

_BLOCK = 1 << 20
_GAIN = 0.7  # keeps activations in the range of a trained network's


def load(source: Source, *, name: str, device: torch.device, dtype: torch.dtype) -> LatentDiffusionModel:
    """Make the model whose configs are in the folder of `source`. Raises ModelCorrupt and ModelError."""
    with TemporaryDirectory() as folder:
        source = _with_tokenizers(source, Path(folder))
        return loading.load(source, name=name, device=device, dtype=dtype, find=_build, fill_part=_fill)


def _with_tokenizers(source: Source, folder: Path) -> Source:
    """Return `source` with a tokenizer for each language model: Qwen's own, and for T5 one of letters, in `folder`."""
    parts = dict(source.parts)
    for encoder in loading.text_parts(source.index()):
        part, kind = encoder.replace("text_encoder", "tokenizer"), source.index()[encoder][1]
        if source.folder(part).is_dir() or kind.startswith("CLIP"):
            continue
        if kind.startswith("T5"):
            _write_t5_tokenizer(folder)
        parts[part] = folder if kind.startswith("T5") else families.QWEN
    return replace(source, parts=tuple(sorted(parts.items())))


def _write_t5_tokenizer(folder: Path) -> None:
    with lean_imports():
        from transformers.models.t5.tokenization_t5 import T5Tokenizer
    letters = map(chr, range(ord("!"), ord("~") + 1))
    vocab = [*((each, 0.0) for each in ("<pad>", "</s>", "<unk>")), *((each, -2.0) for each in ("▁", *letters))]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)


def _build(source: Source, index: Mapping[str, Any], parts: Iterable[str]) -> loading.Parts:
    return {part: (loading.build(source.folder(part), part, index[part][1]), {}) for part in parts}


def _fill(module: Any, stored: Mapping[str, Any], device: torch.device, dtype: torch.dtype, quantize: str) -> Any:
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    state = {name: _random(name, each, block) for name, each in module.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)
    return loading.with_tables(module.requires_grad_(False).eval(), device)


def _random(name: str, like: Tensor, block: Tensor) -> Tensor:
    """Return a tensor of the shape of `like`: the numbers of `block`, repeated and scaled; ones and zeros for norms."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype, device=block.device)
    if like.ndim < 2:
        return torch.full(like.shape, float(not name.endswith("bias")), dtype=block.dtype, device=block.device)
    made = torch.empty(like.shape, dtype=block.dtype, device=block.device)
    flat, whole = made.view(-1), like.numel() // _BLOCK
    flat[: whole * _BLOCK].view(whole, _BLOCK)[:] = block
    flat[whole * _BLOCK :] = block[: like.numel() - whole * _BLOCK]
    return made.mul_(_GAIN * like[0].numel() ** -0.5)
