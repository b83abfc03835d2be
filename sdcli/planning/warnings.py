"""Warnings before a picture is made: options without effect, and sizes that a model was not trained on.

With `--strict` the first one is an error. There is no warning about an option that has its default value (`--batch-size
1`, `--eta 0`), only about one that asks for something else and has no effect. Imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields

from sdcli.diffusion import tiling
from sdcli.diffusion.context import weights
from sdcli.errors import InvalidRecipe
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.models.addons import embedding, lora
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelFacts
from sdcli.models.vocabulary import Vocabulary
from sdcli.recipe import prompt_syntax, schedulers
from sdcli.recipe.lora import file_stem
from sdcli.recipe.parts import TEXT_KEYS, Condition, Initial, Layout
from sdcli.recipe.recipe import Recipe
from sdcli.recipe.warning import RecipeWarning as RecipeWarning

MAX_AREA_RATIO = 2.0
MAX_ASPECT = 2.0
MAX_ASPECT_OF_MANY = 4.0
"""SDXL was trained on sizes of 512×2048 to 2048×512 (Podell et al. 2023, "SDXL", appendix I)."""
MAX_SUGGESTIONS = 10
"""Of a prompt with more unknown words, only so many are looked up, however long it is."""


def find(
    model: LocatedModel, recipe: Recipe, inputs: Inputs = NO_INPUTS, *, count: int = 1
) -> tuple[RecipeWarning, ...]:
    """Return the warnings for `count` pictures of `recipe`, and those about its `inputs`."""
    words = _unknown_words(model, recipe)
    syntax = () if model.facts.labels is not None else _of_syntax(model.facts, recipe)
    idle = (*_without_effect(model.facts, recipe, count), *_of_tiling(model, recipe, count))
    found = (*idle, *words, *syntax, *_of_size(model, recipe))
    return (*inputs.warnings, *found)


def raise_first(warnings: Iterable[RecipeWarning]) -> None:
    """Raise the first of `warnings` as InvalidRecipe, for `--strict`."""
    for each in warnings:
        raise InvalidRecipe(each.message, f"{each.hint}; or omit --strict", each.field)


def _without_effect(facts: ModelFacts, recipe: Recipe, count: int) -> Iterable[RecipeWarning]:
    yield from _of_text(facts, recipe)
    sampling = recipe.sampling
    guided = _is_guided(facts, recipe)
    can_guide = not (facts.guidance_distilled or facts.unguided)
    why = "guidance is disabled" if can_guide else "guidance is distilled into this model"
    fix = f"omit it, or set guidance_scale above {facts.guided_above:g}" if can_guide else "omit it"
    fix = "omit it, or set true_cfg_scale above 1" if facts.true_cfg else fix
    if recipe.condition.negative_prompt and not guided and facts.labels is None:
        yield RecipeWarning(f"negative_prompt has no effect: {why}", fix, "negative_prompt")
    if sampling.guidance_rescale and not guided:
        yield RecipeWarning(f"guidance_rescale has no effect: {why}", fix, "guidance_rescale")
    if sampling.guidance_interval is not None and not guided:
        yield RecipeWarning(f"guidance_interval has no effect: {why}", fix, "guidance_interval")
    if facts.unguided and sampling.guidance_scale > 1:
        message = f"guidance_scale {sampling.guidance_scale:g} has no effect: {why}"
        yield RecipeWarning(message, "use 1", "guidance_scale")
    if can_guide and 0 < sampling.guidance_scale < facts.guided_above:
        yield RecipeWarning(
            f"guidance_scale {sampling.guidance_scale:g} has no effect: guidance is disabled at 1 and below",
            "use 1, or more than 1 for guidance",
            "guidance_scale",
        )
    if sampling.eta and not schedulers.uses_eta(sampling.scheduler, facts.scheduler_config, sampling.steps):
        yield RecipeWarning("eta has no effect: a single step adds no noise", "use more steps, or omit eta", "eta")
    if recipe.flow.shift is not None and not facts.is_flow:
        yield RecipeWarning("shift has no effect: this model was not trained by flow matching", "omit it", "shift")
    if recipe.flow.true_cfg_scale is not None and not facts.true_cfg:
        why = "this model's guidance_scale uses the negative prompt" if can_guide else "this model does not support it"
        yield RecipeWarning(f"true_cfg_scale has no effect: {why}", "omit it", "true_cfg_scale")
    if recipe.flow.skip_layer_guidance is not None and not (guided and facts.skippable_layers):
        why = why if facts.skippable_layers else "this model does not support it"
        fix = fix if facts.skippable_layers else "omit it"
        yield RecipeWarning(f"skip_layer_guidance has no effect: {why}", fix, "skip_layer_guidance")
    if recipe.condition.prompt_2 is not None and not facts.prompts.second:
        message = "prompt_2 has no effect: this model has one text encoder"
        yield RecipeWarning(message, "omit it", "prompt_2")
    yield from _of_shortcuts(facts, recipe)
    yield from _idle_controls(recipe)
    yield from _of_loras(recipe)
    yield from _of_embeddings(recipe)
    if recipe.execution.batch_size > count:
        yield RecipeWarning(
            f"batch_size {recipe.execution.batch_size} is larger than the number of pictures, {count}",
            "make more pictures with -n, or use a smaller batch size",
            "batch_size",
        )


def _of_shortcuts(facts: ModelFacts, recipe: Recipe) -> Iterable[RecipeWarning]:
    """Shortcuts that the network does not have, and caches that are not used before they are replaced."""
    cache, steps = recipe.shortcuts.cached, recipe.sampling.steps
    if cache is not None and cache.method != facts.cache:
        hint = f"use {facts.cache}" if facts.cache else "omit it"
        yield RecipeWarning(f"cache {cache} has no effect: this model's network has no such cache", hint, "cache")
    elif cache is not None and 2 * int(steps * (recipe.initial.strength or 1)) - 1 <= cache.first:
        why = "the network is computed as a whole in the few steps there are"
        yield RecipeWarning(f"cache {cache} has no effect: {why}", "use more steps, or omit it", "cache")
    if recipe.shortcuts.token_merging and not facts.merges_tokens:
        why = "only U-Nets with attention merge tokens"
        yield RecipeWarning(f"token_merging has no effect: {why}", "omit it", "token_merging")


def _of_tiling(model: LocatedModel, recipe: Recipe, count: int) -> Iterable[RecipeWarning]:
    """A way of decoding that is asked for and saves nothing."""
    asked, batch = recipe.execution.tiling, min(count, recipe.execution.batch_size)
    if asked == "off" or batch > 1:
        return
    vae_class = str(model.source.config("vae").get("_class_name", ""))
    if asked == "slices":
        yield RecipeWarning("tiling slices has no effect: there is one picture in a batch", "omit it", "tiling")
    elif not tiling.has_tiles(recipe.size, vae_class):
        why = f"the picture is no larger than a tile, {tiling.TILE}×{tiling.TILE}"
        if max(recipe.size) > tiling.TILE:
            why = "the model's VAE has none"
        yield RecipeWarning(f"tiling tiles has no effect: {why}", "omit it", "tiling")


def _is_guided(facts: ModelFacts, recipe: Recipe) -> bool:
    """Return whether the unconditional prediction is used; guidance that is distilled into a model does without."""
    by_true_cfg = facts.true_cfg and (recipe.flow.true_cfg_scale or 1) > 1
    return facts.is_guided(recipe.sampling.guidance_scale) or by_true_cfg


def _idle_controls(recipe: Recipe) -> Iterable[RecipeWarning]:
    """ControlNets without effect. A second-order scheduler has two evaluations per step except the last."""
    steps = max(1, int(recipe.sampling.steps * (recipe.initial.strength or 1)))
    for each in recipe.layout.controls:
        if each.scale == 0:
            yield RecipeWarning(f"control {each} has no effect: its scale is 0", "omit it", "control")
        elif not any(each.covers(index, total) for total in (steps, 2 * steps - 1) for index in range(total)):
            hint = "use a wider range, or more steps"
            yield RecipeWarning(
                f"control {each} has no effect: none of the {steps} steps is in its range", hint, "control"
            )


def _of_loras(recipe: Recipe) -> Iterable[RecipeWarning]:
    """LoRAs with a scale of 0, and those whose trigger words are missing in the prompt."""
    prompt = recipe.condition.prompt.casefold()
    for each in recipe.adapters.loras:
        entry = lora.NAMES.entry_of(each.name)
        if each.scale == each.text_scale == 0:
            yield RecipeWarning(f"lora {each} has no effect: its scale is 0", "omit it", "lora")
        elif entry is not None and entry.trigger is not None:
            words = [word.strip() for word in entry.trigger.split(",")]
            if not any(word.casefold() in prompt for word in words):
                hint = f"add {' or '.join(map(repr, words))} to the prompt"
                yield RecipeWarning(f"the prompt has no trigger word of the LoRA {each.name}", hint, "prompt")


def _of_embeddings(recipe: Recipe) -> Iterable[RecipeWarning]:
    """Embeddings whose names are in no prompt."""
    texts = recipe.condition.prompt, recipe.condition.negative_prompt
    for each in recipe.adapters.embedding:
        word = file_stem(each)
        if not any(embedding.word_pattern([word]).search(text) for text in texts):
            hint = f"write {word!r} where it should be used"
            yield RecipeWarning(f"embedding {each} has no effect: its name is in no prompt", hint, "embedding")


def _of_text(facts: ModelFacts, recipe: Recipe) -> Iterable[RecipeWarning]:
    """Prompts for a model that takes none, and empty prompts."""
    if facts.labels is not None:
        for each in fields(Condition):
            if each.name in TEXT_KEYS and getattr(recipe.condition, each.name) != each.default:
                yield RecipeWarning(f"{each.name} has no effect: this model takes a class label", "omit it", each.name)
    elif not recipe.condition.prompt.strip() and recipe.initial == Initial() and recipe.layout == Layout():
        yield RecipeWarning("the prompt is empty", "give a prompt", "prompt")


def _of_syntax(facts: ModelFacts, recipe: Recipe) -> Iterable[RecipeWarning]:
    """Syntax of other tools that is taken as words, one warning for each kind, and unbalanced brackets."""
    weighted = recipe.condition.prompt_weights  # otherwise brackets are meant as letters
    if weighted and not facts.prompts.syntax:
        yield from _of_idle_weights(facts, recipe)
        weighted = False
    for field in ("prompt", "negative_prompt") if _is_guided(facts, recipe) else ("prompt",):
        text = getattr(recipe.condition, field)
        found = {each.meaning: each.text for each in reversed(list(prompt_syntax.find(text)))}
        for meaning, content in found.items():
            if weighted or meaning not in prompt_syntax.IN_BRACKETS:
                shown = content if len(content) <= 40 else f"{content[:39]}…"
                problem = f"{shown!r} in {field} is taken as words; in other tools it is {meaning}"
                yield RecipeWarning(problem, "write what the picture should show", field)
        bracket = prompt_syntax.unbalanced(text) if weighted else None
        if bracket is not None:
            which = "never closed" if bracket in "([" else "never opened"
            yield RecipeWarning(
                f"{field} has a {bracket} that is {which}", f"fix it, or write \\{bracket} for a literal one", field
            )


def _of_idle_weights(facts: ModelFacts, recipe: Recipe) -> Iterable[RecipeWarning]:
    """Weights in prompts for a model that takes none."""
    for field in ("prompt", "negative_prompt") if _is_guided(facts, recipe) else ("prompt",):
        parts = weights.parse(getattr(recipe.condition, field))
        if len(parts) > 1 or any(stretch.weight != 1 for part in parts for stretch in part):
            problem = f"weights and BREAK in {field} are taken as words: this model does not support them"
            yield RecipeWarning(problem, "remove them, or disable prompt_weights", field)


def _unknown_words(model: LocatedModel, recipe: Recipe) -> Iterable[RecipeWarning]:
    """The words of the prompts that the model does not know, where its folder lists those that it does.

    There is no warning about words of a negative prompt without guidance, which has no effect at all.
    """
    facts = model.facts
    if facts.vocabulary is None or facts.labels is not None:
        return
    for field in ("prompt", "negative_prompt") if _is_guided(facts, recipe) else ("prompt",):
        text = getattr(recipe.condition, field)
        if recipe.condition.prompt_weights:
            text = " ".join(stretch.text for part in weights.parse(text) for stretch in part)
        words = [file_stem(each) for each in recipe.adapters.embedding]
        unknown = facts.vocabulary.unknown(embedding.word_pattern(words).sub(" ", text) if words else text)
        taught = lora.words(recipe.adapters) if unknown else ()
        unknown = tuple(each for each in unknown if each.casefold() not in taught)
        if unknown:
            where = "" if field == "prompt" else f" in {field}"
            named = f"{model.entry.name} does not know {_listed(map(repr, unknown))}{where}"
            hint = f"see what it knows with: sdcli models show {shlex.quote(recipe.model)}"
            yield RecipeWarning(f"{named}{_suggestions(facts.vocabulary, unknown)}", hint, field)


def _suggestions(vocabulary: Vocabulary, unknown: Sequence[str]) -> str:
    near = {word: vocabulary.nearest(word) for word in unknown[:MAX_SUGGESTIONS]}
    found = [repr(each) + (f" for {word!r}" if len(unknown) > 1 else "") for word, each in near.items() if each]
    return f"; did you mean {_listed(found)}?" if found else ""


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _of_size(model: LocatedModel, recipe: Recipe) -> Iterable[RecipeWarning]:
    """Sizes below half or above twice the model's native area, or with an aspect ratio above 1:2.

    SDXL was trained on many aspect ratios, and takes up to 1:4.
    """
    facts, (width, height) = model.facts, recipe.seen_at_once
    own = {**model.entry.defaults, **model.entry.needs}
    native = own.get("width", facts.native_size), own.get("height", facts.native_size)
    ratio = width * height / (native[0] * native[1])
    aspect = max(width, height) / min(width, height)
    most = MAX_ASPECT_OF_MANY if facts.knows_sizes else MAX_ASPECT
    size = f"{width}×{height}"
    field = "width" if width > height else "height"
    if not 1 / MAX_AREA_RATIO <= ratio <= MAX_AREA_RATIO:
        yield RecipeWarning(
            f"{size} is {_times(ratio)} the area that this model was trained on, {native[0]}×{native[1]}",
            "expect repeated or broken objects; use half to twice that area",
            field,
        )
    if aspect > most:
        yield RecipeWarning(
            f"{size} is longer than this model was trained on: 1:{most:g}",
            "expect repeated objects; use sides that differ less",
            field,
        )


def _times(ratio: float) -> str:
    return f"{round(ratio, 1):g} times" if ratio >= 1 else f"1/{round(1 / ratio, 1):g} of"
