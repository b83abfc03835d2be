"""Replaying: from a picture to its recipe, and comparing the result. Loads PIL, and no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sdcli import __version__
from sdcli.diffusion.context import weights
from sdcli.errors import InputError, ModelNotFound, SdcliError
from sdcli.files import foreign, upscaled
from sdcli.files.metadata import SOFTWARE, UPSCALED, PictureInfo, installed_version, read
from sdcli.files.reading import Files, file_bytes
from sdcli.models import addons, located, other_names, registry
from sdcli.models.addons import lora
from sdcli.models.digest import file_sha256, tensors_sha256
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelFacts
from sdcli.models.weights import Weights
from sdcli.planning import found_files, resolve
from sdcli.planning.command_line import command_of
from sdcli.planning.warnings import RecipeWarning
from sdcli.recipe.lora import file_stem
from sdcli.recipe.recipe import MAX_SEED, Recipe, keys, loading_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_HASH = re.compile(r"[0-9a-f]{10,64}")  # the first digits of a file's SHA-256
_EXECUTION = ("device", "dtype", "threads", "batch_size")


@dataclass(frozen=True)
class Recorded:
    """A picture and the recipes that make it again: its own, or those of its batch.

    `data` is the content of its file, and `files` reads its inputs.
    """

    path: str
    found: PictureInfo
    model: LocatedModel
    weights: Weights
    recipes: Sequence[Recipe]
    index: int
    warnings: tuple[RecipeWarning, ...]
    data: bytes = b""
    files: Files = field(default_factory=Files)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the picture."""
        return self.recipes[self.index]


def command_of_picture(path: str, data: bytes, found: PictureInfo) -> str | None:
    """Return the command that makes a picture; None where it says too little, or names a model that is not here.

    `data` is the file's content, and `found` its metadata.
    """
    named = (found.recipe or {}).get("model")
    try:
        source = read_recorded(path, named if isinstance(named, str) else None, data=data, found=found)
    except SdcliError:
        return None
    return command_of(source.model, source.recipes)


def read_recorded(
    path: str,
    model: str | None = None,
    *,
    data: bytes | None = None,
    found: PictureInfo | None = None,
    images: Sequence[str] = (),
    **execution: Any,
) -> Recorded:
    """Read the metadata of the picture at `path` as recipes for this machine.

    `model` replaces the recorded model, and `execution` (flat keys) the recorded device, dtype and threads; `data` is
    the file's content and `found` its metadata, if they were already read, and `images` are files to look for its
    inputs in. Raises InputError if the metadata are incomplete or an input is missing, ModelNotFound if the model is
    not on this machine, and InvalidRecipe if the recipe does not fit the model.
    """
    data = file_bytes(path) if data is None else data
    found = read(path, data) if found is None else found
    if found.recipe is not None:
        recipe, warnings = _ours(found)
        recipe["model"] = model or _our_model(path, found)
    else:
        recipe, warnings = _theirs(path, found, model)
    warnings += [RecipeWarning(each, "the picture can be replayed without it", "image") for each in found.skipped]
    if upscaled.pixels_before(found.chunk) is not None:
        how = ", ".join(upscaled.described(found.chunk))
        message = f"{path} was enlarged after it was made ({how}), and is made without that"
        warnings.append(RecipeWarning(message, "enlarge it with sdcli upscale", "image"))
    recipe |= execution
    files = Files()
    recipe = found_files.with_weights(path, recipe, found.chunk.get("addons"))
    recipe = found_files.with_inputs(path, recipe, files, images)
    entry = registry.find(recipe["model"])
    try:
        place = located.locate(registry.with_parts(entry, loading_of(recipe).places))
    except ModelNotFound as error:
        raise ModelNotFound(error.message, f"{error.hint}; or select the model with -m") from error
    if found.recipe is None:
        recipe |= _clip_skip(found, recipe, place.facts)
    whole = resolve.resolve(place, recipe, user=False, files=files)
    resolved = whole.recipe
    if found.recipe is None:
        warnings += _of_text(found, resolved, place.facts, whole.weights)
    seeds, index = _batch(found, resolved)
    if resolved.execution.batch_size > 1 and len(seeds) == 1:
        warnings.append(
            RecipeWarning(
                f"the picture was made in a batch of {resolved.execution.batch_size}, and is made without the others",
                "its metadata do not have the seeds of the others",
                "batch_size",
            )
        )
    recipes = [resolved.replace(seed=seed, batch_size=len(seeds)) for seed in seeds]
    warnings += whole.inputs.warnings
    return Recorded(path, found, place, whole.weights, recipes, index, tuple(warnings), data, files)


