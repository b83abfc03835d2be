"""LoRAs: finding them, checking whether they fit a model, and merging them. See lora_file.py for what a file holds.

Reads only headers, except `attach`, which reads weights and imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import architectures
from sdcli.errors import ModelError
from sdcli.models import lora_file
from sdcli.models.addons import files_by_name
from sdcli.models.located import LocatedModel
from sdcli.models.registry import LORA
from sdcli.models.source import Source
from sdcli.models.weights import Asked, Weights
from sdcli.recipe.parts import Adapters
from sdcli.recipe.recipe import adapters_of

if TYPE_CHECKING:
    from sdcli.diffusion.model import LatentDiffusionModel

KIND = LORA
"""The kind of these add-ons and of their entries."""
NAMES = files_by_name.Names("LoRA", "lora_dir", KIND)


def asked(options: Mapping[str, Any]) -> list[Asked]:
    """Return the LoRAs in flat keys of a recipe, in order."""
    adapters = adapters_of(options)
    return [Asked(each.name, each.scale, each.text_scale, not adapters.strict_lora) for each in adapters.loras]


def locate(name: str) -> Source:
    """Locate a LoRA. Raises ModelNotFound, and ModelError for anything else than a LoRA."""
    return NAMES.locate(name)


def settings(adapters: Adapters) -> dict[str, Any]:
    """Return the recipe keys that the entries of LoRAs set, such as the steps of a distilled one."""
    found: dict[str, Any] = {}
    for each in adapters.loras:
        entry = NAMES.entry_of(each.name)
        if entry is not None:
            own = {key: setting.value for key, setting in entry.user_defaults.items()}
            found |= {**entry.defaults, **entry.needs, **own}
    return found


def words(adapters: Adapters) -> frozenset[str]:
    """Return the words, in lower case, that the LoRAs were trained with, as far as their files tell."""
    return frozenset().union(*(lora_file.read(locate(each.name).path).words for each in adapters.loras))


def check_fit(name: str, source: Source, model: LocatedModel) -> None:
    """Raise ModelError if the file at `source` is no LoRA, or is made for another family than `model`.

    Names and shapes only tell the family. Whether each tensor fits is checked when they are merged.
    """
    found = lora_file.read(source.path)
    architecture = architectures.find(model.source.denoiser, model.denoiser_config)
    made_for = found.made_for
    if found.is_control:
        what = f"the LoRA {name} adds a control picture to FLUX.1, which is not supported"
        raise ModelError(what, "use a LoRA that adds a style or a subject")
    if architecture != "unet":
        _check_transformer(name, made_for, architecture, model.entry.name)
        return
    takes = model.denoiser_config.get("cross_attention_dim")
    if made_for not in lora_file.TRANSFORMERS and found.token_features in (None, takes):
        return
    made_for = made_for or f"models whose text has {found.token_features} features per token"
    ours = lora_file.MADE_FOR.get(takes or 0)
    hint = f"use a LoRA for {ours}" if ours else f"use a LoRA that was trained on {model.entry.name}"
    raise ModelError(f"the LoRA {name} is made for {made_for}, and {model.entry.name} is not one of them", hint)


def _check_transformer(name: str, made_for: str | None, architecture: str, model: str) -> None:
    fitting = lora_file.ARCHITECTURES.get(architecture, ())
    if made_for not in (None, *fitting):
        what = f"the LoRA {name} is made for {made_for}, and {model} is not one of them"
        raise ModelError(what, f"use a LoRA for {fitting[0]}" if fitting else f"use a LoRA that was trained on {model}")


def files(source: Source) -> list[Path]:
    """Return the weight files of a LoRA."""
    return [source.path]


def attach(model: LatentDiffusionModel, weights: Weights) -> LatentDiffusionModel:
    """Merge the LoRAs of `weights` into `model`, in place of those that are merged.

    Raises ModelError for tensors that do not fit, have no effect or are not finite numbers.
    """
    from sdcli.models.loading import lora as loading

    return loading.merge(model, weights.model, weights.of_kind(KIND))
