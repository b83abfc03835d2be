"""From what a user calls a model to its files and facts: models.toml, a path, or a hub repository in the local cache.

Reads JSON and TOML only, never weights, and never the network.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sdcli import families
from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.recipe import Recipe, check_size, draw_seed
from sdcli.schedulers import check as check_scheduler

PACKAGE = Path(__file__).parent

# What a recipe takes where neither the user nor the model's entry says otherwise.
DEFAULTS: Mapping[str, Any] = {"steps": 25, "guidance_scale": 7.0, "scheduler": "dpm++-2m"}


@dataclass(frozen=True)
class ModelEntry:
    """A model as models.toml names it, or as a path or repository given in place of a name implies it."""

    name: str
    description: str = ""
    license: str = ""
    folder: str | None = None
    repo: str | None = None
    variant: str | None = None
    family: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """What a model's configs say of the pictures it makes. Sizes in pixels."""

    native_size: int
    size_multiple: int
    in_channels: int
    scheduler_config: Mapping[str, Any]
    guidance_distilled: bool = False
    """Whether the U-Net takes its guidance scale as an embedding (LCM), and no unconditional half."""
    knows_sizes: bool = False
    """Whether the U-Net is told the size of the picture (SDXL)."""


@cache
def entries() -> Mapping[str, ModelEntry]:
    """The entries of models.toml by name, in its order."""
    beside = PACKAGE / "models.toml"  # in an installed wheel; in a checkout it stands one level up
    text = (beside if beside.exists() else PACKAGE.parent / "models.toml").read_text(encoding="utf-8")
    shipped = {name: ModelEntry(name=name, **table) for name, table in tomllib.loads(text).items()}
    return {name: replace(each, folder=each.folder and str(PACKAGE / each.folder)) for name, each in shipped.items()}


def find(model: str) -> ModelEntry:
    """The entry of a name in models.toml, else one made for a path or an `owner/name` repository.

    Raises ModelNotFound, with the names that come close, for anything else.
    """
    if model in entries():
        return entries()[model]
    path = Path(model).expanduser()
    if path.exists():
        return ModelEntry(name=path.stem if path.is_file() else path.resolve().name, folder=str(path))
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith(("/", ".safetensors")):
        return ModelEntry(name=model, repo=model)
    near = difflib.get_close_matches(model, entries(), n=1)
    known = f"the named models are {', '.join(entries())}; a path to a folder or .safetensors file works too"
    raise ModelNotFound(f"no model {model!r}", f"did you mean {near[0]!r}?" if near else known)


def locate(entry: ModelEntry) -> Path:
    """The folder or file that holds the model on this machine. Raises ModelNotFound where there is none."""
    if entry.folder is not None:
        return Path(entry.folder).expanduser()
    assert entry.repo is not None
    snapshot = cached_snapshot(entry.repo)
    if snapshot is None:
        raise ModelNotFound(
            f"model {entry.name!r} is not on this machine",
            f"put {entry.repo} into the hub cache with: hf download {entry.repo}",
        )
    return snapshot


def is_present(entry: ModelEntry) -> bool:
    """Whether the model's files are on this machine."""
    try:
        return locate(entry).exists()
    except ModelNotFound:
        return False


def cached_snapshot(repo: str, revision: str = "main") -> Path | None:
    """The snapshot folder of a repository in the local hub cache (`HF_HUB_CACHE`, `HF_HOME`), None if absent."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        commit = (home / "refs" / revision).read_text(encoding="ascii").strip()
    except OSError:
        return None
    snapshot = home / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def read_facts(path: Path, family: str | None = None) -> ModelFacts:
    """What the configs at `path` (for a single file: those of its family) say.

    Raises ModelCorrupt where a config is missing or is not what it should be.
    """
    folder = path if path.is_dir() else families.config_folder(family or families.detect(path))
    unet, vae = _config(folder / "unet" / "config.json"), _config(folder / "vae" / "config.json")
    try:
        multiple = 2 ** (len(vae["block_out_channels"]) - 1)
        return ModelFacts(
            native_size=int(unet["sample_size"]) * multiple,
            size_multiple=multiple,
            in_channels=int(unet["in_channels"]),
            scheduler_config=_config(folder / "scheduler" / "scheduler_config.json"),
            guidance_distilled=unet.get("time_cond_proj_dim") is not None,
            knows_sizes=unet.get("addition_embed_type") == "text_time",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelCorrupt(f"the configs in {folder} lack {error}", "get the model's folder anew") from error


def facts_of(entry: ModelEntry) -> ModelFacts:
    """What the configs of an entry's model say; raises what `locate` and `read_facts` raise."""
    return read_facts(locate(entry), entry.family)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelCorrupt(
            f"{path} is missing", "a model is a diffusers folder (unet/, vae/, text_encoder/ …) or a .safetensors file"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}", "get the model's folder anew") from error
    if not isinstance(config, dict):
        raise ModelCorrupt(f"{path} is not a JSON object", "get the model's folder anew")
    return config


def resolve_recipe(entry: ModelEntry, options: Mapping[str, Any]) -> Recipe:
    """The recipe of `options` (flat keys), filled from the entry's defaults, the model's configs and DEFAULTS.

    The seed is drawn where none is given. Raises InvalidRecipe where the options do not fit each other or the
    model, and ModelNotFound or ModelCorrupt where the model's configs cannot be read.
    """
    facts = facts_of(entry)
    native = {"width": facts.native_size, "height": facts.native_size}
    recipe = Recipe.from_dict({"seed": draw_seed(), **DEFAULTS, **native, **entry.defaults, **options})
    check_size(recipe.width, recipe.height, facts.size_multiple)
    sampling = recipe.sampling
    check_scheduler(sampling.scheduler, sampling.sigmas, sampling.eta, facts.scheduler_config, sampling.steps)
    return recipe
