"""Finds add-ons that are one file: by a name, a path, in the user's directory for them, or in the hub cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdcli import config
from sdcli.errors import ModelError, ModelNotFound
from sdcli.files.user_files import home_path
from sdcli.models import registry
from sdcli.models.registry import ModelEntry
from sdcli.models.source import INDEX, Source
from sdcli.terminal.spelling import did_you_mean

_PREFERRED = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "adapter_model.safetensors")
"""The files of diffusers and PEFT in a folder or repository."""


MAX_NAME = 200
"""Characters of a file's name."""


@dataclass(frozen=True)
class Names:
    """The names of one kind of add-on. `title` is its name in messages, and `key` that of the user's directory."""

    title: str
    key: str
    kind: str

    def locate(self, name: str) -> Source:
        """Locate an add-on: a name, a file, a folder with one, a file in the directory, or a cached repository.

        Raises ModelNotFound, and ModelError for an add-on of another kind, a whole model, or several files.
        """
        entry = registry.entries().get(name)
        if entry is not None and entry.kind != self.kind:
            raise self._another(name, entry.kind)
        if entry is not None:
            return self._in(registry.locate(entry).path / (entry.file or ""), name)
        path = registry.existing(name)
        if path is not None:
            return self._in(path, name)
        found = self._in_directory(name)
        if found is not None:
            return Source(found)
        try:
            return self._in(registry.locate(registry.find(name)).path, name)
        except ModelNotFound:
            where = f" or in {self.directory}" if self.directory else f", or set {self.key}"
            known = f"give a .safetensors file, OWNER/NAME in the hub cache, or a name in sdcli models list{where}"
            raise ModelNotFound(f"no {self.title} {name!r}", did_you_mean(name, self.all(), known)) from None

    @property
    def directory(self) -> Path | None:
        """The directory in which add-ons are found by their file's name, or None."""
        value = config.general(self.key, None).value
        return None if value is None else home_path(str(value))

    def all(self) -> tuple[str, ...]:
        """Return the names: of the entries, and of the files in `directory`."""
        files = sorted(self.directory.rglob("*.safetensors")) if self.directory else []
        return tuple(dict.fromkeys([*registry.names(self.kind), *(each.stem for each in files)]))

    def entry_of(self, name: str) -> ModelEntry | None:
        """Return the entry of an add-on that has one."""
        found = registry.entries().get(name)
        return found if found is not None and found.kind == self.kind else None

    def _in_directory(self, name: str) -> Path | None:
        """Return the file with this name, or relative path, in `directory`. Raises ModelError if several have it."""
        where = self.directory
        if where is None or name.startswith((".", "/", "~")) or len(name) > MAX_NAME or "\0" in name:
            return None
        direct = where / (name if name.endswith(".safetensors") else f"{name}.safetensors")
        if direct.is_file():
            return direct
        found = sorted(each for each in where.rglob("*.safetensors") if name in (each.name, each.stem))
        if len(found) > 1:
            listed = ", ".join(str(each.relative_to(where)) for each in found)
            raise ModelError(
                f"{len(found)} files in {where} are named {name}", f"give the path of one of them: {listed}"
            )
        return found[0] if found else None

    def _in(self, path: Path, name: str) -> Source:
        """Return the file at `path`, or the one in the folder there. Raises ModelError."""
        if path.is_file():
            return Source(path)
        if (path / INDEX).exists():
            raise self._another(name, registry.MODEL)
        if (path / "config.json").exists() and Source(path).is_controlnet:
            raise self._another(name, registry.CONTROLNET)
        found = [path / each for each in _PREFERRED if (path / each).is_file()] or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            what = "no .safetensors file" if not found else f"{len(found)} .safetensors files"
            raise ModelError(f"{path} has {what}", f"give the path of the file of the {self.title}")
        return Source(found[0])

    def _another(self, name: str, kind: str) -> ModelError:
        what = registry.TITLES.get(kind, "a model")
        return ModelError(
            f"{name} is {what}, not {registry.TITLES[self.kind]}", f"use it with {registry.OPTIONS[kind]}"
        )
