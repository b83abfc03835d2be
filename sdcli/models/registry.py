"""Finds models by name, path or hub repository, and reads their facts.

Entries come from the shipped models.toml, the user's own file (`sdcli models add`) and the config file; later ones
override earlier ones. Reads only JSON and TOML, no weights, and never uses the network.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sdcli import config
from sdcli.config import Setting
from sdcli.diffusion import architectures
from sdcli.diffusion.facts import Facts
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelError, ModelNotFound, UsageError
from sdcli.files import palette
from sdcli.files.user_files import home_path
from sdcli.models import configs, families, labels, vocabulary
from sdcli.models.families import flow
from sdcli.models.hub import lock
from sdcli.models.source import Source
from sdcli.models.vocabulary import Vocabulary
from sdcli.recipe.labels import Labels
from sdcli.terminal.spelling import did_you_mean

PACKAGE = Path(__file__).parents[1]

SHIPPED = "sdcli"
FILES = (".safetensors", ".gguf")
"""The suffixes of files of weights."""
MODEL, CONTROLNET, LORA, EMBEDDING, VAE, UPSCALER, IP_ADAPTER = config.KINDS
TITLES = {CONTROLNET: "a ControlNet", LORA: "a LoRA", EMBEDDING: "an embedding", VAE: "a VAE"}
TITLES |= {UPSCALER: "an upscaler", IP_ADAPTER: "an IP-Adapter"}
"""The kinds of add-ons, as messages call them."""
OPTIONS = {
    MODEL: "sdcli generate -m",
    CONTROLNET: "--control",
    LORA: "--lora",
    EMBEDDING: "--embedding",
    VAE: "--vae",
    UPSCALER: "sdcli upscale -m",
    IP_ADAPTER: "--ip-adapter",
}
"""The option for each kind."""


@dataclass(frozen=True)
class ModelEntry:
    """An entry of models.toml, or one for a path or repository that was given instead of a name."""

    name: str
    description: str = ""
    license: str = ""
    folder: str | None = None
    repo: str | None = None
    url: str | None = None
    """The web page of a model that is not on the hub in `.safetensors`; the user downloads it and adds it."""
    variant: str | None = None
    file: str | None = None
    """The file of a LoRA or embedding in a repository with several."""
    family: str | None = None
    """For a single file, the family of its configs; for a ControlNet or a LoRA, the family of models it fits."""
    kind: str = MODEL
    """MODEL, or CONTROLNET, LORA, EMBEDDING, VAE, UPSCALER or IP_ADAPTER for what is used together with a model."""
    classes: str | None = None
    """The palette (see sdcli/files/palette) of the segmentation maps that a ControlNet reads."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Folders or files of parts that are not in `folder` or `repo`, by part (see source.py)."""
    trigger: str | None = None
    """The words of a prompt that a LoRA was trained with, separated by commas."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Like `defaults`, with precedence over the user's general defaults (see sdcli/config.py)."""
    user_defaults: Mapping[str, Setting] = field(default_factory=dict)
    """The user's defaults for this model."""
    origin: str = SHIPPED
    """SHIPPED, or the user's file that defines the model; "" for a path or repository."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Facts):
    """Facts from a model's configs."""

    scheduler_config: Mapping[str, Any]
    classes: tuple[palette.Class, ...] = ()
    """The classes of segmentation maps that the U-Net takes, one channel each."""
    labels: Labels | None = None
    """The classes of a class-conditional model, None for a text model."""
    vocabulary: Vocabulary | None = None
    """The words that the model knows, None where its folder does not list them."""


def entries() -> Mapping[str, ModelEntry]:
    """Return the named models: the shipped ones in order, then the user's. Raises UsageError (config)."""
    found = dict(shipped())
    for recorded in (config.read_models(), config.read().models):
        for name, each in recorded.items():
            found[name] = _changed(found.get(name), name, each)
    return found


