"""Names that other tools have for keys of a recipe and their values: A1111's samplers, `cfg_scale`, `size`, seed -1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcli.errors import InvalidRecipe
from sdcli.recipe import schedulers

ALIASES: Mapping[str, str] = {"cfg_scale": "guidance_scale", "sampler": "scheduler", "sample_steps": "steps"}
RANDOM_SEED = -1
"""Draws a seed, as no seed does; it takes the place of a seed in the user's settings."""

_COMFYUI: Mapping[str, str] = {
    "euler_ancestral": "euler-a",
    "dpmpp_2m": "dpm++-2m",
    "dpmpp_2m_sde": "dpm++-2m-sde",
    "uni_pc": "unipc",
}
_BITS: Mapping[str, str] = {"int8": "q8_0", "int4": "q4_0"}
_SIZE = re.compile(r"\s*(\d{1,6})\s*[x×X*]\s*(\d{1,6})\s*", re.ASCII)


def translate(key: str, value: Any) -> dict[str, Any]:
    """Return `key` and `value` in the terms of a recipe: one pair, or two. Anything else is returned unchanged.

    Raises InvalidRecipe for a size that is not `WIDTHxHEIGHT`.
    """
    key = ALIASES.get(key, key)
    if key == "size":
        return size_of(value)
    if key == "quantize" and isinstance(value, str):
        return {key: _BITS.get(value.lower(), value.lower())}
    if key == "scheduler" and isinstance(value, str) and value not in schedulers.NAMES:
        return _sampler(value)
    return {key: value}


def size_of(value: Any) -> dict[str, int]:
    """Return the width and height of a size such as `512x768`. Raises InvalidRecipe."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRecipe(f"size is {value!r}", "write it as WIDTHxHEIGHT, such as 512x768", "size")
    return {"width": int(found[1]), "height": int(found[2])}


def _sampler(name: str) -> dict[str, Any]:
    if name.lower() in _COMFYUI:
        return {"scheduler": _COMFYUI[name.lower()]}
    known = schedulers.from_a1111(name) or schedulers.from_a1111(name.replace("_", " "))
    if known is None:
        return {"scheduler": name}  # which the recipe refuses
    scheduler, sigmas = known
    return {"scheduler": scheduler} | ({} if sigmas == "default" else {"sigmas": sigmas})
