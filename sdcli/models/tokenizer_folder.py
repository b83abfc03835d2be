"""Finds the folder of a language model's tokenizer: files of weights have none. Looks for files, and reads none.

CLIP's and Qwen's vocabularies are part of sdcli; T5's is in the hub cache, if a model with it was pulled.
"""

from __future__ import annotations

from pathlib import Path

from sdcli.errors import ModelNotFound
from sdcli.models import families, registry
from sdcli.models.source import Source

_WITH_T5 = ("flux-schnell", "flux-dev", "flux-kontext", "sd35-medium", "sd35-large", "sd35-turbo")
_T5_ALONE = ("google/t5-v1_1-xxl", "google/t5-v1_1-base")
_FILES = ("tokenizer.json", "spiece.model")


def find(source: Source, part: str, kind: str) -> Path:
    """Return the folder of the tokenizer `part`: the model's own, or if it is a single file, one of the same kind.

    Raises ModelNotFound if there is none on this machine.
    """
    folder = source.folder(part)
    if source.is_elsewhere(part) or not source.is_file or source.configs is not None:
        return folder
    if kind == "qwen":
        return families.QWEN
    for name in _WITH_T5:
        snapshot = registry.cached_snapshot(registry.shipped()[name].repo or "")
        tokenizer = "tokenizer_2" if name.startswith("flux") else "tokenizer_3"
        if snapshot is not None and _is_one(snapshot / tokenizer):
            return snapshot / tokenizer
    for repository in _T5_ALONE:
        snapshot = registry.cached_snapshot(repository)
        if snapshot is not None and _is_one(snapshot):
            return snapshot
    raise ModelNotFound(
        f"{source.path} has no {part}, and no model with T5 is in the hub cache",
        f"add --part {part}=FOLDER with the spiece.model or tokenizer.json of any T5, such as {_T5_ALONE[0]}",
    )


def _is_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in _FILES)
