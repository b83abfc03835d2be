"""From flat options to a complete recipe, with settings and inputs, checked against its model.

Reads configs, images and maps, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from sdcli import config
from sdcli.config import Setting
from sdcli.errors import InvalidRecipe
from sdcli.files import inputs
from sdcli.files.inputs import Inputs
from sdcli.files.reading import Files
from sdcli.models import addons
from sdcli.models.addons import controlnet, embedding, lora
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry, ModelFacts
from sdcli.models.weights import Weights
from sdcli.recipe import recipe
from sdcli.recipe.bounds import check_area
from sdcli.recipe.checks import (
    check_channels,
    check_condition,
    check_prompt_options,
    check_references_fit,
    check_size,
    check_tile,
)
from sdcli.recipe.lora import extract
from sdcli.recipe.parts import MIN_SIDE, ImagePrompts, Initial, Layout, References
from sdcli.recipe.recipe import (
    Recipe,
    adapters_of,
    draw_seed,
    enlarging_of,
    image_prompts_of,
    initial_of,
    layout_of,
    references_of,
)
from sdcli.recipe.schedulers import check as check_scheduler
from sdcli.recipe.skip_layers import SkipLayers

if TYPE_CHECKING:
    from sdcli.files.canvas import InitialImage
    from sdcli.files.latent_files import LatentFile

# Built-in defaults.
DEFAULTS: Mapping[str, Any] = {"steps": 25, "guidance_scale": 7.0, "scheduler": "dpm++-2m"}


def settings(
    entry: ModelEntry, options: Mapping[str, Any], facts: ModelFacts | None, *, user: bool = True
) -> dict[str, Setting]:
    """Return every recipe key with its value and source; sdcli/config.py explains the order.

    `options` are flat keys. Without `facts` the native size is unknown. `user=False` ignores the user's settings, for
    recipes that are complete. Raises UsageError for invalid settings.
    """
    recorded = config.read().defaults if user else {}
    around = config.environment() if user else {}
    native = {} if facts is None else {"width": facts.native_size, "height": facts.native_size, **facts.defaults}
    layers: list[Mapping[str, Setting]] = [
        _built_in(),
        config.at(native, "model"),
        config.at(entry.defaults, "models.toml"),
        {key: each for key, each in recorded.items() if key not in config.GENERAL},
        config.at(entry.needs, "models.toml"),
        entry.user_defaults if user else {},
        {key: each for key, each in around.items() if key not in config.GENERAL},
        config.at(options, "option"),
    ]
    settled = config.settle(layers)
    of_loras = lora.settings(adapters_of({"lora": settled["lora"].value}))
    return config.settle([*layers[:-2], config.at(of_loras, "LoRA"), *layers[-2:]]) if of_loras else settled


@cache
def _built_in() -> Mapping[str, Setting]:
    return config.at({**recipe.defaults(), **DEFAULTS}, "built-in")


@dataclass(frozen=True)
class Resolved:
    """A complete recipe and what it names: model, weights and inputs. Nothing is looked up again."""

    recipe: Recipe
    model: LocatedModel
    weights: Weights
    inputs: Inputs

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the picture, which can be those of the first reference image."""
        if self.recipe.references.match_reference:
            return self.inputs.references[0].picture.size
        return self.recipe.size


