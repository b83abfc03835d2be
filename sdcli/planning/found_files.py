"""Where the files that a picture records are now: on another machine, or moved."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from sdcli.errors import InputError, InvalidRecipe, ModelError, ModelNotFound
from sdcli.files.reading import Files, is_stream, is_stream_name
from sdcli.models import addons, registry
from sdcli.models.addons import controlnet, embedding, ip_adapter, lora, upscaler
from sdcli.recipe.paths import exchange, exchange_weights, paths_of

_KINDS = {
    "control": controlnet.KIND,
    "lora": lora.KIND,
    "embedding": embedding.KIND,
    "upscaler": upscaler.KIND,
    "hires_upscaler": upscaler.KIND,
    "ip_adapter": ip_adapter.KIND,
    "image_encoder": ip_adapter.ENCODER,
}
"""The kinds of add-ons by their keys."""


def where(picture: str, name: str) -> str:
    """Return where the model, part or add-on with this recorded name or path is, or `name` if that is unknown.

    A path is relative to this directory, or to that of `picture`; of an absolute one, the name counts there too.
    """
    base = PurePath(name).name if name.startswith(("/", "~")) else name
    places = (name, *(str(folder / each) for each in (name, base) for folder in (Path(), Path(picture).parent)))
    known = name in registry.entries()
    return name if known else next((each for each in places if registry.existing(each)), name)


def digests(recorded: Any) -> dict[tuple[str, str], Any]:
    """Return the sha256 of each of the recorded add-ons, by its kind and the name of its file."""
    listed = [each for each in recorded if isinstance(each, Mapping)] if isinstance(recorded, list) else []
    return {(str(each.get("kind")), PurePath(str(each.get("name"))).name): each.get("sha256") for each in listed}


def with_weights(picture: str, recipe: Mapping[str, Any], recorded: Any) -> dict[str, Any]:
    """Replace the paths of parts and add-ons by where they are; `recorded` are the add-ons in the metadata.

    Raises ModelNotFound for an absolute path, or one below the home, that is nowhere.
    """
    known = digests(recorded)

    def place(key: str, name: str) -> str:
        found = name if key == "model" else where(picture, name)
        if key not in _KINDS or not name.startswith(("/", "~")) or registry.existing(found):
            return found
        kind, base = _KINDS[key], PurePath(name).name
        with suppress(ModelError, InvalidRecipe):
            addons.find_addon(kind, base)  # in the user's directory for them
            return base
        digest = known.get((kind, base))
        what = f"{picture} was made with the {addons.KINDS[kind].title} {name}, which is not on this machine"
        hint = f"put {base} next to the picture" + (f"; its sha256 is {digest}" if digest else "")
        raise ModelNotFound(what, hint)

    return exchange_weights(recipe, place)


def with_inputs(picture: str, recipe: Mapping[str, Any], files: Files, images: Sequence[str]) -> dict[str, Any]:
    """Replace the paths of inputs by those of the same files among `images`, in this directory or next to `picture`.

    Raises InputError for an input that is nowhere, and for one of `images` that is no input.
    """
    given = {hashlib.sha256(files.read(each)).hexdigest(): each for each in images}
    recorded = {sha256: name for _, name, sha256 in paths_of(recipe)}
    for digest, each in given.items():
        if digest not in recorded:
            names = " and ".join(f"{name} ({sha256})" for sha256, name in recorded.items()) or "none"
            raise InputError(f"{each} is no input of {picture}: its sha256 is {digest}", f"the inputs are {names}")

    def place(key: str, name: str, sha256: Any) -> str:
        if sha256 in given:
            return given[sha256]
        beside = str(Path(picture).parent / name)
        for each in (name, beside):
            if os.path.isfile(each) and not is_stream(each):  # noqa: PTH113  for any text
                return each
        what = "a pipe" if is_stream_name(name) else f"{name}, which is not here"
        hint = f"give the file with --image FILE; its sha256 is {sha256}"
        raise InputError(f"the {key} of {picture} was read from {what}", hint)

    return exchange(recipe, place)
