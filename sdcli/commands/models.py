"""`sdcli models`: list, show, download, verify, name, export and remove models."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sdcli.commands import completion, model_facts
from sdcli.commands.model_options import Debug, Json, Name
from sdcli.commands.models_files import convert, export, quantize
from sdcli.commands.models_hub import pull, remove, verify
from sdcli.commands.plain_help import Commands
from sdcli.errors import UsageError
from sdcli.models import registry, user_models
from sdcli.models.registry import ModelEntry
from sdcli.recipe.part import PARTS
from sdcli.terminal import columns, display, streams


def list_models(json: Json = False) -> None:
    """List the known models.

    The columns are the name, whether its files are on this machine, their size, the kind, who named it (sdcli or you),
    and a description. A ControlNet is used together with a model: sdcli generate --control NAME=IMAGE.
    """
    entries = registry.entries().values()
    rows = [("NAME", "STATE", "SIZE", "KIND", "FROM", "DESCRIPTION")]
    for entry in entries:
        size = _size(entry) if registry.is_present(entry) else None
        if json:
            line = {
                "name": entry.name,
                "present": size is not None,
                "origin": entry.origin,
                "kind": entry.kind,
                "description": entry.description,
                "bytes": size,
            }
            streams.say(streams.to_json(line))
            continue
        state, whose = "absent" if size is None else "here", "sdcli" if entry.origin == registry.SHIPPED else "you"
        what = entry.description or entry.repo or entry.folder or ""
        rows.append((entry.name, state, "-" if size is None else display.format_size(size), entry.kind, whose, what))
    if not json:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for row in columns.lines(rows, width):
            streams.say(row)


def _size(entry: ModelEntry) -> int:
    """The bytes of a model's files."""
    path = registry.locate(entry).path
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def show(name: Name, json: Json = False) -> None:
    """Show a model's path, its inputs and its defaults.

    Reads the model's configs, and no weights.
    """
    facts = model_facts.describe(registry.find(name))
    if json:
        streams.say(streams.to_json(facts))
        return
    vocabulary = facts.pop("vocabulary", None)
    facts |= model_facts.part_lines(facts.pop("components", {}))
    width = max(map(len, facts))
    for key, value in facts.items():
        streams.say(f"{key:{width}}  {_shown(value)}")
    if vocabulary is not None:
        _show_groups(vocabulary["groups"])


def _show_groups(groups: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """What a model knows, a paragraph a group: phrases, and their synonyms in brackets."""
    width = max(20, shutil.get_terminal_size().columns - 2)
    for name, phrases in groups.items():
        content = (f"{phrase} ({', '.join(others)})" if others else phrase for phrase, others in phrases.items())
        lines = textwrap.wrap(", ".join(content), width=width, break_on_hyphens=False)
        for line in ("", name, *(f"  {line}" for line in lines)):
            streams.say(line)


def labels(name: Name, json: Json = False, debug: Debug = False) -> None:
    """List the classes of a class-conditional model.

    Each line has a class's number and its names, as --label takes them.

        sdcli models labels ldm-imagenet | grep fox
    """
    entry = registry.find(name)
    known = registry.labels_of(entry)
    if known is None:
        raise UsageError(f"{entry.name} takes a text, not a class label", "use a PROMPT")
    for index, names in enumerate(known.names):
        line = streams.to_json({"index": index, "names": names})
        streams.say(line if json else f"{index:<{len(str(len(known.names)))}}  {', '.join(names)}")


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name: letters, digits, '.', '_' and '-'.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|OWNER/NAME",
            help="A diffusers folder, a .safetensors or .gguf file, or a repository on the hub.",
        ),
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART=PATH",
            autocompletion=completion.part,
            help=f"Load this part from another folder or file: {', '.join(PARTS)}. Can be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a name that you added before.", show_default=False)
    ] = False,
    debug: Debug = False,
) -> None:
    """Add a name for a model of your own, or for a ControlNet, LoRA or embedding.

    The name is written to sdcli/models.toml in XDG_CONFIG_HOME, and the path of that file is printed. You can edit the
    file: an entry can also have a description, license, variant, family, and tables of parts and defaults.

        sdcli models add ink ~/models/ink.safetensors
        sdcli models add soft ~/models/ink.safetensors --part vae=~/models/vae-ft-mse.safetensors
    """
    streams.say_path(str(user_models.add(name, source, part or (), force=force)))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


models = Commands(help="List, show, download, verify, name, export and remove models.")
for _name, _command in (
    ("list", list_models),
    ("show", show),
    ("labels", labels),
    ("pull", pull),
    ("verify", verify),
    ("add", add),
    ("export", export),
    ("quantize", quantize),
    ("convert", convert),
    ("rm", remove),
):
    models.command(_name)(_command)
