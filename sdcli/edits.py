"""What the commands that start from an image share: from their options to pictures delivered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sdcli import config, delivery, options, registry, remarks, streams
from sdcli.errors import InputError
from sdcli.recipe import Recipe


def deliver(
    asked: Mapping[str, Any],
    *,
    num_images: int,
    output: str | None,
    force: bool,
    json: bool,
    quiet: bool,
    strict: bool,
    dry_run: bool,
) -> None:
    """Make, or with `dry_run` forecast, the pictures of `asked`: flat keys, None where an option was not given.

    `image` and `model` are among them. Says on stderr, unless `quiet`, where the image is worked on at another size
    than its own. Raises what `registry.resolve_recipe` and `delivery.deliver` raise.
    """
    model = config.model(asked["model"])
    entry = registry.find(model)
    said = options.given({**asked, "model": model, "prompt": _prompt(asked["prompt"])})
    recipe = registry.resolve_recipe(entry, said)
    if not quiet:
        _say_size(recipe)
    order = delivery.Order(
        entry=entry,
        recipes=tuple(recipe.replace(seed=recipe.seed + index) for index in range(num_images)),
        output=config.output(output),
        force=force,
        json=json,
        quiet=quiet,
        strict=strict,
        remarks=remarks.of(entry, registry.facts_of(entry), recipe, count=num_images),
    )
    if dry_run:
        delivery.forecast(order)
    else:
        delivery.deliver(order)


def _say_size(recipe: Recipe) -> None:
    from sdcli import inputs

    left, top, right, bottom = inputs.box(inputs.read(recipe.initial), recipe.initial.padding)
    own = right - left, bottom - top
    if own != (recipe.width, recipe.height):
        streams.note(f"worked on at {recipe.width}×{recipe.height}, and put back at {own[0]}×{own[1]}")


def _prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not text: {error}", "give it as UTF-8") from error