def _ours(found: PictureInfo) -> tuple[dict[str, Any], list[RecipeWarning]]:
    assert found.recipe is not None
    known = set(keys())
    return {key: value for key, value in found.recipe.items() if key in known}, list(unknown_keys(found))


def unknown_keys(found: PictureInfo) -> Iterator[RecipeWarning]:
    """Warn about each unknown key in sdcli's chunk."""
    chunk = {key for key in found.chunk if key not in CHUNK_KEYS}
    for key in sorted({*(found.recipe or {}), *chunk} - set(keys())):
        yield RecipeWarning(
            f"unknown metadata key {key!r} is not used", "it may have been written by a newer sdcli", key
        )


CHUNK_KEYS = ("recipe", "software", "pixels_sha256", "model_digest", "addons", "batch", UPSCALED)


def _our_model(path: str, found: PictureInfo) -> str:
    """Return the recorded model, whose files can be next to the picture. Raises ModelNotFound."""
    assert found.recipe is not None
    content = found.recipe.get("model")
    if not isinstance(content, str) or not content:
        raise ModelNotFound(f"{path} does not record its model", "select it with -m")
    content = found_files.where(path, content)
    try:
        registry.find(content)
    except ModelNotFound as error:
        raise ModelNotFound(
            f"{path} was made with {content[:80]!r}, which is not on this machine", "select it with -m"
        ) from error
    return content


def _theirs(path: str, found: PictureInfo, model: str | None) -> tuple[dict[str, Any], list[RecipeWarning]]:
    content = foreign.translate(found)
    if content is None and found.writer != "other":
        hint = f"see what is known of it with: sdcli info {path}"
        raise InputError(f"{path} was made by {found.writer}, whose metadata cannot be replayed", hint)
    if content is None:
        raise InputError(
            f"{path} has no recipe in its metadata", "only pictures with a recipe in their metadata can be replayed"
        )
    seed = content.recipe.get("seed")
    if seed is None:
        raise InputError(f"{path} has no seed in its metadata", "it cannot be replayed without its seed")
    if seed > MAX_SEED:
        hint = "make another picture of its prompt with sdcli generate"
        raise InputError(f"{path} has the seed {seed}, and the largest one is {MAX_SEED}", hint)
    chosen = model or other_names.find_model(content.model, content.model_hash, Path(path).parent)
    if chosen is None:
        name = content.model or content.model_hash or "a model that is not recorded"
        raise ModelNotFound(f"{path} was made with {name}, which is not on this machine", "select the model with -m")
    recipe = {"width": found.width, "height": found.height, **content.recipe, "model": chosen}
    return recipe, [
        RecipeWarning(each, "it cannot be reproduced", each.partition(":")[0]) for each in content.unhonoured
    ]


