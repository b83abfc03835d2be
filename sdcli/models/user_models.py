"""The user's own models: edits the file of `sdcli models add` and `rm`, and keeps its comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdcli import config
from sdcli.errors import ModelError, ModelNotFound, UsageError
from sdcli.files.user_files import home_path, rewrite
from sdcli.models import families, ip_adapter_file, lora_file, registry
from sdcli.models.source import Source
from sdcli.recipe.recipe import loading_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def add(name: str, source: str, parts: Iterable[str] = (), *, force: bool = False) -> Path:
    """Add a name for a folder, a `.safetensors` file or an `OWNER/NAME` repository; returns the edited file.

    `parts`, each `PART=PATH`, are loaded from other folders or files (see sdcli/models/source.py).

    Raises UsageError for an invalid or used name, ModelError for a path without a model, and OutputError.
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
    """Remove a name from the file. Raises UsageError if it is not there, and OutputError."""

    def change(text: str) -> str:
        document = _parse(text)
        if name not in document:
            raise UsageError(f"{config.models_path()} has no {name!r}", "see sdcli models list")
        del document[name]
        return _dump(document)

    rewrite(config.models_path(), change)


def _check_name(name: str, force: bool) -> None:
    if "/" in name or name.startswith((".", "~")) or name.endswith(registry.FILES):
        raise UsageError(f"{name} is a path, not a name", "give the name first: sdcli models add NAME PATH")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid name", "use letters, digits, '.', '_' and '-'")
    if name in registry.shipped() and registry.shipped()[name].url is None:
        raise UsageError(
            f"{name} is a model shipped with sdcli",
            f"choose another name; to change its defaults, add [models.{name}.defaults] to {config.config_path()}",
        )
    elsewhere = config.read().models.get(name)
    if elsewhere is not None:
        raise UsageError(f"{name} is defined in {elsewhere.file}", "change it there, or choose another name")
    if name in config.read_models() and not force:
        raise UsageError(f"{name} already exists", "choose another name, or replace it with --force")


def _parse_parts(parts: Iterable[str]) -> dict[str, Path]:
    """Return absolute paths by part. Raises InvalidRecipe for anything but `PART=PATH`."""
    places = loading_of({"part": tuple(parts)}).places
    return {part: registry.place_of(part, path).absolute() for part, path in places.items()}


def _table(source: str, parts: Mapping[str, Path]) -> dict[str, Any]:
    path = home_path(source)
    extra = {"parts": {part: str(folder) for part, folder in parts.items()}} if parts else {}
    if path.exists():
        whole = Source(path.absolute(), parts=tuple(parts.items()))
        if whole.is_controlnet:
            return {"folder": str(whole.path), "kind": registry.CONTROLNET}
        if whole.is_vae:
            return {"folder": str(whole.path), "kind": registry.VAE}
        if whole.is_file and not parts:
            kind = lora_file.kind_of(whole.path)
            if kind is None and ip_adapter_file.is_ip_adapter(families.read_header(whole.path)):
                kind = registry.IP_ADAPTER
            if kind is None and _is_upscaler(whole.path):
                kind = registry.UPSCALER
            if kind is not None:
                return {"folder": str(whole.path), "kind": kind}
        registry.read_facts(whole)
        whole.index()
        return {"folder": str(whole.path), **extra}
    if not _REPO.fullmatch(source) or source.startswith(".") or source.endswith(registry.FILES):
        raise ModelNotFound(
            f"{source} does not exist", "give a folder, a .safetensors or .gguf file, or OWNER/NAME on the hub"
        )
    Source(Path(), parts=tuple(parts.items())).check()
    return {"repo": source, **extra}


def _is_upscaler(path: Path) -> bool:
    """Whether a file is no model, but an upscaler of a known architecture."""
    try:
        families.detect(path)
    except ModelError:
        if path.suffix == ".gguf":
            return False
        from sdcli.models.loading import upscaler

        return upscaler.is_upscaler(families.read_header(path).tensors)
    return False


def _kept(table: Any) -> dict[str, Any]:
    """Return what is kept of a replaced entry: everything except the location of the model."""
    replaced = ("folder", "repo", "variant", "family", "parts", "kind", "classes")
    return {key: value for key, value in table.items() if key not in replaced}


def _parse(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text) if text else tomlkit.document()


def _dump(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
