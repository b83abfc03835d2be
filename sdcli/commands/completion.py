"""Completes the values of options in a shell. Functions, because annotations cannot hold lambdas that read names.

bash splits words at `=` and `:`, so that it expects only the rest of a `KEY=VALUE`; zsh and fish expect all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress

import typer

from sdcli import config
from sdcli.errors import ModelNotFound, SdcliError
from sdcli.models import located, registry
from sdcli.models.addons import embedding, ip_adapter, lora, upscaler
from sdcli.recipe import parts, recipe, schedulers
from sdcli.recipe.part import PARTS

_VARIABLE = "_SDCLI_COMPLETE"
_KEY = "_SDCLI_COMPLETE_KEY"
"""The `KEY=` before the word that bash completes."""
_BREAKS = ("=", ":")
Completer = Callable[[str], list[str]]


def of(*choices: str) -> Completer:
    """Complete fixed `choices`."""

    def complete(incomplete: str) -> list[str]:
        return [each for each in choices if each.startswith(incomplete)]

    return complete


scheduler = of(*schedulers.NAMES)
sigmas = of(*schedulers.SIGMAS)
device = of(*parts.DEVICES)
dtype = of(*parts.DTYPES)


def model(incomplete: str) -> list[str]:
    """Complete the names of models that make pictures."""
    return of(*registry.names())(incomplete)


def any_model(incomplete: str) -> list[str]:
    """Complete the names of models and of add-ons."""
    return of(*_names(lambda entry: True))(incomplete)


def hub_model(incomplete: str) -> list[str]:
    """Complete the names of models and add-ons in a repository on the hub."""
    return of(*_names(lambda entry: entry.repo is not None))(incomplete)


def removable_model(incomplete: str) -> list[str]:
    """Complete the names of models and add-ons that are named by the user, or downloaded."""
    return of(*_names(lambda entry: entry.origin != registry.SHIPPED or entry.repo is not None))(incomplete)


def lora_name(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of LoRAs, without those that are made for another family than the model."""
    names = of(*lora.NAMES.all())(incomplete)
    with suppress(SdcliError):
        model = located.find(config.model(ctx.params.get("model")))
        return [each for each in names if _fits(each, model)]
    return names


def _fits(name: str, model: located.LocatedModel) -> bool:
    """Whether a LoRA fits a model as far as its names and shapes show; one that is not on this machine does."""
    try:
        lora.check_fit(name, lora.locate(name), model)
    except ModelNotFound:
        return True
    except SdcliError:
        return False
    return True


def embedding_name(incomplete: str) -> list[str]:
    """Complete the names of embeddings."""
    return of(*embedding.NAMES.all())(incomplete)


def upscaler_name(incomplete: str) -> list[str]:
    """Complete the names of upscalers, with that of the filter."""
    return of("lanczos", *upscaler.NAMES.all())(incomplete)


def hires_upscaler(incomplete: str) -> list[str]:
    """Complete what enlarges a picture between two passes."""
    return of(*parts.UPSCALERS, *upscaler.NAMES.all())(incomplete)


def ip_adapter_name(incomplete: str) -> list[str]:
    """Complete the names of IP-Adapters."""
    return of(*ip_adapter.NAMES.all())(incomplete)


def control(incomplete: str) -> list[str]:
    """Complete `NAME=` of a ControlNet; the shell completes the image after it."""
    return of(*(f"{name}=" for name in registry.names(registry.CONTROLNET)))(incomplete)


def vae(incomplete: str) -> list[str]:
    """Complete the names of autoencoders."""
    return of(*registry.names(registry.VAE))(incomplete)


def part(incomplete: str) -> list[str]:
    """Complete `PART=` of a part of a model; the shell completes the path after it."""
    return of(*(f"{name}=" for name in PARTS))(incomplete)


def matrix(incomplete: str) -> list[str]:
    """Complete the key, or the last value, of `KEY=V1,V2`."""
    from sdcli.jobs.expand import MATRIX_KEYS

    kept = os.environ.get(_KEY, "")
    key, equals, listed = f"{kept}{incomplete}".partition("=")
    if not equals:
        return of(*(f"{each}=" for each in MATRIX_KEYS))(incomplete)
    before, comma, _ = listed.rpartition(",")
    given = f"{key}={before}{comma}".removeprefix(kept)
    return of(*(f"{given}{each}" for each in _choices(key)))(incomplete)


def _names(wanted: Callable[[registry.ModelEntry], bool]) -> list[str]:
    return [name for name, entry in registry.known().items() if wanted(entry)]


def _choices(key: str) -> Iterable[str]:
    if key == "model":
        return registry.names()
    return recipe.choices(key) if key in tuple(recipe.keys()) else ()


_RETURN = "    return 0\n"
_NO_SPACE = "    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null\n"
"""After a `KEY=` alone bash would add a space."""


def prepare(environment: MutableMapping[str, str], arguments: Sequence[str]) -> None:
    """Prepare a run that completes words for a shell, or prints or installs its script; does nothing in other runs."""
    join_words(environment)
    if _VARIABLE in environment or {"--install-completion", "--show-completion"} & {*arguments}:
        with suppress(ImportError, AttributeError, KeyError):  # typer has no public way to change its script
            from typer import _completion_classes, _completion_shared

            script = _completion_shared._completion_scripts["bash"]
            if _NO_SPACE not in script:
                script = script.replace(_RETURN, f"{_NO_SPACE}{_RETURN}")
            _completion_shared._completion_scripts["bash"] = script
            _completion_classes.BashComplete.source_template = script


def join_words(environment: MutableMapping[str, str]) -> None:
    """Join the words of a command line that bash has split at `=` and `:`, before they are parsed.

    If the last one is `KEY=VALUE`, the value remains, which is what bash replaces.
    """
    if environment.get(_VARIABLE) != "complete_bash" or not environment.get("COMP_CWORD", "").isdigit():
        return
    words = environment.get("COMP_WORDS", "").split("\n")
    if len(words) == 1:
        return
    joined: list[str] = []
    last = int(environment["COMP_CWORD"])
    for index, word in enumerate(words[: last + 1]):
        glued = index > 0 and (word in _BREAKS or words[index - 1] in _BREAKS)
        if glued and joined:
            joined[-1] += word
        else:
            joined.append(word)
    if "=" in joined[-1] and not joined[-1].startswith("-"):
        key, equals, joined[-1] = joined[-1].partition("=")
        environment[_KEY] = f"{key}{equals}"
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(joined), str(len(joined) - 1)
