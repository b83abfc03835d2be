"""The models a user names: writes the file that `sdcli models add` and `rm` keep, comments and all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sdcli import config, families, registry
from sdcli.errors import ModelNotFound, UsageError
from sdcli.files import rewrite

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def add(name: str, source: str, *, force: bool = False) -> Path:
    """Name a diffusers folder, a `.safetensors` file or an `OWNER/NAME` repository; returns the file it is written to.

    Raises UsageError for a name that cannot be given, ModelError for a path that holds no model, OutputError.
    """
    _check_name(name, force)
    table = _table(source)

    def change(text: str) -> str:
        document = _parse(text)
        document[name] = {**_kept(document.get(name, {})), **table}
        return _dump(document)

    rewrite(config.models_path(), change)
    return config.models_path()


def remove(name: str) -> None:
    """Take a name out of the file. Raises UsageError where it is not in it, OutputError."""

    def change(text: str) -> str:
        document = _parse(text)
        if name not in document:
            raise UsageError(f"{config.models_path()} names no {name!r}", "see sdcli models list")
        del document[name]
        return _dump(document)

    rewrite(config.models_path(), change)


def _check_name(name: str, force: bool) -> None:
    if "/" in name or name.startswith((".", "~")) or name.endswith(".safetensors"):
        raise UsageError(f"{name} is a path, and no name for one", "the name comes first: sdcli models add NAME PATH")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a name", "a name is of letters, digits, '.', '_' and '-'")
    if name in registry.shipped():
        raise UsageError(
            f"{name} is a model that sdcli ships with",
            f"choose another name; to change its defaults, write [models.{name}.defaults] in {config.config_path()}",
        )
    elsewhere = config.read().models.get(name)
    if elsewhere is not None:
        raise UsageError(f"{name} is named in {elsewhere.file}", "change it there, or choose another name")
    if name in config.read_models() and not force:
        raise UsageError(f"{name} is there already", "choose another name, or replace it with --force")


def _table(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if path.is_dir():
        registry.read_facts(path)
        return {"folder": str(path.absolute())}
    if path.is_file():
        families.detect(path)
        return {"folder": str(path.absolute())}
    if not _REPO.fullmatch(source) or source.startswith(".") or source.endswith(".safetensors"):
        raise ModelNotFound(f"{source} does not exist", "give a folder, a .safetensors file, or OWNER/NAME on the hub")
    return {"repo": source}


def _kept(table: Any) -> dict[str, Any]:
    """What stays of an entry that is replaced: all but where the model is."""
    return {key: value for key, value in table.items() if key not in ("folder", "repo", "variant", "family")}


def _parse(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text) if text else tomlkit.document()


def _dump(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