def _clip_skip(found: PictureInfo, recipe: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Return the clip skip that the tool used with this model, if that is not what it recorded."""
    if not facts.knows_sizes or "clip_skip" not in recipe:
        return {}
    return {"clip_skip": foreign.sdxl_clip_skip(found, recipe["clip_skip"])}


def _of_text(found: PictureInfo, recipe: Recipe, facts: ModelFacts, used: Weights) -> Iterator[RecipeWarning]:
    """Warn about what other tools do differently with the texts of this recipe."""
    condition, guided = recipe.condition, facts.is_guided(recipe.sampling.guidance_scale)
    if condition.label is not None or not facts.prompts.syntax:
        return
    if condition.clip_skip > 1 and guided:
        yield RecipeWarning(
            f"Clip skip: {found.writer} skips layers for the negative prompt too, and sdcli does not",
            "it cannot be reproduced",
            "clip_skip",
        )
    from sdcli.planning import dry_run

    for key in ("prompt", "negative_prompt") if guided else ("prompt",):
        text = getattr(condition, key)
        alone = recipe.replace(prompt=text, negative_prompt="")
        parts = len(weights.parse(text)) if condition.prompt_weights else 1
        tokens = dry_run.count_tokens(used, alone)
        if tokens is not None and tokens["chunks"] > parts:
            yield RecipeWarning(
                f"{key}: it takes several chunks, and {found.writer} may divide it at other places, such as commas",
                "it cannot be reproduced",
                key,
            )


def other_weights(origin: Recorded) -> Iterator[RecipeWarning]:
    """Warn if the model or an add-on differs from the one that the picture was made with.

    Separate from `read_recorded`, because it reads the model's files to compute their digest.
    """
    found, place, hint = origin.found, origin.model.source, "select the original model with -m"
    now, then = place.sha256, found.chunk.get("model_digest")
    if isinstance(then, str) and then != now:
        yield RecipeWarning(_changed("the model", then, now), hint, "model")
    content = foreign.translate(found) if found.recipe is None else None
    if content is not None and place.is_file and _HASH.fullmatch(content.model_hash):
        own = file_sha256(place.path)  # of the file, without replaced parts
        if not own.startswith(content.model_hash):
            problem = f"Model hash: {content.model_hash} is not that of {origin.recipe.model}, {own[:12]}…"
            yield RecipeWarning(problem, hint, "model")
    for kind, each in _changed_addons(origin.weights, found.chunk.get("addons")):
        yield RecipeWarning(each, "install the original one", kind)
    if found.recipe is None:
        yield from _other_loras(found, origin.weights)


def _other_loras(found: PictureInfo, weights: Weights) -> Iterator[RecipeWarning]:
    """Warn about LoRAs that do not have the hash that A1111 recorded."""
    recorded = foreign.hashes_of(found.fields.get("Lora hashes", ""))
    for each in weights.of_kind(lora.KIND):
        then, path = recorded.get(file_stem(each.name)), each.source.path
        if then is not None and not tensors_sha256(path).startswith(then) and not each.source.sha256.startswith(then):
            problem = f"Lora hashes: {each.name} is not the file with the hash {then}"
            yield RecipeWarning(problem, "install the original one", "lora")


def _batch(found: PictureInfo, recipe: Recipe) -> tuple[list[int], int]:
    """Return the seeds of the picture's batch and its index there; only its own seed if they are not recorded."""
    content = found.chunk.get("batch")
    if isinstance(content, Mapping):
        seeds, index = content.get("seeds"), content.get("index")
        seeds = seeds if isinstance(seeds, list) else []
        whole = all(type(seed) is int and 0 <= seed <= MAX_SEED for seed in seeds)
        if whole and type(index) is int and 0 <= index < len(seeds) and seeds[index] == recipe.seed:
            return seeds, index
    return [recipe.seed], 0


def _changed(what: str, then: object, now: str) -> str:
    return f"{what} is not what the picture was made with: sha256 {str(then)[:12]}… then, {now[:12]}… now"


def _changed_addons(weights: Weights, then: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind of each add-on that differs from the recorded one, with a message."""
    recorded = found_files.digests(then)
    for addon in weights.addons:
        before = recorded.get((addon.kind, PurePath(addon.name).name), addon.source.sha256)
        if before != addon.source.sha256:
            yield (
                addon.kind,
                _changed(f"the {addons.KINDS[addon.kind].title} {addon.name}", before, addon.source.sha256),
            )


def reasons(origin: Recorded, made: Recipe, pixels_sha256: str) -> list[str]:
    """Yield the reasons why a replay can differ: what has changed since the picture was made."""
    found = origin.found
    chunk = found.chunk
    if chunk.get("pixels_sha256") == pixels_sha256:
        return ["the file was changed later: the replay has the pixels that were written originally"]
    told = []
    if found.intact is False:
        told.append("the file's pixels were changed")
    if found.recipe is None:
        told.append(f"{found.writer} made it, with other arithmetic and noise")
        told += [warning.message for warning in (*origin.warnings, *other_weights(origin))]
    if found.format not in ("PNG", "TIFF", "BMP"):
        told.append(f"{found.format} changes pixels")
    then, now = dict(found.recipe or {}), made.to_dict()
    told += [f"{key}: {then[key]} then, {now[key]} now" for key in _EXECUTION if key in then and then[key] != now[key]]
    ways = [each.get("tiling", "off") for each in (then, now)]
    if then and ways[0] != ways[1]:
        told.append(f"tiling: {ways[0]} then, {ways[1]} now")
    digest = origin.model.source.sha256
    if chunk.get("model_digest", digest) != digest:
        told.append(_changed("the model", chunk["model_digest"], digest))
    told += [what for _, what in _changed_addons(origin.weights, chunk.get("addons"))]
    here = {"sdcli": __version__, **{name: installed_version(name) for name in SOFTWARE}}
    told += [
        f"{name}: {number} then, {here[name]} now"
        for name, number in found.software.items()
        if name in here and here[name] != number
    ]
    return told or ["no recorded value differs; another processor can round differently"]