def _changed(entry: ModelEntry | None, name: str, recorded: config.UserModel) -> ModelEntry:
    """Merge the user's settings into an entry, or make a new one."""
    fields: dict[str, Any] = dict(recorded.fields)
    elsewhere = "folder" in fields or "repo" in fields
    if elsewhere:
        fields = {"folder": None, "repo": None, **fields}
    elif entry is None:
        table, near = ".".join(recorded.keys), did_you_mean(name, shipped(), "")
        hint = "give it a folder or a repo" + (f", or {near}" if near else "")
        raise UsageError(f"{recorded.file}: [{table}] is a new model without a location", hint)
    if entry is None:
        entry = ModelEntry(name, origin=str(recorded.file))
    parts = {**({} if elsewhere else entry.parts), **recorded.parts}
    return replace(entry, **fields, parts=parts, user_defaults={**entry.user_defaults, **recorded.defaults})


@cache
def shipped() -> Mapping[str, ModelEntry]:
    """Return the entries of models.toml by name, in order."""
    beside = PACKAGE / "models.toml"  # in an installed wheel; in a checkout it is one level up
    text = (beside if beside.exists() else PACKAGE.parent / "models.toml").read_text(encoding="utf-8")
    named = {name: ModelEntry(name=name, **table) for name, table in tomllib.loads(text).items()}
    return {
        name: replace(
            each,
            folder=each.folder and str(PACKAGE / each.folder),
            parts={part: str(PACKAGE / folder) for part, folder in each.parts.items()},
        )
        for name, each in named.items()
    }


def known() -> Mapping[str, ModelEntry]:
    """Return `entries`, for completion and hints; only the shipped ones if the user's files are invalid."""
    try:
        return entries()
    except UsageError:
        return shipped()


def names(kind: str = MODEL) -> tuple[str, ...]:
    """Return the names of one kind among those `known`."""
    return tuple(name for name, each in known().items() if each.kind == kind)


def find(model: str) -> ModelEntry:
    """Return the entry of a name, or a new one for a path or an `owner/name` repository.

    Raises ModelNotFound, with similar names in the hint, for anything else.
    """
    named = entries()
    if model in named:
        return named[model]
    path = existing(model)
    if path is not None:
        return ModelEntry(name=path.stem if path.is_file() else path.resolve().name, folder=str(path), origin="")
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith(("/", *FILES)):
        return ModelEntry(name=model, repo=model, origin="")
    if model.startswith((".", "/", "~")) or model.endswith(FILES):
        raise ModelNotFound(f"there is no file or folder {model}", "check the path, or use a name of sdcli models list")
    otherwise = "use a name of sdcli models list, or a path to a folder or .safetensors file"
    raise ModelNotFound(f"no model {model!r}", did_you_mean(model, named, otherwise))


def with_parts(entry: ModelEntry, places: Mapping[str, str]) -> ModelEntry:
    """Return the entry with some parts from other places."""
    return replace(entry, parts={**entry.parts, **places}) if places else entry


def existing(model: str) -> Path | None:
    """Return the path that `model` names, or None if there is nothing, or it cannot be a path."""
    try:
        path = home_path(model)
        return path if path.exists() else None
    except (OSError, ValueError):
        return None


def locate(entry: ModelEntry) -> Source:
    """Return the location of a model on this machine. Raises ModelNotFound if its repository is not in the cache.

    For a repository pinned by `sdcli models pull`, it is the pinned revision.
    """
    parts = tuple((part, place_of(part, folder)) for part, folder in sorted(entry.parts.items()))
    return Source(_path(entry), entry.variant, entry.family, parts)


def place_of(part: str, place: str) -> Path:
    """Return the folder or file of a part: a path, or for the VAE also the name of an entry.

    Raises ModelNotFound for an entry that is not on this machine.
    """
    entry = entries().get(place) if part == VAE else None
    return home_path(place) if entry is None or entry.kind != VAE else _path(entry)


