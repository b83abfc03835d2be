"""LoRAs: finding them, checking whether they fit a model, and merging them. See lora_file.py for what a file holds.

Reads only headers, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import config
from sdcli.errors import ModelError, ModelNotFound
from sdcli.models import lora_file, registry
from sdcli.models.located import LocatedModel
from sdcli.models.registry import LORA
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.recipe import Adapters, adapters_of
from sdcli.terminal.spelling import did_you_mean

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = LORA
"""The kind of these add-ons and of their entries."""


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the LoRAs in flat keys of a recipe, in order."""
    adapters = adapters_of(options)
    return [Asked(each.name, each.scale, each.text_scale, not adapters.strict_lora) for each in adapters.loras]


def locate(name: str) -> Source:
    """Locate a LoRA: a name, a file, a folder with one, a file in `lora_dir`, or a repository in the hub cache.

    Raises ModelNotFound, and ModelError for anything else than a LoRA.
    """
    entry = registry.entries().get(name)
    if entry is not None and entry.kind != LORA:
        raise _no_lora(name, f"is a {'model' if entry.kind == registry.MODEL else entry.kind}")
    if entry is not None:
        return _in(registry.locate(entry).path, name)
    path = Path(name).expanduser()
    if path.exists():
        return _in(path, name)
    found = _in_directory(name)
    if found is not None:
        return Source(found)
    try:
        return _in(registry.locate(registry.find(name)).path, name)
    except ModelNotFound:
        where = f" or in {directory()}" if directory() else ", or set lora_dir"
        known = f"give a .safetensors file, OWNER/NAME in the hub cache, or a name in sdcli models list{where}"
        raise ModelNotFound(f"no LoRA {name!r}", did_you_mean(name, names(), known)) from None


def directory() -> Path | None:
    """Return the directory in which LoRAs are found by their file's name, or None."""
    value = config.general("lora_dir", None).value
    return None if value is None else Path(str(value)).expanduser()


def names() -> tuple[str, ...]:
    """Return the names of LoRAs: of the entries, and of the files in `lora_dir`."""
    where = directory()
    files = sorted(where.rglob("*.safetensors")) if where else []
    return tuple(dict.fromkeys([*registry.names(LORA), *(each.stem for each in files)]))


def entry_of(name: str) -> registry.ModelEntry | None:
    """Return the entry of a LoRA that has one."""
    found = registry.entries().get(name)
    return found if found is not None and found.kind == LORA else None


def settings(adapters: Adapters) -> dict[str, Any]:
    """Return the recipe keys that the entries of LoRAs set, such as the steps of a distilled one."""
    found: dict[str, Any] = {}
    for each in adapters.loras:
        entry = entry_of(each.name)
        if entry is not None:
            own = {key: setting.value for key, setting in entry.user_defaults.items()}
            found |= {**entry.defaults, **entry.needs, **own}
    return found


def _in_directory(name: str) -> Path | None:
    """Return the file with this name, or relative path, in `lora_dir`. Raises ModelError if several have it."""
    where = directory()
    if where is None or name.startswith((".", "/", "~")):
        return None
    direct = where / (name if name.endswith(".safetensors") else f"{name}.safetensors")
    if direct.is_file():
        return direct
    found = sorted(each for each in where.rglob("*.safetensors") if name in (each.name, each.stem))
    if len(found) > 1:
        listed = ", ".join(str(each.relative_to(where)) for each in found)
        raise ModelError(f"{len(found)} files in {where} are named {name}", f"give the path of one of them: {listed}")
    return found[0] if found else None


def _in(path: Path, name: str) -> Source:
    """Return the LoRA file at `path`, or in the folder there. Raises ModelError."""
    if path.is_file():
        return Source(path)
    if (path / "model_index.json").exists():
        raise _no_lora(name, "is a whole model")
    if (path / "config.json").exists() and Source(path).is_controlnet:
        raise _no_lora(name, "is a ControlNet")
    found = [path / each for each in _FILES if (path / each).is_file()] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        what = "no .safetensors file" if not found else f"{len(found)} .safetensors files"
        raise ModelError(f"{path} has {what}", "give the path of a LoRA file")
    return Source(found[0])


_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The files of diffusers and PEFT."""


def _no_lora(name: str, what: str) -> ModelError:
    hint = f"use it with {'--control' if 'ontrol' in what else '-m'}, or give a LoRA file"
    return ModelError(f"{name} {what}, not a LoRA", hint)


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise ModelError if the file at `source` is no LoRA, or is made for another family than `model`.

    Names and shapes only tell the family. Whether each tensor fits is checked when they are merged.
    """
    found = lora_file.read(source.path)
    if model.source.denoiser != "unet":
        raise ModelError(f"{model.entry.name} does not support LoRAs", "use a model with a U-Net, such as sd15")
    takes = model.denoiser_config.get("cross_attention_dim")
    made_for = found.made_for
    if made_for not in lora_file.TRANSFORMERS and found.token_features in (None, takes):
        return
    made_for = made_for or f"models whose text has {found.token_features} features per token"
    ours = lora_file.MADE_FOR.get(takes or 0)
    hint = f"use a LoRA for {ours}" if ours else f"use a LoRA that was trained on {model.entry.name}"
    raise ModelError(f"the LoRA {name} is made for {made_for}, and {model.entry.name} is not one of them", hint)


def files(source: Source) -> list[Path]:
    """Return the weight files of a LoRA."""
    return [source.path]


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Merge the LoRAs of `weights` into `model`, in place of those that are merged.

    Raises ModelError for tensors that do not fit, have no effect or are not finite numbers.
    """
    from sdcli.models.loading import lora as loading

    return loading.merge(model, weights.model, weights.of_kind(KIND))
