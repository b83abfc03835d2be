"""Finds the folder of a language model's tokenizer: files of weights have none. Looks for files, and reads none."""

from __future__ import annotations

from pathlib import Path

from sdcli.errors import ModelNotFound
from sdcli.models import registry
from sdcli.models.families import flow
from sdcli.models.source import Source

_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


def find(source: Source, part: str, *, is_t5: bool) -> Path:
    """Return the folder of the tokenizer `part`: the model's own, or one in the hub cache for a single file's family.

    Raises ModelNotFound if a single file's tokenizer is not on this machine.
    """
    folder = source.folder(part)
    if source.is_elsewhere(part) or not source.is_file or source.configs is not None or _is_one(folder):
        return folder
    family = source.detected or ""
    own = registry.shipped()[family].repo if family in registry.shipped() else None
    repositories = [*([own] if own else []), *flow.FAMILIES[family].tokenizers]
    for repository in repositories:
        snapshot = registry.cached_snapshot(repository)
        for place in () if snapshot is None else (snapshot / part, snapshot / "tokenizer", snapshot):
            if _is_one(place) and (place / "merges.txt").exists() != is_t5:
                return place
    raise ModelNotFound(
        f"{source.path} has no {part}, and none of {' and '.join(repositories)} is in the hub cache",
        f"add --part {part}=FOLDER with its tokenizer.json, or run: sdcli models pull {repositories[-1]}",
    )


def _is_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in _FILES)
