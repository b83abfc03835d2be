"""Selects the files that sdcli needs from a repository in diffusers' layout, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection

from sdcli.errors import ModelCorrupt, ModelError, ModelUnsafe
from sdcli.files import palette
from sdcli.models import vocabulary
from sdcli.models.families import PICKLES, STEMS, VARIANTS, shards_first

INDEX = "model_index.json"
CONFIG = "config.json"
_TOKENIZER = (
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json"),
    *("spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
)
_CONFIGS = {
    "unet": ("config.json",),
    "transformer": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "class_embedder": ("config.json",),
    "scheduler": ("scheduler_config.json",),
    "tokenizer": _TOKENIZER,
}
_WITH_WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "class_embedder")
_TEXT_PARTS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")
_CLASS_PARTS = (("unet", "vae", "class_embedder", "scheduler"), ("transformer", "vae", "scheduler"))
_OPTIONAL = ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "processor")


LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The files of LoRAs in repositories of diffusers and PEFT."""


def needed(paths: Collection[str], variant: str | None = None, file: str | None = None) -> list[str]:
    """Return the files to download out of all `paths` of a repository, sorted: only `file` if that is given.

    These are configs, tokenizers, and one set of weights for each component: those of `variant` if there are any,
    otherwise the default ones, otherwise fp16 or bf16, in `.safetensors`, in one file or in shards. Loading makes the
    same choice. Pickles, other formats, the safety checker and single-file checkpoints are never included.

    Raises ModelError if `paths` are not in diffusers' layout, ModelUnsafe if a component only has pickles, and
    ModelCorrupt if a component has no weights.
    """
    alone = [file] if file else [each for each in LORA_FILES if each in paths and INDEX not in paths]
    if alone:
        if alone[0] not in paths:
            raise ModelError(f"it has no file {alone[0]}", "check the entry of this name")
        return sorted({alone[0], *({"adapter_config.json"} & set(paths))})
    is_component = any(path.startswith(STEMS[0]) for path in paths)  # a single component, such as a ControlNet
    if INDEX not in paths and CONFIG in paths and is_component:
        return sorted({CONFIG, *({palette.FILE} & set(paths)), *_weights("", paths, variant)})
    if INDEX not in paths:
        raise ModelError(
            f"it is not in diffusers' layout: it has no {INDEX}, and no {CONFIG} of a ControlNet",
            "use another repository, or download its .safetensors file and use its path",
        )
    found = {INDEX, *({palette.FILE, vocabulary.FILE} & set(paths))}
    present = {path.partition("/")[0] for path in paths if "/" in path}
    for folder in (*_parts(present), *_OPTIONAL):
        if folder in _OPTIONAL and folder not in present:
            continue
        kind = folder.removesuffix("_2").removesuffix("_3")
        found |= {f"{folder}/{name}" for name in _configs(kind, present)} & set(paths)
        if kind in _WITH_WEIGHTS:
            found |= _weights(folder, paths, variant)
    return sorted(found)


def _configs(kind: str, present: Collection[str]) -> tuple[str, ...]:
    """Return the files of a folder without weights; that of a processor can have the tokenizer."""
    if kind == "processor":
        return "preprocessor_config.json", *(() if "tokenizer" in present else _TOKENIZER)
    return _CONFIGS[kind]


def _parts(present: Collection[str]) -> tuple[str, ...]:
    """Return the folders that a repository with these must have."""
    if "text_encoder" in present:
        network = "transformer" if "transformer" in present else "unet"
        return tuple(network if part == "unet" else part for part in _TEXT_PARTS)
    return next((parts for parts in _CLASS_PARTS if set(parts) <= set(present)), _TEXT_PARTS)


def _weights(folder: str, paths: Collection[str], variant: str | None) -> set[str]:
    prefix = f"{folder}/" if folder else ""
    for wanted in dict.fromkeys((variant, None, *VARIANTS)):
        for stem in STEMS:
            dotted = f".{wanted}" if wanted else ""
            whole = f"{prefix}{stem}{dotted}.safetensors"
            index = f"{prefix}{stem}.safetensors.index{dotted}.json"
            if whole in paths and not (index in paths and shards_first(stem)):
                return {whole}
            if index in paths:
                mark = re.escape(dotted)
                shard = rf"{prefix}{stem}(?:{mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.safetensors"
                return {index, *(path for path in paths if re.fullmatch(shard, path))}
    what = folder or "ControlNet"
    if any(path.startswith(prefix) and path.endswith(PICKLES) for path in paths):
        raise ModelUnsafe(
            f"its {what} only has pickled weights, and loading those can run code",
            "use a repository with .safetensors weights",
        )
    raise ModelCorrupt(f"its {what} has no .safetensors weights", "use a complete repository")
