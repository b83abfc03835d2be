"""Converts pickled weights to `.safetensors`, in a process without network that can write only the new file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, OutputError, OutputExists, UsageError
from sdcli.files import atomic
from sdcli.models import families

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """What a conversion has written: the kind of weights, the number of tensors, and what was left out."""

    kind: str
    tensors: int
    dropped: tuple[str, ...]


def convert(source: Path, target: Path, *, force: bool = False) -> Converted:
    """Convert the pickle `source` to the new file `target`; with `force` it can exist.

    Raises ModelNotFound, UsageError for other suffixes, ModelCorrupt for a file that torch's reader for weights does
    not take, OutputExists and OutputError.
    """
    _check(source, target, force)
    temporary = target.with_name(atomic.hidden_name())
    try:
        found = _run(source, temporary)
        atomic.sync(temporary)
        _check_free(target, force)
        temporary.replace(target)
        atomic.sync_name(target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}", "choose another directory") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Converted(found["kind"], found["tensors"], tuple(found["dropped"]))


def _check(source: Path, target: Path, force: bool) -> None:
    if not source.is_file():
        raise ModelNotFound(f"there is no file {source}", "check the path")
    if source.suffix.lower() not in families.PICKLES:
        raise UsageError(f"{source} is not a pickle", f"give a file that ends in {', '.join(families.PICKLES)}")
    if target.suffix != _SUFFIX:
        raise UsageError(f"{target} does not end in {_SUFFIX}", f"write it as {target.with_suffix(_SUFFIX)}")
    _check_free(target, force)
    if not target.parent.is_dir():
        raise OutputError(f"there is no directory {target.parent}", "make it first")


def _check_free(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise OutputExists(f"{target} already exists", "choose another name, or use --force")


def _run(source: Path, target: Path) -> Any:
    secrets = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    environment = {key: value for key, value in os.environ.items() if not any(word in key.upper() for word in secrets)}
    done = subprocess.run(
        [sys.executable, "-m", "sdcli.models.unpickle", str(source.absolute()), str(target.absolute())],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    reason = (done.stderr.strip().splitlines() or ["the process ended without a message"])[-1]
    if done.returncode == 3:
        hint = "it may be damaged, or hold code; get another file"
        raise ModelCorrupt(f"{source} cannot be converted: {reason}", hint)
    raise ModelError(f"{source} cannot be converted: {reason}", "see the message of the process")
