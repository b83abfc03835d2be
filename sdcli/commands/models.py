"""`sdcli models`: which models there are, and what is known of one."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sdcli import registry

Json = Annotated[bool, typer.Option("--json", help="JSON, one object a line, instead.", show_default=False)]

models = typer.Typer(help="The models sdcli knows by name.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or a path.",
        autocompletion=lambda incomplete: [name for name in registry.entries() if name.startswith(incomplete)],
    ),
]


@models.command("list")
def list_models(json: Json = False) -> None:
    """One line a model: its name, whether it is on this machine, and what it is."""
    entries = registry.entries().values()
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        present = registry.is_present(entry)
        if json:
            typer.echo(jsonlib.dumps({"name": entry.name, "present": present, "description": entry.description}))
        else:
            typer.echo(f"{entry.name:{width}}  {'here' if present else 'absent':6}  {entry.description}")


@models.command("show")
def show(name: Name, json: Json = False) -> None:
    """What is known of a model: where it is, what it takes, and its defaults. Reads configs, not weights."""
    facts = describe(registry.find(name))
    if json:
        typer.echo(jsonlib.dumps(facts, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:{width}}  {_shown(value)}")


def describe(entry: registry.ModelEntry) -> dict[str, Any]:
    """The entry and, where the model is on this machine, what its configs say."""
    described: dict[str, Any] = {
        "name": entry.name,
        "description": entry.description,
        "license": entry.license,
        "source": entry.repo or entry.folder,
        "present": registry.is_present(entry),
    }
    if described["present"]:
        path = registry.locate(entry)
        facts = registry.read_facts(path, entry.family)
        described |= {
            "path": str(path),
            "native_size": facts.native_size,
            "size_multiple": facts.size_multiple,
            "in_channels": facts.in_channels,
            "prediction_type": facts.scheduler_config.get("prediction_type", "epsilon"),
        }
    return described | {"defaults": {**registry.DEFAULTS, **entry.defaults}}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
