"""What is measured: a model on this machine, or the shape of a family with random weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli.errors import InvalidRecipe, UsageError
from sdcli.models import families, located, registry
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe, loading_of
from sdcli.terminal.spelling import did_you_mean

KIT = "kit"
PROMPT = "a red fox in the snow"
_ALIASES = {"sd21": "sd21-v"}


@dataclass(frozen=True)
class Subject:
    """A picture to measure. With `is_random`, the model is made of its configs and random weights, with so many
    `layers` of each kind if that is given.
    """

    recipe: Recipe
    weights: Weights
    is_random: bool
    layers: int | None = None
    own: Source | None = None
    """The model with its own VAE, where another one is asked for."""

    @property
    def shortcuts(self) -> dict[str, Any]:
        """What is computed less than in the exact picture, by option."""
        asked = self.recipe.shortcuts
        found = {
            "guidance_interval": self.recipe.sampling.guidance_interval,
            "cache": asked.cache,
            "token_merging": asked.token_merging or None,
            "vae": None if self.own is None else self.recipe.loading.places["vae"],
        }
        return {key: value for key, value in found.items() if value is not None}


def of_model(name: str, options: Mapping[str, Any]) -> Subject:
    """Return a picture of a model on this machine. Raises what `located.find` and `resolve.resolve` raise."""
    made = _of(located.find(name, options), options, is_random=False)
    return replace(made, own=located.find(name).source) if loading_of(options).places else made


def of_family(family: str, options: Mapping[str, Any], layers: int | None = None) -> Subject:
    """Return a picture of the shape of `family`, or of the embedded model. Raises UsageError for an unknown family.

    With `layers`, its network has only so many of each kind. Another VAE, a tiny one by its name, is also of random
    weights.
    """
    if family == KIT:
        return of_model(KIT, options)
    family = _ALIASES.get(family, family)
    if family not in families.NAMES:
        listed = f"the families are {', '.join((KIT, *families.NAMES))}"
        raise UsageError(f"no model family {family!r}", did_you_mean(family, families.NAMES, listed))
    if layers is not None and Source(families.config_folder(family)).denoiser != "transformer":
        raise UsageError(f"--layers has no effect on {family}, which has no transformer", "omit it")
    like = registry.shipped().get(family, ModelEntry(family))
    source = Source(families.config_folder(family))
    entry, parts = ModelEntry(family, defaults=like.defaults, needs=like.needs), _parts(source, options)
    changed = replace(source, parts=parts)
    made = _of(LocatedModel(entry, changed, registry.read_facts(changed)), options, is_random=True)
    return replace(made, layers=layers, own=source if parts else None)


def _parts(source: Source, options: Mapping[str, Any]) -> tuple[tuple[str, Path], ...]:
    """Return the places of other parts. The names of VAEs are those of tiny ones, whose configs are here."""
    found, named = [], registry.names(registry.VAE)
    for part, place in sorted(loading_of(options).places.items()):
        channels = registry.read_facts(source).latent_space.channels
        tiny = families.HERE / f"tiny-vae-{channels}"
        found.append((part, tiny if place in named and tiny.is_dir() else registry.place_of(part, place)))
    return tuple(found)


def _of(model: LocatedModel, options: Mapping[str, Any], *, is_random: bool) -> Subject:
    words = {"prompt": PROMPT} if model.facts.labels is None else resolve.any_words(model.facts)
    asked = {"seed": 1, **words, **options, "model": model.entry.name}
    try:
        resolved = resolve.resolve(model, asked)
    except InvalidRecipe as error:
        if error.field == "model":  # the U-Net takes more channels
            raise InvalidRecipe(error.message, "measure a model that makes pictures from text", "model") from error
        raise
    return Subject(resolved.recipe, resolved.weights, is_random)
