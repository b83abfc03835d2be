"""The location of a model's files: one folder or file, and folders or files of other parts. Imports no torch.

All code that reads a model uses it, so that a model can share parts with another one, with another U-Net or VAE, and
nothing is stored twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.files import palette
from sdcli.files.json_files import load_json
from sdcli.models import configs, families
from sdcli.models.digest import file_sha256
from sdcli.models.families import flow, split
from sdcli.recipe.part import PARTS

INDEX = "model_index.json"
SUFFIXES = (".json", ".safetensors", ".gguf", ".txt")
WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "processor")
"""Parts that are always folders."""


@dataclass(frozen=True)
class Source:
    """A model on this machine, and how it is read.

    `path` is a diffusers folder, or a single file: a whole model in the original layout, or a transformer. `parts` are
    pairs of one of PARTS and the folder or file that has it, in place of `path`/unet. `variant` ("fp16") is preferred
    if a folder has it. A single file belongs to `family`, or to the family in its header, and uses that family's
    configs, or those in the folder `configs`.
    """

    path: Path
    variant: str | None = None
    family: str | None = None
    parts: tuple[tuple[str, Path], ...] = ()
    configs: Path | None = None

    @cached_property
    def base(self) -> Path:
        """The folder with model_index.json and the configs of all parts except replaced ones.

        Raises what `families.detect` raises for a single file.
        """
        if self.path.is_dir():
            return self.path
        return self.configs or families.config_folder(self.detected or "")

    @cached_property
    def detected(self) -> str | None:
        """The family of a single file, given or detected; None for a folder. Raises what `families.detect` raises."""
        return (self.family or families.detect(self.path)) if self.is_file else None

    @property
    def is_file(self) -> bool:
        """Whether `path` is a single file."""
        return not self.path.is_dir()

    def absolute(self) -> Self:
        """Return the same with absolute paths."""
        parts = tuple((part, _absolute(folder)) for part, folder in self.parts)
        return replace(self, path=_absolute(self.path), parts=parts)

    @cached_property
    def is_controlnet(self) -> bool:
        """Whether this is the folder of a ControlNet of any kind."""
        return "ControlNet" in self._class_name

    @property
    def is_vae(self) -> bool:
        """Whether this is the folder of an autoencoder alone."""
        return "Autoencoder" in self._class_name

    @cached_property
    def _class_name(self) -> str:
        """The class of the only part that is in the folder itself; empty if there is none."""
        try:
            recorded = load_json(self.path / "config.json")
        except (OSError, ValueError):
            return ""
        return str(recorded.get("_class_name")) if isinstance(recorded, dict) else ""

    def folder(self, part: str) -> Path:
        """Return the folder of a part's config, and of its weights unless they are in a file of their own."""
        return self._folders.get(part) or self.base / part

    @cached_property
    def _folders(self) -> Mapping[str, Path]:
        """The folders of parts that are not in `base`."""
        found = {part: place for part, place in self.parts if not place.is_file()}
        files = {part: place for part, place in self.parts if place.is_file()}
        if self.is_file and self.configs is None and split.is_flow(self.path):
            files.setdefault("transformer", self.path)
        index = families.read_json(self.base / INDEX) if files else {}
        for part, file in files.items():
            listed = index.get(part)
            class_name = str(listed[-1]) if isinstance(listed, list) and listed else ""
            tiny = split.config_of_tiny_vae(file) if part == "vae" else None
            if tiny is not None:
                found[part] = tiny
            elif split.has_config(file.parent, part, class_name):
                found[part] = file.parent
        return found

    def file(self, part: str) -> Path | None:
        """Return the single file with a part's weights, or None if they are in its folder."""
        place = dict(self.parts).get(part)
        if place is not None:
            return place if place.is_file() else None
        return self.path if self.is_file else None

    def weights(self, part: str) -> list[Path]:
        """Return the files with a part's weights. Raises what `families.component_files` raises."""
        file = self.file(part)
        return families.component_files(self.folder(part), self.variant) if file is None else [file]

    @property
    def denoiser(self) -> str:
        """The part that is f(z, t, y): a `unet`, or a `transformer`."""
        return "transformer" if self.folder("transformer").is_dir() else "unet"

    def config(self, part: str) -> dict[str, Any]:
        """Read and check the config of a part. Raises ModelCorrupt."""
        return configs.read(self.folder(part) / "config.json")

    def scheduler_config(self) -> dict[str, Any]:
        """Read and check the scheduler's config. Raises ModelCorrupt, and ModelError for one that is not supported."""
        recorded = self.index().get("scheduler") if (self.base / INDEX).exists() else None
        class_name = recorded[1] if isinstance(recorded, list) and len(recorded) == 2 else None
        if class_name is not None and not isinstance(class_name, str):
            raise ModelCorrupt(f"{self.base / INDEX} has no valid entry for scheduler", _CHECK)
        return configs.read_scheduler(self.folder("scheduler") / "scheduler_config.json", class_name)

    def is_elsewhere(self, part: str) -> bool:
        """Whether a part is replaced by another folder or file."""
        return part in dict(self.parts)

    def check(self) -> None:
        """Raise ModelNotFound if the model, or the folder or file of a part, is missing."""
        if not self.path.exists():
            raise ModelNotFound(f"{self.path} does not exist", "check the path")
        for part, place in self.parts:
            if not place.is_dir() and (part in WITHOUT_WEIGHTS or not place.is_file()):
                what = "is a file" if place.exists() else "does not exist"
                raise ModelNotFound(
                    f"the {part} of {self.path.name} should be loaded from {place}, which {what}",
                    f"give the folder of a {part}"
                    if part in WITHOUT_WEIGHTS
                    else f"give the file or folder of a {part}",
                )
        if self.is_file and self.configs is None:
            split.check_parts(self.path, dict(self.parts))

    def files(self) -> dict[str, Path]:
        """Return each file that determines pictures, by its name in a diffusers folder.

        A single file has the name `model.safetensors`, and a YAML next to it that describes it `model.yaml`; its
        family's configs are not included. Replaced parts are named as if they were in the folder
        (`unet/config.json`), and so is classes.json; a part that is one file is named `vae`. The files of an add-on,
        which has no model_index.json, are in the folder itself.
        """
        found = {}
        if self.is_file:
            found["model.safetensors"] = self.path
            beside = None if self.configs or self.family else families.marks.yaml_beside(self.path)
            found |= {} if beside is None else {"model.yaml": beside}
        elif (self.path / INDEX).is_file():
            found[INDEX] = self.path / INDEX
        else:
            found |= {each.name: each for each in self.path.iterdir() if each.suffix in SUFFIXES and each.is_file()}
        if not self.is_file or self.is_elsewhere("unet"):
            classes = palette.find(self.folder("unet"))
            if classes.exists() and classes.parent != self.folder("unet"):  # see below
                found[palette.FILE] = classes
        for part in PARTS:
            file = self.file(part)
            if file is not None:
                found |= {} if file == self.path else {part: file}
                found |= {f"{part}/config.json": self._folders[part] / "config.json"} if part in self._folders else {}
                continue
            for each in self.folder(part).glob("*"):
                if each.suffix in SUFFIXES and each.is_file():
                    found[f"{part}/{each.name}"] = each
        return found

    @property
    def sha256(self) -> str:
        """The digest of the model, 64 hex digits, computed when it is first used.

        For a single file it is the SHA-256 of the file. For a diffusers folder it is the SHA-256 of the output of
        `sha256sum` for `files()`, sorted; the name of the folder and other files do not matter. A replaced part counts
        as if it were in the folder, so a model has the same digest as a folder with the same files. A single file with
        replaced parts or a YAML is one more file in that list.

        Raises ModelNotFound if the model is missing, and ModelCorrupt if a file cannot be read.
        """
        return self._identity[0]

    @cached_property
    def _identity(self) -> tuple[str, Mapping[str, tuple[int, ...]]]:
        """The digest, and the stamps of the files from just before they were read."""
        self.check()
        try:
            stamps = self._stamps()
            files = self.files()
            if list(files.values()) == [self.path]:
                return file_sha256(self.path), stamps
            listing = "".join(f"{file_sha256(file)}  {name}\n" for name, file in sorted(files.items()))
        except OSError as error:
            raise ModelCorrupt(
                f"{error.filename or self.path} cannot be read: {error.strerror}",
                "check the model's files and permissions",
            ) from error
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(), stamps

    def check_unchanged(self) -> None:
        """Raise ModelCorrupt if the files have changed since `sha256` was computed."""
        try:
            unchanged = self._stamps() == self._identity[1]
        except OSError:
            unchanged = False
        if not unchanged:
            raise ModelCorrupt(f"the files of {self.path} have changed while they were in use", "run the command again")

    def _stamps(self) -> Mapping[str, tuple[int, ...]]:
        """Return the size, modification time and inode of each file."""
        stats = {name: file.stat() for name, file in self.files().items()}
        return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}

    def index(self) -> dict[str, Any]:
        """Read model_index.json; a replaced part has the class in its own config.

        Raises ModelCorrupt if it, or the config of a part, cannot be read or has no library and class of a part.
        """
        index = families.read_json(self.base / INDEX)
        for part in PARTS:
            _check_entry(self.base / INDEX, part, index.get(part, [None, None]))
        for part in flow.OPTIONAL if self.is_file and self.configs is None else ():
            if part in index and part not in dict(self.parts) and not split.has_part(self.path, part):
                index[part] = [None, None]
        for part, folder in self._folders.items():
            if part.startswith(("tokenizer", "processor")):
                continue
            config = families.read_json(folder / ("scheduler_config.json" if part == "scheduler" else "config.json"))
            listed = config.get("architectures")
            first = listed[0] if isinstance(listed, list) and listed else None
            named = first if part.startswith("text") else config.get("_class_name")
            if isinstance(named, str):
                index[part] = ["transformers" if part.startswith("text") else "diffusers", named]
        return index

    def index_if_any(self) -> dict[str, Any]:
        """Read model_index.json like `index`, or return nothing if there is none."""
        return self.index() if (self.base / INDEX).exists() else {}

    def explain(self, error: ModelCorrupt) -> ModelCorrupt:
        """Add the places of replaced parts to an error about parts that do not fit each other."""
        if not self.parts:
            return error
        elsewhere = ", ".join(f"{part} = {folder}" for part, folder in self.parts)
        return ModelCorrupt(error.message, f"choose parts that fit each other; replaced parts: {elsewhere}")


_CHECK = "download the model's folder again; its parts must belong together"


def _check_entry(file: Path, part: str, entry: object) -> None:
    """Raise ModelCorrupt unless `entry` is a library and a class, which can be null."""
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(each, str | None) for each in entry):
        raise ModelCorrupt(f"{file} has no valid entry for {part}", _CHECK)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute() keeps `..`
