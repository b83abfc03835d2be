"""What a user sets once: a config file, environment variables, and models of their own. Reads, and never writes.

A value is looked for in this order, and the first place that has it wins:

1. the option on the command line, or the key of a job
2. the environment: `SDCLI_STEPS`, …
3. what the user says of this model: `[models.NAME.defaults]` in config.toml, `defaults` in their models.toml
4. what the shipped models.toml says that this model cannot do without (`needs`)
5. what the user says of all models: `[defaults]` in config.toml
6. what the shipped models.toml finds good for this model (`defaults`)
7. the model's own configs: its size
8. the built-in value

The user's word comes before sdcli's taste (5 before 6), else `steps = 40` in `[defaults]` would do nothing for any
shipped model. It does not come before a model's nature (4 before 5): forty steps at guidance 7.5 spoil the pictures
of a distilled model, and whoever wants them says so of that model, or for that one picture.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.files import palette
from sdcli.files.user_files import user_folder
from sdcli.recipe import recipe
from sdcli.recipe.recipe import keys as _keys
from sdcli.recipe.schedulers import TABLE

PREFIX = "SDCLI_"
DEFAULT_MODEL = "kit"
GENERAL = ("model", "output")
"""Keys that hold for a command, not for one of its models. A prompt has no default: it is what each command is told."""
OTHER_VARIABLES = ("SDCLI_CONFIG", "SDCLI_SOCKET")
MODEL_FIELDS = ("description", "license", "folder", "repo", "variant", "family", "kind", "classes")
KINDS = ("model", "controlnet")
PARTS = (
    *("class_embedder", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer"),
    *("unet", "vae"),
)
"""The parts of a model that may come from elsewhere, as diffusers' folders call them."""
_CHOICES = {"kind": KINDS, "classes": palette.SHIPPED}


@dataclass(frozen=True)
class Setting:
    """A value and where it comes from: an option, a variable, `models.toml`, or a file and the keys that lead to it."""

    value: Any
    source: str
    keys: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """`source`, with the line where it is a file of the user's."""
        return f"{self.source}:{_line(Path(self.source), self.keys)}" if self.keys else self.source


@dataclass(frozen=True)
class UserModel:
    """What one file of the user's says of one model: fields of its entry, and recipe keys."""

    file: Path
    keys: tuple[str, ...]
    fields: Mapping[str, str]
    parts: Mapping[str, str]
    """Folders of parts from elsewhere, absolute, by the part."""
    defaults: Mapping[str, Setting]


@dataclass(frozen=True)
class Config:
    """What a config file says. Without a file it says nothing."""

    defaults: Mapping[str, Setting] = field(default_factory=dict)
    models: Mapping[str, UserModel] = field(default_factory=dict)


@cache
def recipe_keys() -> tuple[str, ...]:
    """The recipe keys that can be set for a model, in order."""
    return tuple(key for key in _keys() if key not in ("model", "prompt", "label", *recipe.INPUT_KEYS))


def config_path() -> Path:
    """The config file, which need not exist: `SDCLI_CONFIG`, which `--config` sets, or that in XDG_CONFIG_HOME."""
    asked = os.environ.get("SDCLI_CONFIG")
    return Path(asked).expanduser() if asked else user_folder("XDG_CONFIG_HOME", ".config") / "config.toml"


