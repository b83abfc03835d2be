"""From the options of a command to pictures on disk; used by every command that makes pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sdcli import config
from sdcli.commands import options
from sdcli.errors import InputError, UsageError
from sdcli.making import deliver
from sdcli.making.request import Request
from sdcli.models import located
from sdcli.planning import resolve, warnings
from sdcli.planning.resolve import Resolved
from sdcli.recipe.paths import paths_of
from sdcli.recipe.recipe import Layout
from sdcli.terminal import streams


def make(asked: Mapping[str, Any], output: options.Output) -> None:
    """Make the pictures of `asked` (the given flat keys), or print the plan with `--dry-run`.

    Picture i has the first one's seed + i. A `prompt` of `-` is read from stdin. Unless quiet, notes on stderr name
    images that are resized. Raises UsageError without a prompt or a label, and what `resolve.resolve` and
    `deliver.deliver` raise.
    """
    if not {"prompt", "label"} & asked.keys():
        hint = "give a PROMPT, or --label for a class-conditional model; see --help"
        raise UsageError("PROMPT or --label is missing", hint)
    _check_stdin(asked)
    model = config.model(asked.get("model"))
    found = located.find(model)
    resolved = resolve.resolve(found, {**asked, "model": model, **_prompt(asked.get("prompt"))})
    recipe = resolved.recipe
    if not output.quiet:
        _note_sizes(resolved)
    request = Request(
        model=found,
        weights=resolved.weights,
        inputs=resolved.inputs,
        recipes=tuple(recipe.replace(seed=recipe.seed + index) for index in range(output.num_images)),
        output=config.output(output.path),
        force=output.force,
        json=output.json,
        quiet=output.quiet,
        strict=output.strict,
        save_latents=output.save_latents,
        warnings=warnings.find(found, recipe, resolved.inputs, count=output.num_images),
    )
    if output.dry_run:
        deliver.forecast(request)
    else:
        deliver.deliver(request)


def _note_sizes(resolved: Resolved) -> None:
    recipe, inputs = resolved.recipe, resolved.inputs
    size = recipe.width, recipe.height
    if inputs.image is not None:
        from sdcli.files import canvas
        from sdcli.planning import layouts

        left, top, right, bottom = canvas.box(inputs.image, recipe.initial.padding)
        own = right - left, bottom - top
        if inputs.image.resize:
            for note in layouts.size_notes(str(recipe.initial.image), own, size):
                streams.note(note)
        elif own != size:
            streams.note(f"working size {recipe.width}×{recipe.height}, result {own[0]}×{own[1]}")
    elif recipe.layout != Layout():
        from sdcli.planning import layouts

        for note in layouts.notes(recipe.layout, inputs, size):
            streams.note(note)


def _check_stdin(asked: Mapping[str, Any]) -> None:
    """Raise UsageError if stdin is both the prompt and a file."""
    for key, path, _ in paths_of(asked):
        if asked.get("prompt") == "-" and path in ("-", "/dev/stdin"):
            raise UsageError(f"the prompt and {key} both read stdin", "give one of them as an argument or a file")


def _prompt(prompt: str | None) -> dict[str, str]:
    if prompt != "-":
        return {} if prompt is None else {"prompt": prompt}
    try:
        return {"prompt": sys.stdin.buffer.read().decode("utf-8").rstrip("\n")}
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not UTF-8: {error}", "encode it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"stdin cannot be read: {error.strerror}", "give the prompt as an argument, or pipe it to stdin"
        ) from error
