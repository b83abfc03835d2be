"""Finds models by the names and hashes that other tools record. Looks for files, and reads none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sdcli.models import registry

# File names in the repositories of models.toml, which other tools use as model names.
_FILES_OF = {
    "v1-5-pruned": "sd15",
    "v1-5-pruned-emaonly": "sd15",
    "v2-1_768-ema-pruned": "sd21",
    "v2-1_512-ema-pruned": "sd21-base",
    "sd_xl_base_1.0": "sdxl",
    "sd_xl_turbo_1.0_fp16": "sdxl-turbo",
    "sd_xl_turbo_1.0": "sdxl-turbo",
    "sd_turbo": "sd-turbo",
}

MAX_NAME = 200
"""Longer names can be no files."""


def find_model(name: str, digest: str = "", folder: Path = Path()) -> str | None:
    """Return the value of `-m` for a model that another tool calls `name`, or whose SHA-256 starts with `digest`.

    Searches the hub cache (where files are named by digest), models.toml, the current folder and `folder`. Returns None
    if the model is not found.
    """
    return next(_candidates(name, digest, folder), None)


def _candidates(name: str, digest: str, folder: Path) -> Iterator[str]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if re.fullmatch(r"[0-9a-f]{10,64}", digest):
        for blob in sorted(cache.glob(f"models--*/blobs/{digest}*")):
            for file in sorted(blob.parent.parent.glob("snapshots/*/*.safetensors")):
                if file.resolve() == blob.resolve():
                    yield str(file)
    if not name or len(name) > MAX_NAME or "/" in name or "\\" in name or name.startswith("."):
        return
    for entry in (name, _FILES_OF.get(name, "")):
        if entry in registry.entries() and registry.is_present(registry.entries()[entry]):
            yield entry
    for place in dict.fromkeys((Path(), folder)):
        for file in (place / f"{name}.safetensors", place / name):
            if file.exists():
                yield str(file)
    if not set(name) & set("*?["):
        yield from map(str, sorted(cache.glob(f"models--*/snapshots/*/{name}.safetensors")))
