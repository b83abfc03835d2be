"""Where the networks are kept that were converted for OpenVINO. Imports no torch."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from sdcli.files.user_files import cache_folder


def place(name: str, identity: str, dtype: str, kind: str) -> Path:
    """Return the folder for `name`, a part of the model of this `identity`.

    `dtype` is the name in a recipe, and `kind` what tells apart several functions of the part.
    """
    return cache_folder() / "openvino" / f"{name}-{_of_model(identity, dtype)}-{_digest(kind)}"


def is_kept(identity: str, dtype: str) -> bool:
    """Return whether the network of a model was converted already, in any kind."""
    if find_spec("openvino") is None:
        return False
    return any((cache_folder() / "openvino").glob(f"network-{_of_model(identity, dtype)}-*"))


def _of_model(identity: str, dtype: str) -> str:
    return _digest(identity, dtype, *(version(each) for each in ("openvino", "diffusers", "torch")))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
