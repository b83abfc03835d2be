"""Checkpoints: whole or absent. Knows nothing of what is trained."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from sdcli.errors import ModelCorrupt, ModelNotFound, OutputError

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a checkpoint beside its place, sync it, and rename it there. Raises OutputError."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror}", "the checkpoint before it is whole") from error


def check(path: Path) -> None:
    """Raise OutputError where a checkpoint could not be written, before it takes hours to have one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "choose a place that you can write to") from error


def load(path: Path) -> State:
    """Read a checkpoint. Raises ModelNotFound or ModelCorrupt."""
    if not path.is_file():
        raise ModelNotFound(f"no checkpoint {path}", "train first, or name the folder that training wrote to")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever else the file is, it breaks the reader in its own way
        raise ModelCorrupt(f"cannot read the checkpoint {path}: {error}", "remove it and train again") from error
    return state
