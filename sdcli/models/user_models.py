"""The models a user names: writes the file that `sdcli models add` and `rm` keep, comments and all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdcli import config
from sdcli.config import PARTS
from sdcli.errors import ModelNotFound, UsageError
from sdcli.files.user_files import rewrite
from sdcli.models import registry
from sdcli.models.source import Source
from sdcli.terminal.spelling import nearest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def add(name: str, source: str, parts: Iterable[str] = (), *, force: bool = False) -> Path:
    """Name a diffusers folder, a `.safetensors` file or an `OWNER/NAME` repository; returns the file it is written to.

    `parts`, each `PART=FOLDER`, come from elsewhere (see sdcli/models/source.py).

    Raises UsageError for a name that cannot be given, ModelError for a path that holds no model, OutputError.
    """
    _check_name(name, force)
    table = _table(source, _parse_parts(parts))

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
    if name in registry.shipped() and registry.shipped()[name].url is None:
        raise UsageError(
            f"{name} is a model that sdcli ships with",
            f"choose another name; to change its defaults, write [models.{name}.defaults] in {config.config_path()}",
        )
    elsewhere = config.read().models.get(name)
    if elsewhere is not None:
        raise UsageError(f"{name} is named in {elsewhere.file}", "change it there, or choose another name")
    if name in config.read_models() and not force:
        raise UsageError(f"{name} is there already", "choose another name, or replace it with --force")


def _parse_parts(parts: Iterable[str]) -> dict[str, Path]:
    """Folders by the part, absolute. Raises UsageError for what is no `PART=FOLDER`, ModelCorrupt for no config."""
    found: dict[str, Path] = {}
    for each in parts:
        part, _, folder = each.partition("=")
        if part not in PARTS or not folder:
            near = nearest(part, PARTS)
            hint = f"did you mean --part {near}=…?" if near and folder else f"the parts are {', '.join(PARTS)}"
            raise UsageError(f"--part {each!r} is no PART=FOLDER", hint)
        if part in found:
            raise UsageError(f"--part says twice where the {part} comes from", "say it once")
        found[part] = Path(folder).expanduser().absolute()
    return found


def _table(source: str, parts: Mapping[str, Path]) -> dict[str, Any]:
    path = Path(source).expanduser()
    said = {"parts": {part: str(folder) for part, folder in parts.items()}} if parts else {}
    if path.exists():
        whole = Source(path.absolute(), parts=tuple(parts.items()))
        if whole.is_controlnet:
            return {"folder": str(whole.path), "kind": registry.CONTROLNET}
        registry.read_facts(whole)
        whole.index()
        return {"folder": str(whole.path), **said}
    if not _REPO.fullmatch(source) or source.startswith(".") or source.endswith(".safetensors"):
        raise ModelNotFound(f"{source} does not exist", "give a folder, a .safetensors file, or OWNER/NAME on the hub")
    Source(Path(), parts=tuple(parts.items())).check()
    return {"repo": source, **said}


def _kept(table: Any) -> dict[str, Any]:
    """What stays of an entry that is replaced: all but where the model is."""
    gone = ("folder", "repo", "variant", "family", "parts", "kind", "classes")
    return {key: value for key, value in table.items() if key not in gone}


def _parse(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text) if text else tomlkit.document()


def _dump(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
