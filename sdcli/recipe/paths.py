"""The paths of input files, and the names of weights, in the flat keys of a recipe. Opens no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sdcli.errors import InvalidRecipe
from sdcli.recipe import part
from sdcli.recipe.control import Control
from sdcli.recipe.image_prompt import ImagePrompt
from sdcli.recipe.lora import Lora
from sdcli.recipe.parts import UPSCALERS

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
    prompts = flat.get("image_prompt")
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, list | tuple) and prompts:
        of_prompts = _recorded(flat.get("image_prompt_sha256"))
        changed["image_prompt"] = [
            _valid(each, lambda text: _exchanged_prompt(text, of_prompts, change)) for each in prompts
        ]
    controls, digests = flat.get("control"), flat.get("control_sha256")
    if isinstance(controls, str):
        controls = [controls]
    if isinstance(controls, list | tuple) and controls:
        left = _recorded(digests)
        changed["control"] = [_valid(each, lambda text: _exchanged(text, left, change)) for each in controls]
    return changed


def exchange_weights(flat: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """Return `flat` with the name or path of the model and of each part and add-on replaced by `change(key, name)`.

    Values of a wrong type stay as they are.
    """

    def named(text: str) -> str:
        return change("embedding", text)

    def of_lora(text: str) -> str:
        each = Lora.parse(text)
        return str(replace(each, name=change("lora", each.name)))

    def of_control(text: str) -> str:
        each = Control.parse(text)
        return str(replace(each, name=change("control", each.name)))

    def of_part(text: str) -> str:
        name, path = part.parse(text)
        return f"{name}={change('part', path)}"

    changed = dict(flat)
    if isinstance(flat.get("model"), str):
        changed["model"] = change("model", flat["model"])
    for key in ("hires_upscaler", "upscaler", "ip_adapter", "image_encoder"):
        if isinstance(flat.get(key), str) and flat[key] not in UPSCALERS:
            changed[key] = change(key, flat[key])
    for key, of_text in (("lora", of_lora), ("control", of_control), ("embedding", named), ("part", of_part)):
        texts = [flat[key]] if isinstance(flat.get(key), str) else flat.get(key)
        if isinstance(texts, list | tuple) and texts:
            changed[key] = [_valid(each, of_text) for each in texts]
    return changed


def _valid(text: Any, change: Callable[[str], str]) -> Any:
    if isinstance(text, str):
        with suppress(InvalidRecipe):
            return change(text)
    return text


def _recorded(digests: Any) -> Iterator[Any]:
    return iter(digests if isinstance(digests, list | tuple) else ())


def _exchanged_prompt(text: str, digests: Iterator[Any], change: Callable[[str, str, Any], str]) -> str:
    prompt = ImagePrompt.parse(text)
    return str(replace(prompt, image=change("image_prompt", prompt.image, next(digests, None))))


def _exchanged(text: str, digests: Iterator[Any], change: Callable[[str, str, Any], str]) -> str:
    control = Control.parse(text)
    if control.image is None:
        return text
    return str(replace(control, image=change("control", control.image, next(digests, None))))