def resolve(
    model: LocatedModel,
    options: Mapping[str, Any],
    *,
    user: bool = True,
    given: InitialImage | None = None,
    files: Files | None = None,
    find_addon: addons.Find | None = None,
    embeddings: Sequence[str] | None = None,
    to_load: bool = False,
) -> Resolved:
    """Complete the recipe of `options` (flat keys) for `model` from `settings`, and find its add-ons and inputs.

    The seed is random if there is none, and an image is read from its path, by `files`, unless it is `given`.
    `find_addon` (see `addons.locate`), and `embeddings`, the names of those on this machine, are for callers that
    resolve many recipes. With `to_load`, the recipe only serves for loading the model, and lacks what the model needs
    besides a prompt, such as a mask. Raises InvalidRecipe for options that are invalid together or with the model,
    InputError for unreadable images, maps and latents, ModelError for missing or unusable add-ons, and UsageError for
    settings.
    """
    for key in ("width", "height"):  # from which other values follow
        if options.get(key) is not None:
            recipe.check_value(key, options[key])
    check_area(options.get("width") or 1, options.get("height") or 1)
    facts, options = model.facts, _with_tags(model, options, user=user)
    if user and facts.prompts.syntax:
        options = _with_embeddings(model, options, embedding.NAMES.all() if embeddings is None else embeddings)
    masked, mapped = initial_of(options).repaints, options.get("segmentation_map") is not None
    check_channels(
        *(facts.in_channels, facts.latent_space.channels, len(facts.classes)),
        masked=masked or to_load,
        mapped=mapped or to_load,
        concatenates=model.source.denoiser == "unet",
    )
    layout = layout_of(options)
    if mapped:
        layout = _with_reader(layout, model)
        options = {**options, "control": list(layout.control)}
    values = _values(model, options, user=user)
    weights = addons.locate(model, values, find_addon)
    initial = initial_of(options)
    if initial.image is not None:
        initial = initial_of(values)
    references = references_of(options)
    least = 0 if to_load else facts.least_references
    check_references_fit(len(references.reference), least, facts.most_references)
    prompts = image_prompts_of(options)
    inputs = read_inputs(initial, layout, references, prompts, facts, weights, files=files, given=given)
    completed = _completed(model, options, initial, layout, inputs, user=user)
    if completed is not options:
        values = _values(model, completed, user=user)
    made = Recipe.from_dict({"seed": draw_seed(), **values})
    index = check_condition(facts.labels, made.condition)
    if facts.labels is not None and index is not None:
        made = made.replace(label=facts.labels.name(index))
    if made.flow.skip_layer_guidance is not None and facts.skippable_layers:
        SkipLayers.parse(made.flow.skip_layer_guidance).check_fits(facts.skippable_layers)
    if not facts.prompts.syntax:
        check_prompt_options(made.condition)
    check_size(made.width, made.height, facts.size_multiple, square=facts.square_only)
    check_tile(made.enlarging.tile, facts.size_multiple)
    if made.hires.hires is not None:
        made = _with_hires(made, facts)
    sampling = made.sampling
    for steps in {sampling.steps, made.hires.hires_steps or sampling.steps}:
        check_scheduler(sampling.scheduler, sampling.sigmas, sampling.eta, facts.scheduler_config, steps)
    return Resolved(made, model, weights, inputs)


def inputs_of(of: Recipe, facts: ModelFacts, weights: Weights, *, files: Files | None = None) -> Inputs:
    """Read the files of a recipe; see `files.inputs.read`."""
    return read_inputs(of.initial, of.layout, of.references, of.image_prompts, facts, weights, files=files)


def read_inputs(
    initial: Initial,
    layout: Layout,
    references: References,
    prompts: ImagePrompts,
    facts: ModelFacts,
    weights: Weights,
    *,
    files: Files | None = None,
    given: InitialImage | None = None,
) -> Inputs:
    """Read the files of these parts of a recipe; see `files.inputs.read`."""
    nets = {each.name: each.source for each in weights.of_kind(controlnet.KIND)}
    palettes = [facts.classes] if facts.classes else []
    palettes += [controlnet.classes(nets[each.name]) for each in layout.controls if each.image is None]
    return inputs.read(
        initial,
        layout,
        references,
        prompts,
        palettes=palettes,
        latent_channels=facts.latent_space.channels,
        scaling_factor=facts.latent_space.scaling_factor,
        files=files,
        given=given,
    )


def _with_hires(made: Recipe, facts: ModelFacts) -> Recipe:
    """Replace a factor by the size that it gives, and check that size."""
    if facts.square_only:
        raise InvalidRecipe("this model only makes pictures of one size", "omit hires", "hires")
    width, height = made.hires.size(made.width, made.height, facts.size_multiple)
    check_size(width, height, facts.size_multiple)
    return made.replace(hires=f"{width}x{height}")


def _with_tags(model: LocatedModel, options: Mapping[str, Any], *, user: bool) -> Mapping[str, Any]:
    """Move the tags in the prompt, `<lora:name:0.8>`, to `lora`, after the LoRAs of the settings."""
    prompt = options.get("prompt")
    text, tagged = extract(prompt) if isinstance(prompt, str) else (prompt, [])
    if not tagged:
        return options
    values = _values(model, options, user=user)
    if not values["prompt_weights"]:
        return options
    return {**options, "prompt": text, "lora": [*adapters_of({"lora": values["lora"]}).lora, *map(str, tagged)]}