def models_path() -> Path:
    """The file that `sdcli models add` writes."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "models.toml"


def read() -> Config:
    """The config file as it is now. Raises UsageError for one that was asked for and is missing, or that is wrong."""
    path = config_path()
    if os.environ.get("SDCLI_CONFIG") and not path.exists():
        raise UsageError(f"the config file {path} does not exist", "check --config and SDCLI_CONFIG")
    return _read(path, _stamp(path), _parse_config)


def read_models() -> Mapping[str, UserModel]:
    """The models that `sdcli models add` wrote. Raises UsageError for a file that is wrong."""
    path = models_path()
    return _read(path, _stamp(path), _parse_models).models


def environment() -> dict[str, Setting]:
    """What `SDCLI_…` variables say; one that is empty says nothing. Raises UsageError for a value that cannot be."""
    found = {}
    for key in (*GENERAL, *recipe_keys()):
        variable = PREFIX + key.upper()
        text = os.environ.get(variable)
        if text:
            try:
                found[key] = Setting(text if key in GENERAL else recipe.parse_value(key, text), variable)
            except InvalidRecipe as error:
                raise UsageError(f"{variable} is {text!r}", error.hint) from error
    return found


def misspelt() -> Iterator[tuple[str, str]]:
    """Variables that nobody reads, each with the one that its name comes close to."""
    known = [*OTHER_VARIABLES, *(PREFIX + key.upper() for key in (*GENERAL, *recipe_keys()))]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            yield from ((name, near) for near in difflib.get_close_matches(name, known, n=1, cutoff=0.85))


def general(key: str, given: str | None, otherwise: str | None = None) -> Setting:
    """The value of one of GENERAL: what was given, else the environment's, the config file's, or `otherwise`."""
    if given is not None:
        return Setting(given, "option")
    said = {**read().defaults, **environment()}
    return said.get(key, Setting(otherwise, "built-in"))


def model(given: str | None) -> str:
    """The model to use where `-m` says `given`."""
    return str(general("model", given, DEFAULT_MODEL).value)


def output(given: str | None) -> str | None:
    """Where pictures go where `-o` says `given`; None for the names that sdcli makes."""
    value = general("output", given).value
    return None if value is None else str(value)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int] | None, parse: Callable[[Path, Mapping[str, Any]], Config]) -> Config:
    """The file, read anew only when `stamp` says that it has changed."""
    if stamp is None:
        return Config()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise UsageError(f"{path} is not TOML: {error}", 'a line is key = value, with text in "quotes"') from error
    return parse(path, tables)


def _parse_config(path: Path, tables: Mapping[str, Any]) -> Config:
    for name, table in tables.items():
        if name in recipe_keys() or name in GENERAL:
            raise _wrong(path, (name,), f"{name} stands in no table", "put it below a line [defaults]")
        _check_known(path, (name,), ("defaults", "models"), "table")
        _check_table(path, (name,), table)
    return Config(
        defaults=_settings(path, ("defaults",), tables.get("defaults", {}), (*GENERAL, *recipe_keys())),
        models={name: _user_model(path, ("models", name), each) for name, each in tables.get("models", {}).items()},
    )


def _parse_models(path: Path, tables: Mapping[str, Any]) -> Config:
    return Config(models={name: _user_model(path, (name,), table) for name, table in tables.items()})


def _user_model(path: Path, keys: tuple[str, ...], table: Any) -> UserModel:
    _check_table(path, keys, table)
    fields, parts = {}, {}
    for key, value in table.items():
        here = (*keys, key)
        if key in recipe_keys():
            raise _wrong(path, here, f"{key} is a recipe key", f"put it below a line [{'.'.join(keys)}.defaults]")
        _check_known(path, here, (*MODEL_FIELDS, "parts", "defaults"), "key")
        if key == "defaults":
            _check_table(path, here, value)
        elif key == "parts":
            parts = _parts(path, here, value)
        elif type(value) is not str or not value:
            raise _wrong(path, here, f"{key} is {value!r}", f"{key} must be text")
        elif value not in _CHOICES.get(key, (value,)):
            raise _wrong(path, here, f"{key} is {value!r}", f"{key} is one of {', '.join(_CHOICES[key])}")
        else:
            fields[key] = value
    if "folder" in fields and "repo" in fields:
        raise _wrong(path, (*keys, "repo"), f"{keys[-1]} has a folder and a repo", "leave one of the two away")
    if "folder" in fields:
        fields["folder"] = _beside(path, fields["folder"])
    defaults = _settings(path, (*keys, "defaults"), table.get("defaults", {}), recipe_keys())
    return UserModel(path, keys, fields, parts, defaults)


def _parts(path: Path, keys: tuple[str, ...], table: Any) -> dict[str, str]:
    _check_table(path, keys, table)
    for part, folder in table.items():
        here = (*keys, part)
        _check_known(path, here, PARTS, "part")
        if type(folder) is not str or not folder:
            raise _wrong(path, here, f"{part} is {folder!r}", f"{part} must be text: the folder that it comes from")
    return {part: _beside(path, folder) for part, folder in table.items()}


def _beside(path: Path, folder: str) -> str:
    """A folder, relative to the file that says so, as an absolute path."""
    return str(path.absolute().parent / Path(folder).expanduser())


def _settings(
    path: Path, keys: tuple[str, ...], table: Mapping[str, Any], known: Iterable[str]
) -> Mapping[str, Setting]:
    found = {}
    for key, value in table.items():
        here = (*keys, key)
        if key in ("prompt", "label"):
            raise _wrong(path, here, f"{key} has no default", "give it to each command")
        _check_known(path, here, tuple(known), "key")
        try:
            if key in GENERAL and (type(value) is not str or not value):
                raise InvalidRecipe(f"{key} is {value!r}", f"{key} must be text", key)
            found[key] = Setting(value if key in GENERAL else recipe.check_value(key, value), str(path), here)
        except InvalidRecipe as error:
            raise _wrong(path, here, error.message, error.hint) from error
    return found


def _check_known(path: Path, keys: tuple[str, ...], known: tuple[str, ...], what: str) -> None:
    if keys[-1] not in known:
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the {what}s here are {', '.join(known)}"
        raise _wrong(path, keys, f"unknown {what} {'.'.join(keys)!r}", hint)


def _check_table(path: Path, keys: tuple[str, ...], table: Any) -> None:
    if not isinstance(table, dict):
        raise _wrong(path, keys, f"{'.'.join(keys)} is {table!r}", f"it must be a table: a line [{'.'.join(keys)}]")


def _wrong(path: Path, keys: tuple[str, ...], message: str, hint: str) -> UsageError:
    return UsageError(f"{path}, line {_line(path, keys)}: {message}", hint)


def _line(path: Path, keys: tuple[str, ...]) -> int:
    """The line of a file where `keys` first lead somewhere: that of the statement which makes its beginning say so."""
    lines, start = path.read_text(encoding="utf-8").split("\n"), 1
    for end in range(1, len(lines) + 1):
        try:
            tables = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:  # within a statement of several lines
            continue
        if _leads(tables, keys):
            return start
        start = end + 1
    return len(lines)


def _leads(tables: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(tables, dict) or key not in tables:
            return False
        tables = tables[key]
    return True


def settle(layers: list[Mapping[str, Setting]]) -> dict[str, Setting]:
    """One setting a key from layers in rising order, of which the lowest has them all but the sizes.

    Sigmas and eta go with the scheduler that they were said for: where a higher layer names one that does not take
    them, they fall back to the lowest layer's value instead of being an error about something nobody asked for.
    """
    settled: dict[str, Setting] = {}
    rank: dict[str, int] = {}
    for height, layer in enumerate(layers):
        settled |= layer
        rank |= dict.fromkeys(layer, height)
    name = settled["scheduler"].value
    row = TABLE.get(name) if isinstance(name, str) else None
    takes = {} if row is None else {"sigmas": row.has_sigmas, "eta": row.takes_eta}
    for key, taken in takes.items():
        if not taken and rank[key] < rank["scheduler"]:
            settled[key] = layers[0][key]
    return settled


def at(settings: Mapping[str, Any], source: str) -> dict[str, Setting]:
    """Plain values as settings of one source."""
    return {key: Setting(value, source) for key, value in settings.items()}
