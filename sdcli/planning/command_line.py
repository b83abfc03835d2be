"""Formats a recipe as the command line that makes its picture. Knows nothing of files; imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sdcli import config
from sdcli.models.located import LocatedModel
from sdcli.planning import resolve
from sdcli.recipe.parts import Initial
from sdcli.recipe.recipe import Recipe
from sdcli.terminal.printable import is_hidden

_SHORT = {"mask_image": "--mask", "model": "-m", "negative_prompt": "-N", "width": "-W", "height": "-H", "seed": "-s"}
_NO_OPTIONS = (
    *("model", "prompt", "label", "image", "image_sha256", "mask_sha256", "init_latents_sha256"),
    *("segmentation_map", "segmentation_sha256", "control_sha256", "image_prompt_sha256"),
    *("reference", "reference_sha256", "match_reference"),
)


def command_of(model: LocatedModel, recipes: Sequence[Recipe]) -> str:
    """Return `sdcli generate …`, quoted for a POSIX shell, with the options that are not the model's defaults.

    A recipe with an image gives `sdcli img2img …`, `inpaint` or `outpaint`, one with a map `synthesize`, and one with
    reference images `edit`.

    `recipes` are for `model`: one, or those of a batch with consecutive seeds; otherwise only the first is used.
    Control characters are written as `$'\\x1b'`, which bash, zsh and POSIX 2024 read.
    """
    first = recipes[0]
    in_order = all(each.seed == first.seed + place for place, each in enumerate(recipes))
    count = len(recipes) if in_order else 1
    recorded = first.replace(batch_size=count).to_dict()
    usual = _defaults(model, recorded["model"]) | {each.name: each.default for each in fields(Initial)}
    command = _command(first)
    if command != "generate" or first.layout.control:  # their default sizes come from the image
        del usual["width"], usual["height"]
    if first.references.match_reference:  # its size is that of the first image
        del recorded["width"], recorded["height"]
    if command == "img2img":  # its default depends on -W and -H
        recorded["resize"] = first.initial.resize
        del usual["resize"]
    if first.enlarging.enlarge is not None:  # which gives the size
        recorded = {key: value for key, value in recorded.items() if key not in ("width", "height", "resize")}
    needless = command != "synthesize" and recorded["model"] == config.DEFAULT_MODEL == config.model(None)
    options = [] if needless else [*_option("model", recorded["model"])]
    for key, value in recorded.items():
        if key not in _NO_OPTIONS and (key not in usual or usual[key] != value):
            options += _option(key, value)
    if count > 1:
        options += ["-n", str(count)]
    given = first.initial.image, first.layout.segmentation_map, *first.references.reference
    images = [each for each in given if each is not None]
    if "label" in recorded:
        return " ".join(map(quote, ["sdcli", command, *images, "--label", recorded["label"], *options]))
    prompt = recorded["prompt"]
    if prompt == "-":  # which means stdin
        return " ".join(["printf %s - | sdcli", *map(quote, [command, *images, "-", *options])])
    positional = [*images, prompt]
    dashed = any(each.startswith("-") for each in positional)
    words = [*options, "--", *positional] if dashed else [*positional, *options]
    return " ".join(["sdcli", command, *map(quote, words)])


def _command(of: Recipe) -> str:
    initial = of.initial
    if of.references.reference:
        return "edit"
    if initial.image is None:
        return "generate" if of.layout.segmentation_map is None else "synthesize"
    if any(initial.borders):
        return "outpaint"
    return "img2img" if initial.mask_image is None else "inpaint"


def _defaults(model: LocatedModel, name: str) -> dict[str, Any]:
    """Return the default values of a recipe for `model`, with and without the user's settings, and without a seed."""
    recorded = {"model": name}
    here, anywhere = (resolve.settings(model.entry, recorded, model.facts, user=user) for user in (True, False))
    return {
        key: each.value
        for key, each in here.items()
        if key in anywhere and anywhere[key].value == each.value and key != "seed"
    }


def _option(key: str, value: Any) -> list[str]:
    name = _SHORT.get(key, "--" + key.replace("_", "-"))
    if isinstance(value, list):
        return [word for each in value for word in (name, each)]
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-")]
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return [name, text]


def quote(word: str) -> str:
    """Quote `word` for a shell without control characters."""
    if all(letter == "\n" or not is_hidden(letter) for letter in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(letter: str) -> str:
    if letter in "'\\":
        return "\\" + letter
    if is_hidden(letter):
        return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
    return letter
