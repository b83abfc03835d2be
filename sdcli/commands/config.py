"""`sdcli config`: show the settings and where each of them comes from."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

import typer

from sdcli import config as user_config
from sdcli.commands import options
from sdcli.commands.plain_help import Commands
from sdcli.config import Setting
from sdcli.errors import ModelNotFound
from sdcli.models import located, registry
from sdcli.planning import resolve
from sdcli.recipe.recipe import keys
from sdcli.terminal import streams

config = Commands(help="Show the settings from the config file and SDCLI_ variables.")


@config.command()
def show(
    model: options.Model = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line: key, value, source.", show_default=False)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)
    ] = False,
) -> None:
    """Show every setting with its value and where the value comes from.

    sdcli config show -m sd15
    sdcli config show --json | jq -r 'select(.source != "built-in").key'
    """
    rows = [(key, each.value, each.place) for key, each in _settings(model).items()]
    if json:
        for key, value, place in rows:
            streams.say(streams.to_json({"key": key, "value": value, "source": place}))
        return
    shown = [(key, "-" if value is None else _text(value), place) for key, value, place in rows]
    key_width, value_width = (max(len(row[column]) for row in shown) for column in (0, 1))
    for key, value, place in shown:
        streams.say(f"{key:{key_width}}  {value:{value_width}}  {place}")


@config.command()
def path() -> None:
    """Print the path of the config file, whether it exists or not."""
    streams.say_path(str(user_config.config_path()))


def _settings(given: str | None) -> dict[str, Setting]:
    """The settings by key: those of any command, then those of recipes, in a recipe's order."""
    model = user_config.general("model", given, user_config.DEFAULT_MODEL)
    entry = registry.find(str(model.value))
    try:
        facts = located.locate(entry).facts
    except ModelNotFound:
        facts = None
    found = resolve.settings(entry, {}, facts)
    unknown = {"seed": Setting(None, "random for each picture")}
    unknown |= {side: Setting(None, "model (not on this machine)") for side in ("width", "height")}
    found = {**unknown, **found}
    others = {key: user_config.general(key, None) for key in user_config.GENERAL if key != "model"}
    return {"model": model, **others, **{key: found[key] for key in keys() if key in found and key != "prompt"}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json_format.dumps(value)
