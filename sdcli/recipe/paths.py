"""The paths of input files in the flat keys of a recipe. Opens no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sdcli.errors import InvalidRecipe
from sdcli.recipe.control import Control

_KEYS = {
    "image": "image_sha256",
    "mask_image": "mask_sha256",
    "init_latents": "init_latents_sha256",
    "segmentation_map": "segmentation_sha256",
}
ALPHA = "alpha"
"""The value of mask_image that is no file."""


def paths_of(flat: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the key, the path and the recorded sha256, or None, of each input; skips values of a wrong type."""
    found: list[tuple[str, str, Any]] = []
    exchange(flat, lambda key, path, sha256: found.append((key, path, sha256)) or path)  # type: ignore[func-returns-value]
    yield from found


def exchange(flat: Mapping[str, Any], change: Callable[[str, str, Any], str]) -> dict[str, Any]:
    """Return `flat` with each path replaced by `change(key, path, sha256)`."""
    changed = dict(flat)
    for key, digest in _KEYS.items():
        path = flat.get(key)
        if isinstance(path, str) and (key, path) != ("mask_image", ALPHA):
            changed[key] = change(key, path, flat.get(digest))
    references = flat.get("reference")
    if isinstance(references, str):
        references = [references]
    if isinstance(references, list | tuple) and references:
        recorded = _recorded(flat.get("reference_sha256"))
        changed["reference"] = [
            change("reference", each, next(recorded, None)) if isinstance(each, str) else each for each in references
        ]
    controls, digests = flat.get("control"), flat.get("control_sha256")
    if isinstance(controls, str):
        controls = [controls]
    if isinstance(controls, list | tuple) and controls:
        left = _recorded(digests)
        changed["control"] = [_exchanged(each, left, change) for each in controls]
    return changed


def _recorded(digests: Any) -> Iterator[Any]:
    return iter(digests if isinstance(digests, list | tuple) else ())


def _exchanged(text: Any, digests: Iterator[Any], change: Callable[[str, str, Any], str]) -> Any:
    if isinstance(text, str):
        with suppress(InvalidRecipe):
            control = Control.parse(text)
            if control.image is not None:
                return str(replace(control, image=change("control", control.image, next(digests, None))))
    return text
