"""Which files of a repository in diffusers' layout, a model's or a ControlNet's, sdcli needs. Looks at names only."""

from __future__ import annotations

import re
from collections.abc import Collection

from sdcli.errors import ModelCorrupt, ModelError, ModelUnsafe
from sdcli.files import palette
from sdcli.models.families import PICKLES, STEMS

INDEX = "model_index.json"
CONFIG = "config.json"
_CONFIGS = {
    "unet": ("config.json",),
    "transformer": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "class_embedder": ("config.json",),
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
_WEIGHED = ("unet", "transformer", "vae", "text_encoder", "class_embedder")
_OF_TEXTS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")
_OF_CLASSES = (("unet", "vae", "class_embedder", "scheduler"), ("transformer", "vae", "scheduler"))
_OPTIONAL = ("text_encoder_2", "tokenizer_2")  # SDXL's


def needed(paths: Collection[str], variant: str | None = None) -> list[str]:
    """The files to get out of all `paths` of a repository, sorted: configs, tokenizers, and ONE set of weights each.

    The weights of a component are those of `variant` where it has them, else the plain ones, else fp16, in
    `.safetensors`, whole or in shards: the same choice as when they are loaded. Never pickles, other formats, the
    safety checker, or single files beside the folders.

    Raises ModelError where `paths` are no diffusers layout, ModelUnsafe for a component that has pickles only, and
    ModelCorrupt for one that has nothing.
    """
    by_itself = any(path.startswith(STEMS[0]) for path in paths)  # a component of diffusers', as ControlNets are
    if INDEX not in paths and CONFIG in paths and by_itself:
        return sorted({CONFIG, *({palette.FILE} & set(paths)), *_weights("", paths, variant)})
    if INDEX not in paths:
        raise ModelError(
            f"it is not in diffusers' layout: it has no {INDEX}, and no {CONFIG} of a ControlNet",
            "use a repository that is, or get its .safetensors file yourself and give sdcli the path",
        )
    found = {INDEX, *({palette.FILE} & set(paths))}
    present = {path.partition("/")[0] for path in paths if "/" in path}
    of_classes = (parts for parts in _OF_CLASSES if "text_encoder" not in present and present.issuperset(parts))
    for folder in (*next(of_classes, _OF_TEXTS), *_OPTIONAL):
        if folder in _OPTIONAL and folder not in present:
            continue
        kind = folder.removesuffix("_2")
        found |= {f"{folder}/{name}" for name in _CONFIGS[kind]} & set(paths)
        if kind in _WEIGHED:
            found |= _weights(folder, paths, variant)
    return sorted(found)


def _weights(folder: str, paths: Collection[str], variant: str | None) -> set[str]:
    beside = f"{folder}/" if folder else ""
    for wanted in dict.fromkeys((variant, None, "fp16")):
        for stem in STEMS:
            dotted = f".{wanted}" if wanted else ""
            whole = f"{beside}{stem}{dotted}.safetensors"
            index = f"{beside}{stem}.safetensors.index{dotted}.json"
            if whole in paths:
                return {whole}
            if index in paths:
                mark = re.escape(dotted)
                shard = rf"{beside}{stem}(?:{mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.safetensors"
                return {index, *(path for path in paths if re.fullmatch(shard, path))}
    what = folder or "ControlNet"
    if any(path.startswith(beside) and path.endswith(PICKLES) for path in paths):
        raise ModelUnsafe(
            f"its {what} has pickled weights only, which could run code when opened",
            "use a repository with .safetensors weights",
        )
    raise ModelCorrupt(f"its {what} has no .safetensors weights", "use a repository that is whole")
