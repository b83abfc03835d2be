"""From flat options to a whole recipe: filled from all that has a say, completed by its inputs, and fit for its model.

Reads configs, images and maps, never weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdcli import config
from sdcli.config import Setting
from sdcli.errors import InvalidRecipe
from sdcli.models.registry import ModelEntry, ModelFacts, facts_of, unet_config
from sdcli.recipe import recipe
from sdcli.recipe.checks import check_channels, check_condition, check_size
from sdcli.recipe.recipe import Recipe, draw_seed, initial_of
from sdcli.recipe.schedulers import check as check_scheduler

if TYPE_CHECKING:
    from sdcli.files.inputs import Inputs

# What a recipe takes where neither the user nor the model's entry says otherwise.
DEFAULTS: Mapping[str, Any] = {"steps": 25, "guidance_scale": 7.0, "scheduler": "dpm++-2m"}


def settings(
    entry: ModelEntry, options: Mapping[str, Any], facts: ModelFacts | None, *, user: bool = True
) -> dict[str, Setting]:
    """Every recipe key that has a value, and where that comes from; sdcli/config.py has the order and its reasons.

    `options` are flat keys. Without `facts` the model's own size is not known. `user=False` leaves out what the user
    has set once for all: for recipes that were complete elsewhere. Raises UsageError for settings that cannot be.
    """
    said = config.read().defaults if user else {}
    around = config.environment() if user else {}
    native = {} if facts is None else {"width": facts.native_size, "height": facts.native_size}
    layers: list[Mapping[str, Setting]] = [
        config.at({**recipe.defaults(), **DEFAULTS}, "built-in"),
        config.at(native, "model"),
        config.at(entry.defaults, "models.toml"),
        {key: each for key, each in said.items() if key not in config.GENERAL},
        config.at(entry.needs, "models.toml"),
        entry.user_defaults if user else {},
        {key: each for key, each in around.items() if key not in config.GENERAL},
        config.at(options, "option"),
    ]
    return config.settle(layers)


def resolve_recipe(
    entry: ModelEntry, options: Mapping[str, Any], *, user: bool = True, given: Inputs | None = None
) -> Recipe:
    """The recipe of `options` (flat keys), filled from `settings`.

    The seed is drawn where none is given, and an image is read from its path unless it is `given`. Raises
    InvalidRecipe where the options do not fit each other or the model, ModelNotFound or ModelCorrupt where the model's
    configs cannot be read, and UsageError for settings.
    """
    facts = facts_of(entry)
    masked, mapped = initial_of(options).repaints, options.get("segmentation_map") is not None
    check_channels(facts.in_channels, facts.latent_space.channels, len(facts.classes), masked=masked, mapped=mapped)
    if options.get("image") is not None:
        options = _with_inputs(entry, options, facts, given, user=user)
    elif options.get("init_latents") is not None:
        options = _with_latents(options, facts)
    if any(options.get(key) for key in recipe.LAYOUT_KEYS):
        options = _with_layout(entry, options, facts, user=user)
    settled = settings(entry, options, facts, user=user)
    values = {key: each.value for key, each in settled.items()}
    made = Recipe.from_dict({"seed": draw_seed(), **values})
    index = check_condition(facts.labels, made.condition)
    if facts.labels is not None and index is not None:
        made = made.replace(label=facts.labels.name(index))
    check_size(made.width, made.height, facts.size_multiple, square=facts.square_only)
    sampling = made.sampling
    check_scheduler(sampling.scheduler, sampling.sigmas, sampling.eta, facts.scheduler_config, sampling.steps)
    return made


def _with_inputs(
    entry: ModelEntry, options: Mapping[str, Any], facts: ModelFacts, given: Inputs | None, *, user: bool
) -> dict[str, Any]:
    """The options with what their image and mask decide: the working size, the strength, their files' sums."""
    from sdcli.files import inputs  # Pillow and numpy, which nothing but an image needs

    home = settings(entry, {}, facts, user=False)
    said = {key: each.value for key, each in settings(entry, options, facts, user=user).items()}
    kept = {key: said.get(key) for key in ("padding", "strength")}
    size = home["width"].value, home["height"].value
    if facts.square_only:
        side = options.get("width") or options.get("height") or size[0]
        options = {"width": side, "height": side, **options}
    return inputs.complete(given or inputs.read(initial_of(said)), {**kept, **options}, size, facts.size_multiple)


def _with_latents(options: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The options with what their latents decide: the picture's size, the strength, the file's sum."""
    from sdcli.files import inputs, latent_files  # numpy

    initial = initial_of(options)
    file = str(initial.init_latents)
    space = facts.latent_space
    found = latent_files.read(file, space.channels, space.scaling_factor, initial.init_latents_sha256)
    height, width = (side * space.vae_scale_factor for side in found.latents.shape[2:])
    for key, own in (("width", width), ("height", height)):
        if options.get(key) not in (None, own):
            raise InvalidRecipe(
                f"{key} is {options[key]}, and the latents in {file} are a picture's of {width}×{height}",
                f"leave {key} away",
                key,
            )
    said = {"width": width, "height": height, "strength": inputs.STRENGTH, "init_latents_sha256": found.sha256}
    return {**said, **{key: value for key, value in options.items() if value is not None}}


def _with_layout(entry: ModelEntry, options: Mapping[str, Any], facts: ModelFacts, *, user: bool) -> Mapping[str, Any]:
    """The options with what their map and control pictures decide."""
    from sdcli.planning import layouts  # Pillow and numpy

    said = {key: each.value for key, each in settings(entry, {}, facts, user=False).items()}
    return layouts.complete(options, unet_config(entry), facts, (said["width"], said["height"]))


def any_words(entry: ModelEntry) -> dict[str, str]:
    """Flat keys of something for the entry's model to draw, whatever it is; raises what `facts_of` raises."""
    return {"prompt": ""} if facts_of(entry).labels is None else {"label": "0"}
