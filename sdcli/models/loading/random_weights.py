"""Models of a family's real shape with random weights, made in memory: for measuring speed without a download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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


def load(
    source: Source,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    stage: str | None = None,
) -> LatentDiffusionModel:
    """Make the model whose configs are in the folder of `source`, or one `stage` of it, as `loading.load` does.

    Raises ModelCorrupt and ModelError. With `layers`, a transformer has at most so many of each kind,
    and its language models are small.
    """
    with TemporaryDirectory() as folder:
        if layers is not None:
            source = _cut(source, layers, Path(folder) / "cut")
        source = _with_tokenizers(source, Path(folder))
        return loading.load(source, name=name, device=device, dtype=dtype, stage=stage, find=_build, fill_part=_fill)


_LISTS = (
    *("num_layers", "num_single_layers", "n_layers", "n_refiner_layers", "num_decoder_layers", "depth"),
    *("num_refiner_layers", "approximator_layers"),
)
_SMALL = {"num_hidden_layers": 36, "intermediate_size": 256, "d_ff": 256}
"""The sizes of language models that are measured only in passing; families use layers up to the 36th."""


def _cut(source: Source, layers: int, folder: Path) -> Source:
    """Return `source` with configs in `folder` that have fewer layers."""
    parts = dict(source.parts)
    for part in ("transformer", *loading.text_parts(source.index())):
        most = dict.fromkeys(_LISTS, layers) | ({} if part == "transformer" else _SMALL)
        parts[part] = folder / part
        parts[part].mkdir(parents=True)
        cut = json.dumps(_at_most(source.config(part), most))
        (parts[part] / "config.json").write_text(cut, encoding="utf-8")
    return replace(source, parts=tuple(sorted(parts.items())))


def _at_most(config: dict[str, Any], most: Mapping[str, int]) -> dict[str, Any]:
    made = {key: min(value, most[key]) if key in most else value for key, value in config.items()}
    return {key: _at_most(value, most) if isinstance(value, dict) else value for key, value in made.items()}


def _with_tokenizers(source: Source, folder: Path) -> Source:
    """Return `source` with a tokenizer for each language model: Qwen's own, or one of letters, in `folder`."""
    parts = dict(source.parts)
    for encoder in loading.text_parts(source.index()):
        part, kind = encoder.replace("text_encoder", "tokenizer"), source.index()[encoder][1]
        if source.folder(part).is_dir() or kind.startswith("CLIP"):
            continue
        write = next((write for name, write in _OF_LETTERS.items() if kind.startswith(name)), None)
        parts[part] = families.QWEN if write is None else folder / kind
        if write is not None:
            write(parts[part])
    return replace(source, parts=tuple(sorted(parts.items())))


_LETTERS = tuple(map(chr, range(ord("!"), ord("~") + 1)))


def _write_t5_tokenizer(folder: Path) -> None:
    with lean_imports():
        from transformers.models.t5.tokenization_t5 import T5Tokenizer
    vocab = [*((each, 0.0) for each in ("<pad>", "</s>", "<unk>")), *((each, -2.0) for each in ("▁", *_LETTERS))]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)


def _write_gemma_tokenizer(folder: Path) -> None:
    with lean_imports():
        from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
    words = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "▁", *_LETTERS)
    vocab = {each: place for place, each in enumerate(words)}
    GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True).save_pretrained(folder)


_OF_LETTERS: Mapping[str, Callable[[Path], None]] = {"T5": _write_t5_tokenizer, "Gemma": _write_gemma_tokenizer}


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
