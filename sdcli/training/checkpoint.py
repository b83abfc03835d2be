"""Checkpoint files, which are always complete or absent. Does not depend on what is trained."""

from pathlib import Path
from typing import Any

import torch

from sdcli.errors import ModelCorrupt, ModelNotFound, OutputError
from sdcli.files import atomic

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a checkpoint to a temporary file, sync it, and rename it. Raises OutputError if writing fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path, f"{path.name}.partial") as file:
            torch.save(state, file)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "the previous checkpoint is intact") from error


def load(path: Path) -> State:
    """Read a checkpoint. Raises ModelNotFound or ModelCorrupt."""
    if not path.is_file():
        raise ModelNotFound(f"there is no checkpoint {path}", "train first, or give the folder of a run")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind can raise any error
        raise ModelCorrupt(f"{path} is not a checkpoint of sdcli train", "move it away, and train again") from error
    return state
