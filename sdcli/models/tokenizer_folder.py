"""Finds the folder of a language model's tokenizer: files of weights have none. Looks for files, and reads none.

CLIP's and Qwen's vocabularies are part of sdcli; those of T5 and Gemma are in the hub cache, if a model with one was
pulled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import ModelNotFound
from sdcli.models import families, registry
from sdcli.models.source import Source


@dataclass(frozen=True)
class Kind:
    """Where tokenizers of a kind are: in a folder of models in models.toml, or alone in repositories."""

    title: str
    files: tuple[str, ...]
    folders: Mapping[str, tuple[str, ...]]
    alone: tuple[str, ...]


_KINDS: Mapping[str, Kind] = {
    "t5": Kind(
        "T5",
        ("spiece.model", "tokenizer.json"),
        {
            "tokenizer_2": ("flux-schnell", "flux-dev", "flux-kontext"),
            "tokenizer_3": ("sd35-medium", "sd35-large", "sd35-turbo"),
            "tokenizer": ("chroma", "pixart-sigma", "pixart-alpha"),
        },
        ("google/t5-v1_1-xxl", "google/t5-v1_1-base"),
    ),
    "gemma": Kind(
        "Gemma 2",
        ("tokenizer.json",),
        {"tokenizer": ("lumina2", "sana")},
        ("google/gemma-2-2b-it", "google/gemma-2-2b"),
    ),
}


def find(source: Source, part: str, kind: str) -> Path:
    """Return the folder of the tokenizer `part`: the model's own, or if it is a single file, one of the same kind.

    Raises ModelNotFound if there is none on this machine.
    """
    folder = source.folder(part)
    if not folder.is_dir() and source.folder("processor").is_dir():
        folder = source.folder("processor")  # which has the tokenizer of Qwen-Image 2.1
    if source.is_elsewhere(part) or not source.is_file or source.configs is not None:
        return folder
    if kind == "qwen":
        return families.QWEN
    known = _KINDS[kind]
    places = [
        (registry.shipped()[name].repo or "", folder) for folder, names in known.folders.items() for name in names
    ]
    for repository, inside in (*places, *((each, "") for each in known.alone)):
        snapshot = registry.cached_snapshot(repository)
        if snapshot is not None and any((snapshot / inside / name).exists() for name in known.files):
            return snapshot / inside
    raise ModelNotFound(
        f"{source.path} has no {part}, and no model with {known.title} is in the hub cache",
        f"add --part {part}=FOLDER with the {' or '.join(known.files)} of any {known.title}, such as {known.alone[0]}",
    )
