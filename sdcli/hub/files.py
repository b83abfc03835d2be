"""Which files of a repository in diffusers' layout sdcli needs. Looks at names only."""

from __future__ import annotations

import re
from collections.abc import Collection

from sdcli.errors import ModelCorrupt, ModelError, ModelUnsafe
from sdcli.families import PICKLES, STEMS

INDEX = "model_index.json"
_CONFIGS = {
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "scheduler": ("scheduler_config.json",),
    "tokenizer": (
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ),
}
_WEIGHED = ("unet", "vae", "text_encoder")
_OPTIONAL = ("text_encoder_2", "tokenizer_2")  # SDXL's


def needed(paths: Collection[str], variant: str | None = None) -> list[str]:
    """The files to get out of all `paths` of a repository, sorted: configs, tokenizers, and ONE set of weights each.

    The weights of a component are those of `variant` where it has them, else the plain ones, else fp16, in
    `.safetensors`, whole or in shards: the same choice as when they are loaded. Never pickles, other formats, the
    safety checker, or single files beside the folders.

    Raises ModelError where `paths` are no diffusers layout, ModelUnsafe for a component that has pickles only, and
    ModelCorrupt for one that has nothing.
    """
    if INDEX not in paths:
        raise ModelError(
            f"it is not in diffusers' layout: it has no {INDEX}",
            "use a repository that is, or get its .safetensors file yourself and give sdcli the path",
        )
    found = {INDEX}
    for folder in (*_CONFIGS, *_OPTIONAL):
        if folder in _OPTIONAL and not any(path.startswith(f"{folder}/") for path in paths):
            continue
        kind = folder.removesuffix("_2")
        found |= {f"{folder}/{name}" for name in _CONFIGS[kind]} & set(paths)
        if kind in _WEIGHED:
            found |= _weights(folder, paths, variant)
    return sorted(found)


def _weights(folder: str, paths: Collection[str], variant: str | None) -> set[str]:
    for wanted in dict.fromkeys((variant, None, "fp16")):
        for stem in STEMS:
            dotted = f".{wanted}" if wanted else ""
            whole = f"{folder}/{stem}{dotted}.safetensors"
            index = f"{folder}/{stem}.safetensors.index{dotted}.json"
            if whole in paths:
                return {whole}
            if index in paths:
                mark = re.escape(dotted)
                shard = rf"{folder}/{stem}(?:{mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.safetensors"
                return {index, *(path for path in paths if re.fullmatch(shard, path))}
    if any(path.startswith(f"{folder}/") and path.endswith(PICKLES) for path in paths):
        raise ModelUnsafe(
            f"its {folder} has pickled weights only, which could run code when opened",
            "use a repository with .safetensors weights",
        )
    raise ModelCorrupt(f"its {folder} has no .safetensors weights", "use a repository that is whole")
