"""Embeddings (textual inversion, Gal et al. 2022): new words for the text encoders, used where a prompt has their name.

Reads only headers, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import ModelError
from sdcli.models import families
from sdcli.models.addons import files_by_name
from sdcli.models.located import LocatedModel
from sdcli.models.registry import EMBEDDING
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
from sdcli.recipe.lora import file_stem
from sdcli.recipe.recipe import adapters_of

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel, Tokenizer

KIND = EMBEDDING
NAMES = files_by_name.Names("embedding", "embedding_dir", KIND)
ENCODERS = ("text_encoder", "text_encoder_2")
_MADE_FOR = {(768,): "SD 1.x", (1024,): "SD 2.x", (768, 1280): "SDXL"}


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the embeddings in flat keys of a recipe, in order."""
    return [Asked(name) for name in adapters_of(options).embedding]


def locate(name: str) -> Source:
    """Locate an embedding. Raises ModelNotFound, and ModelError for anything else than an embedding."""
    return NAMES.locate(name)


def found_in(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those of `names` that occur in prompts."""
    if not names:
        return []
    pattern = word_pattern(names)
    found = {match[1].casefold() for text in texts for match in pattern.finditer(text)}
    return [name for name in names if name.casefold() in found]


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds `words` in a prompt, as whole words, also in ComfyUI's form `embedding:word`."""
    listed = "|".join(re.escape(each) for each in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:embedding:)?({listed})(?![\w-])", re.IGNORECASE)


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise ModelError unless the file at `source` has vectors for each text encoder of `model`."""
    theirs = [shape[1] for shape in vectors(source).values()]
    ours = _widths(model.source) if model.facts.prompts.syntax else []
    if not ours:
        raise ModelError(f"{model.entry.name} has no text encoder that takes embeddings", "omit the embedding")
    if sorted(theirs) != sorted(ours):
        made = _MADE_FOR.get(tuple(sorted(theirs)), f"text encoders of {_listed(theirs)} features")
        hint = f"use an embedding for text encoders of {_listed(ours)} features"
        raise ModelError(f"the embedding {name} is made for {made}, and {model.entry.name} is not one of them", hint)


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _widths(source: Source) -> list[int]:
    present = (part for part in ENCODERS if (source.folder(part) / "config.json").exists())
    return [source.config(part).get("hidden_size", 512) for part in present]  # transformers' default


def vectors(source: Source) -> dict[str, tuple[int, int]]:
    """Return the shapes (vectors, features) of the tensors of an embedding by their names.

    A file has one tensor for each text encoder: `emb_params` of A1111, `clip_l` and `clip_g` for SDXL, or one of any
    name of diffusers. Raises ModelError for any other file.
    """
    tensors = families.read_header(source.path).tensors
    shapes = {name: entry.shape if len(entry.shape) == 2 else (1, *entry.shape) for name, entry in tensors.items()}
    if not 1 <= len(shapes) <= len(ENCODERS) or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        hint = "an embedding has one tensor of vectors for each text encoder"
        raise ModelError(f"{source.path} is not an embedding", hint)
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def files(source: Source) -> list[Path]:
    """Return the weight files of an embedding."""
    return [source.path]


def with_words(tokenizer: Tokenizer, first_id: int, addons: Sequence[Addon]) -> Tokenizer:
    """Return `tokenizer` with the names of embeddings as words, whose ids count from `first_id`."""
    words, start = {}, first_id
    for each in addons:
        count = next(iter(vectors(each.source).values()))[0]
        words[file_stem(each.name).casefold()] = tuple(range(start, start + count))
        start += count
    return replace(tokenizer, words=words, word_pattern=word_pattern(list(words)) if words else None)


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Add the vectors of `weights` to the text encoders of `model`, in place of those that were added before."""
    from sdcli.models.loading import embedding as loading

    return loading.add(model, weights.of_kind(KIND), with_words)