def _path(entry: ModelEntry) -> Path:
    if entry.folder is not None:
        return home_path(entry.folder)
    if entry.repo is None:
        raise ModelNotFound(
            f"model {entry.name!r} is not on this machine, and not in a repository that sdcli can pull",
            f"get {entry.url}, convert its state_dict to .safetensors in a safe environment, then run: "
            f"sdcli models add {entry.name} FILE",
        )
    pin = lock.read().get(entry.repo)
    snapshot = cached_snapshot(entry.repo, pin.revision) if pin else cached_snapshot(entry.repo)
    if snapshot is None:
        again = f" --revision {pin.revision}" if pin else ""
        raise ModelNotFound(
            f"model {entry.name!r} is not on this machine",
            f"get {entry.repo} with: sdcli models pull {entry.name}{again}",
        )
    return snapshot


def is_present(entry: ModelEntry) -> bool:
    """Whether the model's files are on this machine."""
    try:
        locate(entry).check()
    except ModelNotFound:
        return False
    return True


def cached_snapshot(repo: str, revision: str = "main") -> Path | None:
    """Return the snapshot folder of a repository in the local hub cache, or None. `revision`: a branch or a commit."""
    home = lock.cache_folder(repo)
    try:
        commit = (home / "refs" / revision).read_text(encoding="ascii").strip()
    except OSError:
        commit = revision
    snapshot = home / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def check_is_model(entry: ModelEntry) -> None:
    """Raise InvalidRecipe for an entry that is not a model."""
    if entry.kind == CONTROLNET:
        raise _not_a_model(entry.name)
    if entry.kind in TITLES:
        hint = f"use it with a model: {OPTIONS[entry.kind]} {entry.name}"
        if entry.kind == UPSCALER:
            hint = f"use it with sdcli upscale -m {entry.name}, or --hires-upscaler {entry.name}"
        raise ModelError(f"{entry.name} is {TITLES[entry.kind]}, not a model", hint)


def _not_a_model(name: str) -> InvalidRecipe:
    return InvalidRecipe(
        f"{name} is a ControlNet, not a model", f"use it with a model: --control {name}=IMAGE", "model"
    )


def for_maps() -> str:
    """Return the default model for segmentation maps: the first one shipped with sdcli."""
    local = {name: each for name, each in shipped().items() if each.folder and each.kind == MODEL}
    taking = (name for name, each in local.items() if palette.find(locate(each).folder("unet")).exists())
    return next(taking, config.DEFAULT_MODEL)


def read_facts(source: Source) -> ModelFacts:
    """Read the facts of a model from its configs, or for a single file from those of its family.

    Raises ModelNotFound if the model or a part of it is missing, ModelCorrupt if a config is missing or invalid, and
    InvalidRecipe for a ControlNet.
    """
    source.check()
    if source.is_controlnet:
        raise _not_a_model(source.path.name)
    network, vae = (configs.read(source.folder(part) / "config.json", _WHAT) for part in (source.denoiser, "vae"))
    name, scheduler_config = architectures.find(source.denoiser, network), source.scheduler_config()
    architectures.check_scheduler(name, scheduler_config)
    try:
        facts = vars(architectures.load(name).facts(network, vae, source.index_if_any()))
        facts["defaults"] = {**facts["defaults"], **_of_family(source)}
        return ModelFacts(
            **facts,
            scheduler_config=scheduler_config,
            classes=palette.read(palette.find(source.folder("unet")).parent),
            labels=labels.read(source),
            vocabulary=vocabulary.read(source.path),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"lack {error}" if isinstance(error, KeyError) else f"are invalid: {error}"
        raise ModelCorrupt(f"the configs of {source.path} {what}", "download the model's folder again") from error


def _of_family(source: Source) -> Mapping[str, Any]:
    """Return the values that suit the family of a file with a transformer, as models.toml has them."""
    family = source.detected if source.configs is None else None
    entry = shipped().get(family or "") if family in flow.FAMILIES else None
    return {} if entry is None else {**entry.defaults, **entry.needs}


def labels_of(entry: ModelEntry) -> Labels | None:
    """Return the classes of an entry's model, or None for a text model; uses its family if the model is absent."""
    if entry.family is not None and not is_present(entry):
        return labels.read(Source(families.config_folder(entry.family)))
    check_is_model(entry)
    return read_facts(locate(entry)).labels


_WHAT = "a model is a diffusers folder (unet/, vae/, text_encoder/ and others) or a .safetensors file"
