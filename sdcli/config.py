"""The user's settings: the config file, environment variables, and models of their own. Reads them, and never writes.

A value is taken from the first of these that has one:

1. the option on the command line, or the key of a job
2. the environment: `SDCLI_STEPS`, …
3. the user's defaults for this model: `[models.NAME.defaults]` in config.toml, `defaults` in their models.toml
4. what the shipped models.toml requires for this model (`needs`)
5. the user's defaults for all models: `[defaults]` in config.toml
6. what the shipped models.toml recommends for this model (`defaults`)
7. the model's own configs: its size
8. the built-in value

The user's general defaults take precedence over recommended values (5 before 6); otherwise `steps = 40` in `[defaults]`
would have no effect with any shipped model. Required values take precedence over general defaults (4 before 5): forty
steps at guidance 7.5 ruin the pictures of a distilled model. They can be overridden for that model, or for one picture.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.files import palette
from sdcli.files.toml_files import line_of, parse_toml
from sdcli.files.user_files import home_path, stamp, user_folder
from sdcli.recipe import parts, recipe
from sdcli.recipe.part import PARTS
from sdcli.recipe.recipe import keys as _keys
from sdcli.recipe.schedulers import TABLE
from sdcli.terminal.printable import shown
from sdcli.terminal.spelling import did_you_mean

PREFIX = "SDCLI_"
DEFAULT_MODEL = "kit"
MAX_BYTES = 2**20
GENERAL = ("model", "output", "lora_dir", "embedding_dir", "upscaler_dir", "ip_adapter_dir")
"""Keys of a command rather than of a model. A prompt has no default."""
OTHER_VARIABLES = ("SDCLI_API_KEY", "SDCLI_CONFIG", "SDCLI_SOCKET", "SDCLI_WAIT")
MODEL_FIELDS = ("description", "license", "folder", "repo", "variant", "family", "kind", "classes", "trigger", "file")
KINDS = ("model", "controlnet", "lora", "embedding", "vae", "upscaler", "ip-adapter")
_REPO = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}")
_PLACE = "{} must be text: the path of its folder or file"
_CHOICES = {"kind": KINDS, "classes": palette.SHIPPED}


@dataclass(frozen=True)
class Setting:
    """A value and its source: an option, a variable, `models.toml`, or a file and the keys in it."""

    value: Any
    source: str
    keys: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """`source`, with the line if it is a file of the user."""
        line = line_of(Path(self.source), self.keys) if self.keys else None
        return self.source if line is None else f"{self.source}:{line}"


@dataclass(frozen=True)
class UserModel:
    """The entry of one model in a file of the user: fields of the entry, and recipe keys."""

    file: Path
    keys: tuple[str, ...]
    fields: Mapping[str, str]
    parts: Mapping[str, str]
    """Absolute folders or files of replaced parts, by part."""
    defaults: Mapping[str, Setting]


@dataclass(frozen=True)
class Config:
    """The content of a config file; empty if there is no file."""

    defaults: Mapping[str, Setting] = field(default_factory=dict)
    models: Mapping[str, UserModel] = field(default_factory=dict)


@cache
def recipe_keys() -> tuple[str, ...]:
    """The recipe keys that can be set for a model, in order."""
    return tuple(key for key in _keys() if key not in ("model", "prompt", "label", *parts.WITHOUT_DEFAULTS))


def config_path() -> Path:
    """The path of the config file, which need not exist: `SDCLI_CONFIG` (set by `--config`), or in XDG_CONFIG_HOME."""
    asked = os.environ.get("SDCLI_CONFIG")
    return home_path(asked) if asked else _in_user_folder("config.toml", *_places())


def models_path() -> Path:
    """The file that `sdcli models add` writes."""
    return _in_user_folder("models.toml", *_places())


def _places() -> tuple[str | None, ...]:
    return os.environ.get("XDG_CONFIG_HOME"), os.environ.get("HOME")


@lru_cache(maxsize=8)  # each job of a batch asks
def _in_user_folder(name: str, *places: str | None) -> Path:
    """Return the path of a file in the folder that `places`, the variables, give."""
    return user_folder("XDG_CONFIG_HOME", ".config") / name


def read() -> Config:
    """Read the config file. Raises UsageError if it is invalid, or was given explicitly and is missing."""
    path = config_path()
    if os.environ.get("SDCLI_CONFIG") and not path.exists():
        raise UsageError(f"the config file {path} does not exist", "check --config and SDCLI_CONFIG")
    return _read(path, stamp(path), _parse_config)


def read_models() -> Mapping[str, UserModel]:
    """Read the models that `sdcli models add` wrote. Raises UsageError if the file is invalid."""
    path = models_path()
    return _read(path, stamp(path), _parse_models).models


def environment() -> dict[str, Setting]:
    """Read the `SDCLI_…` variables; empty ones are ignored. Raises UsageError for an invalid value."""
    found: dict[str, Setting] = {}
    if PREFIX.encode() not in b"\0".join(os.environb):  # which is usual, and asked for each job of a batch
        return found
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
    """Yield each unknown variable that resembles a known one, with the known one."""
    known = [*OTHER_VARIABLES, *(PREFIX + key.upper() for key in (*GENERAL, *recipe_keys()))]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in (*known, *without_effect()):
            yield from ((name, near) for near in difflib.get_close_matches(name, known, n=1, cutoff=0.85))


def without_effect() -> Iterator[str]:
    """Yield each variable that is named after a key of a single picture, which cannot have a default."""
    settable = recipe_keys()
    for key in _keys():
        if key not in settable and key not in GENERAL and os.environ.get(PREFIX + key.upper()):
            yield PREFIX + key.upper()


def general(key: str, given: str | None, otherwise: str | None = None) -> Setting:
    """Return one of GENERAL: the given value, or that of the environment, of the config file, or `otherwise`."""
    if given is not None:
        return Setting(given, "option")
    variable = PREFIX + key.upper()
    text = os.environ.get(variable)
    return Setting(text, variable) if text else read().defaults.get(key, Setting(otherwise, "built-in"))


def model(given: str | None) -> str:
    """Return the model to use if `-m` is `given`."""
    return str(general("model", given, DEFAULT_MODEL).value)


def output(given: str | None) -> str | None:
    """Return the output path if `-o` is `given`; None means generated names."""
    value = general("output", given).value
    return None if value is None else str(value)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int] | None, parse: Callable[[Path, Mapping[str, Any]], Config]) -> Config:
    """Read and parse a file; `stamp` changes when the file does."""
    if stamp is None:
        return Config()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes", "check that it is a config file")
        tables = parse_toml(data.decode())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error
    except RecursionError as error:
        raise UsageError(
            f"{path} is nested too deeply", "a table has keys with values, not tables in tables"
        ) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} is not TOML: {error}", 'a line is key = value, with text in "quotes"') from error
    return parse(path, tables)


def _parse_config(path: Path, tables: Mapping[str, Any]) -> Config:
    for name, table in tables.items():
        if name in recipe_keys() or name in GENERAL:
            raise _wrong(path, (name,), f"{name} is not in a table", "move it below a line [defaults]")
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
            raise _wrong(path, here, f"{key} is a recipe key", f"move it below a line [{'.'.join(keys)}.defaults]")
        _check_known(path, here, (*MODEL_FIELDS, "parts", "defaults"), "key")
        if key == "defaults":
            _check_table(path, here, value)
        elif key == "parts":
            parts = _parts(path, here, value)
        elif not _is_text(value):
            raise _wrong(path, here, f"{key} is {shown(value)}", f"{key} must be text")
        elif key == "repo" and not _REPO.fullmatch(value):
            raise _wrong(path, here, f"{key} is {shown(value)}", "a repository on the hub is OWNER/NAME")
        elif value not in _CHOICES.get(key, (value,)):
            raise _wrong(path, here, f"{key} is {shown(value)}", f"{key} is one of {', '.join(_CHOICES[key])}")
        else:
            fields[key] = value
    if "folder" in fields and "repo" in fields:
        raise _wrong(path, (*keys, "repo"), f"{keys[-1]} has a folder and a repo", "remove one of the two")
    if "folder" in fields:
        fields["folder"] = _absolute(path, fields["folder"])
    defaults = _settings(path, (*keys, "defaults"), table.get("defaults", {}), recipe_keys())
    return UserModel(path, keys, fields, parts, defaults)


def _parts(path: Path, keys: tuple[str, ...], table: Any) -> dict[str, str]:
    _check_table(path, keys, table)
    for part, folder in table.items():
        here = (*keys, part)
        _check_known(path, here, PARTS, "part")
        if not _is_text(folder):
            raise _wrong(path, here, f"{part} is {shown(folder)}", _PLACE.format(part))
    return {part: _absolute(path, folder) for part, folder in table.items()}


def _is_text(value: Any) -> bool:
    return type(value) is str and value != "" and "\0" not in value  # no path has NUL


def _absolute(path: Path, folder: str) -> str:
    """Return a folder, which is relative to `path`, as an absolute path."""
    return str(path.absolute().parent / home_path(folder))


def _settings(
    path: Path, keys: tuple[str, ...], table: Mapping[str, Any], known: Iterable[str]
) -> Mapping[str, Setting]:
    found = {}
    for key, value in table.items():
        here = (*keys, key)
        if key in ("prompt", "label"):
            raise _wrong(path, here, f"{key} cannot have a default", "give it on the command line")
        _check_known(path, here, tuple(known), "key")
        try:
            if key in GENERAL and not _is_text(value):
                raise InvalidRecipe(f"{key} is {shown(value)}", f"{key} must be text", key)
            found[key] = Setting(value if key in GENERAL else recipe.check_value(key, value), str(path), here)
        except InvalidRecipe as error:
            raise _wrong(path, here, error.message, error.hint) from error
    return found


def _check_known(path: Path, keys: tuple[str, ...], known: tuple[str, ...], what: str) -> None:
    if keys[-1] not in known:
        hint = did_you_mean(keys[-1], known, f"the {what}s here are {', '.join(known)}")
        raise _wrong(path, keys, f"unknown {what} {shown('.'.join(keys))}", hint)


def _check_table(path: Path, keys: tuple[str, ...], table: Any) -> None:
    if not isinstance(table, dict):
        name = ".".join(keys)
        raise _wrong(path, keys, f"{name} is {shown(table)}", f"it must be a table: a line [{name}]")


def _wrong(path: Path, keys: tuple[str, ...], message: str, hint: str) -> UsageError:
    line = line_of(path, keys)
    return UsageError(f"{path}: {message}" if line is None else f"{path}, line {line}: {message}", hint)


def settle(layers: list[Mapping[str, Setting]]) -> dict[str, Setting]:
    """Merge layers of settings, from the lowest precedence to the highest.

    The lowest layer has every key except the sizes. Sigmas and eta belong to the scheduler they were set for: if a
    higher layer sets a scheduler that does not support them, they get the lowest layer's value.
    """
    settled: dict[str, Setting] = {}
    rank: dict[str, int] = {}
    for height, layer in enumerate(layers):
        settled |= layer
        rank |= dict.fromkeys(layer, height)
    name = settled["scheduler"].value
    row = TABLE.get(name) if isinstance(name, str) else None
    takes = {} if row is None else {"sigmas": len(row.sigmas) > 1, "eta": row.takes_eta}
    for key, taken in takes.items():
        if not taken and rank[key] < rank["scheduler"]:
            settled[key] = layers[0][key]
    return settled


def at(settings: Mapping[str, Any], source: str) -> dict[str, Setting]:
    """Return plain values as settings with one source."""
    return {key: Setting(value, source) for key, value in settings.items()}
