"""From the options of a command to pictures on disk; used by every command that makes pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from sdcli import config
from sdcli.commands import options
from sdcli.errors import InputError, SdcliError, UsageError
from sdcli.making import deliver
from sdcli.making.request import Request
from sdcli.models import located
from sdcli.planning import resolve, warnings
from sdcli.planning.resolve import Resolved
from sdcli.recipe import other_tools
from sdcli.recipe.parts import Layout
from sdcli.recipe.paths import paths_of
from sdcli.recipe.recipe import draw_seed
from sdcli.terminal import streams

MAX_PROMPT_BYTES = 2**20


def make(asked: Mapping[str, Any], output: options.Output) -> None:
    """Do what `_make` does; with --json, a failure is a line on stdout, as in a batch."""
    try:
        _make(asked, output)
    except SdcliError as error:
        if output.json and not error.reported and output.path != "-":
            line = {**deliver.failed_line(None, error.message), "warnings": None}  # which are not known yet
            streams.say(streams.to_json(deliver.with_recipe(line, None, output.json)))
        raise


def _make(asked: Mapping[str, Any], output: options.Output) -> None:
    """Make the pictures of `asked` (the given flat keys), or print the plan with `--dry-run`.

    Picture i has the first one's seed + i. A `prompt` of `-` is read from stdin. Unless quiet, notes on stderr name
    images that are resized. Raises UsageError without a prompt or a label, and what `resolve.resolve` and
    `deliver.deliver` raise.
    """
    given = asked
    asked = _in_own_terms(asked, output)
    if not {"prompt", "label"} & asked.keys():
        hint = "give a PROMPT, or --label for a class-conditional model; see --help"
        raise UsageError("PROMPT or --label is missing", hint)
    check_stdin(asked)
    model = config.model(asked.get("model"))
    found = located.find(model, asked)
    resolved = resolve.resolve(found, {**asked, "model": model, **prompt_of(asked.get("prompt"))})
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
    if output.path and not output.quiet:
        _note_name(output.path)
    if output.dry_run:
        drawn = given.get("seed") == other_tools.RANDOM_SEED
        known = resolve.settings(found.entry, {"model": model, **given}, None)
        deliver.forecast(request, any_seed=drawn or "seed" not in known)
    else:
        deliver.deliver(request)


def _note_name(path: str) -> None:
    """Say that a name without a suffix is a file's, since a directory may have been meant."""
    if path != "-" and not PurePath(path).suffix and not path.endswith("/") and not Path(path).is_dir():
        streams.note(f"-o {path} is the name of a file; for a directory, use -o {path}/")


def _in_own_terms(asked: Mapping[str, Any], output: options.Output) -> Mapping[str, Any]:
    """`asked` with the options that other tools have: --prompt, --size, and a seed of -1. Raises UsageError."""
    found = dict(asked)
    if output.prompt_option is not None:
        if "prompt" in found:
            raise UsageError("the prompt is given twice", "give it as PROMPT or with --prompt")
        found["prompt"] = output.prompt_option
    if output.size is not None:
        if {"width", "height"} & found.keys():
            raise UsageError("the size is given twice", "give --size, or --width and --height")
        found |= other_tools.size_of(output.size)
    if found.get("seed") == other_tools.RANDOM_SEED:
        found["seed"] = draw_seed()
    _check_order(found)
    return found


def _check_order(asked: Mapping[str, Any]) -> None:
    """Raise UsageError if IMAGE and PROMPT are swapped."""
    image, prompt = asked.get("image"), asked.get("prompt")
    if isinstance(image, str) and isinstance(prompt, str) and not _is_file(image) and _is_file(prompt):
        raise UsageError(f"{prompt} is a file, and {image!r} is not", "give IMAGE first, then PROMPT")


def _is_file(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _note_sizes(resolved: Resolved) -> None:
    recipe, inputs = resolved.recipe, resolved.inputs
    size = recipe.width, recipe.height
    if recipe.enlarging.enlarge is not None:
        return
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
    elif recipe.references.match_reference and inputs.references[0].picture.size != size:
        width, height = inputs.references[0].picture.size
        streams.note(f"working size {recipe.width}×{recipe.height}, result {width}×{height}")
    elif recipe.layout != Layout():
        from sdcli.planning import layouts

        for note in layouts.notes(recipe.layout, inputs, size):
            streams.note(note)


def check_stdin(asked: Mapping[str, Any]) -> None:
    """Raise UsageError if stdin is both the prompt and a file."""
    for key, path, _ in paths_of(asked):
        if asked.get("prompt") == "-" and path in ("-", "/dev/stdin"):
            raise UsageError(f"the prompt and {key} both read stdin", "give one of them as an argument or a file")


def prompt_of(prompt: str | None) -> dict[str, str]:
    """Return the key of a prompt; `-` is read from stdin. Raises InputError."""
    if prompt != "-":
        return {} if prompt is None else {"prompt": prompt}
    try:
        text = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not UTF-8: {error}", "encode it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"stdin cannot be read: {error.strerror}", "give the prompt as an argument, or pipe it to stdin"
        ) from error
    if not text.strip():
        raise InputError("stdin is empty; it is read as the prompt", "pipe a prompt to it, or give one as an argument")
    return {"prompt": text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")}