def _with_embeddings(model: LocatedModel, options: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Add the embeddings among `names` that are in the prompts."""
    texts = [options.get(key) for key in ("prompt", "negative_prompt")]
    found = embedding.found_in([text for text in texts if isinstance(text, str)], names)
    if not found:
        return options
    given = adapters_of({"embedding": _values(model, options, user=True)["embedding"]}).embedding
    return {**options, "embedding": [*given, *(name for name in found if name not in given)]}


def _values(model: LocatedModel, options: Mapping[str, Any], *, user: bool) -> dict[str, Any]:
    """Return the values of the `settings` for a model on this machine."""
    return {key: each.value for key, each in settings(model.entry, options, model.facts, user=user).items()}


def _with_reader(layout: Layout, model: LocatedModel) -> Layout:
    """Add a ControlNet for the map, unless the model or a given ControlNet reads maps."""
    if model.facts.classes or any(each.image is None for each in layout.controls):
        return layout
    return replace(layout, control=(controlnet.for_maps(model), *layout.control))


def _completed(
    model: LocatedModel, options: Mapping[str, Any], initial: Initial, layout: Layout, found: Inputs, *, user: bool
) -> Mapping[str, Any]:
    """Add values from the inputs: working size, strength, sha256."""
    facts = model.facts
    if found.prompts:
        options = {**options, "image_prompt_sha256": [each.sha256 for each in found.prompts]}
    if found.references:
        options = _with_references(found, options, size=_own_size(model), multiple=model.facts.size_multiple)
    if found.image is None and layout == Layout():
        file = str(initial.init_latents)
        return options if found.latents is None else _with_latents(file, found.latents, options, facts)
    size = _own_size(model)
    if found.image is not None:
        from sdcli.files import canvas  # Pillow and numpy are only needed for an image

        recorded = _values(model, options, user=user)
        kept = {key: recorded.get(key) for key in ("padding", "strength")}
        if facts.square_only:
            side = options.get("width") or options.get("height") or size[0]
            options = {"width": side, "height": side, **options}
        options = _with_enlarging(found.image, options, size, facts.size_multiple)
        options = canvas.complete(found.image, {**kept, **options}, size, facts.size_multiple)
    elif found.latents is not None:
        options = _with_latents(str(initial.init_latents), found.latents, options, facts)
    if layout != Layout():
        from sdcli.planning import layouts

        options = layouts.complete(options, found, size, facts.size_multiple)
    return options


def _with_enlarging(
    image: InitialImage, options: Mapping[str, Any], native: tuple[int, int], multiple: int
) -> Mapping[str, Any]:
    """Add the size to which the image is enlarged, the working size, and tiles of the model's own size."""
    enlarging = enlarging_of(options)
    if enlarging.enlarge is None:
        return options
    own = image.image.size
    width, height = enlarging.target(*own)
    if min(width / own[0], height / own[1]) < 1 or (width, height) == own:
        what = f"the image is {own[0]}×{own[1]}, which {width}×{height} does not enlarge"
        raise InvalidRecipe(what, "give a larger size; sides cannot be smaller than the image's", "enlarge")
    sides = {"width": -(-width // multiple) * multiple, "height": -(-height // multiple) * multiple}
    check_area(*sides.values(), what="the enlarged image", field="enlarge")
    for key, side in sides.items():
        if options.get(key) not in (None, side):
            raise InvalidRecipe(f"{key} is {options[key]}, and the enlarged image needs {side}", f"omit {key}", key)
    least = {key: max(side, MIN_SIDE) for key, side in sides.items()}
    tile = {} if options.get("tile") else {"tile": max(native)}
    return {**options, "enlarge": f"{width}x{height}", **least, **tile}


def _own_size(model: LocatedModel) -> tuple[int, int]:
    own = _values(model, {}, user=False)
    return own["width"], own["height"]


def _with_references(
    found: Inputs, options: Mapping[str, Any], *, size: tuple[int, int], multiple: int
) -> dict[str, Any]:
    """Add values from the reference images: sha256, and without a size that of the first one."""
    from sdcli.files import canvas  # Pillow and numpy are only needed for an image

    given = {key: value for key, value in options.items() if value is not None}
    sized = canvas.good_size(found.references[0].picture.size, given, size, multiple)
    matched = "width" not in given and "height" not in given
    digests = [each.sha256 for each in found.references]
    return {**sized, "reference_sha256": digests, "match_reference": matched, **given}


def _with_latents(file: str, found: LatentFile, options: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Add values from the latents: size, strength, sha256."""
    from sdcli.files import canvas  # latents need numpy anyway

    height, width = (side * facts.latent_space.vae_scale_factor for side in found.latents.shape[2:])
    for key, own in (("width", width), ("height", height)):
        if options.get(key) not in (None, own):
            raise InvalidRecipe(
                f"{key} is {options[key]}, and the latents in {file} are those of a picture of {width}×{height}",
                f"omit {key}",
                key,
            )
    recorded = {"width": width, "height": height, "strength": canvas.STRENGTH, "init_latents_sha256": found.sha256}
    return {**recorded, **{key: value for key, value in options.items() if value is not None}}


def any_words(facts: ModelFacts) -> dict[str, str]:
    """Return flat keys of any valid prompt or label for a model with these facts."""
    return {"prompt": ""} if facts.labels is None else {"label": "0"}
