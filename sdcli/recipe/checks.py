"""Checks whether a recipe fits a model, given values of the model's configs. Knows nothing of files."""

from __future__ import annotations

from sdcli.errors import InvalidRecipe, ModelCorrupt
from sdcli.recipe.labels import Labels
from sdcli.recipe.parts import Condition


def check_size(width: int, height: int, multiple: int, *, square: bool = False) -> None:
    """Raise InvalidRecipe, with valid sizes in the hint, unless both sides are multiples of `multiple` pixels.

    With `square` they must be equal too.
    """
    for name, side in (("width", width), ("height", height)):
        if side % multiple:
            below, above = side - side % multiple, side - side % multiple + multiple
            raise InvalidRecipe(
                f"{name} is {side}, and this model needs multiples of {multiple} pixels",
                f"the nearest valid sizes are {below} and {above}",
                name,
            )
    if square and width != height:
        less, more = sorted((width, height))
        raise InvalidRecipe(
            f"the size is {width}×{height}, and this model only makes squares",
            f"the nearest valid sizes are {less}×{less} and {more}×{more}",
            "width",
        )


def check_tile(tile: int | None, multiple: int) -> None:
    """Raise InvalidRecipe unless the side of a tile, if there are any, is a multiple of `multiple` pixels."""
    if tile is not None and tile % multiple:
        below, above = tile - tile % multiple, tile - tile % multiple + multiple
        what = f"tile is {tile}, and this model needs multiples of {multiple} pixels"
        raise InvalidRecipe(what, f"the nearest valid ones are {below} and {above}", "tile")


def check_clip_skip(clip_skip: int, layers: int, *, penultimate: bool) -> None:
    """Raise InvalidRecipe for a `clip_skip` that a text encoder of `layers` does not have.

    `penultimate`: the model was trained with the second to last layer (SDXL), and `clip_skip` counts from there.
    """
    most = layers - 1 if penultimate else layers
    if clip_skip > most:
        raise InvalidRecipe(
            f"clip_skip is {clip_skip}, and this model's text encoder has {layers} layers",
            f"clip_skip must be between 1 and {most}",
            "clip_skip",
        )


def check_prompt_options(condition: Condition) -> None:
    """Raise InvalidRecipe for a `clip_skip` with a model that does not encode prompts by CLIP alone."""
    if condition.clip_skip > 1:
        message = f"clip_skip is {condition.clip_skip}, and this model has another kind of text encoder"
        raise InvalidRecipe(message, "omit clip_skip", "clip_skip")


def check_references_fit(count: int, least: int, most: int) -> None:
    """Raise InvalidRecipe unless a model that takes `least` to `most` reference images gets `count` of them."""
    if count > most:
        images = "image" if most == 1 else "images"
        takes = f"at most {most} reference {images}, not {count}" if most else "no reference images"
        hint = "give fewer images" if most else "use a model that edits, such as -m flux2-klein, or sdcli img2img"
        raise InvalidRecipe(f"this model takes {takes}", hint, "reference")
    if count < least:
        raise InvalidRecipe("this model edits images, and there is none", "use sdcli edit IMAGE PROMPT", "reference")


def check_condition(known: Labels | None, condition: Condition) -> int | None:
    """Return the index of the class that `condition` names, or None if the model takes a text.

    Raises InvalidRecipe for a label with a text model, a text with a class-conditional model, or an unknown class.
    """
    if known is None:
        if condition.label is not None:
            hint = "give a PROMPT, or use a class-conditional model, such as -m ldm-imagenet"
            raise InvalidRecipe("this model takes a text, not a label", hint, "label")
        return None
    if condition.label is None:
        example = known.name(min(279, len(known.names) - 1))
        hint = f"give one of its {len(known.names)} classes, such as --label {example!r}, or use another model"
        raise InvalidRecipe("this model takes a class label, not a text", hint, "prompt")
    return known.find(condition.label)


def check_channels(
    in_channels: int,
    latent_channels: int,
    classes: int = 0,
    *,
    masked: bool,
    mapped: bool = False,
    concatenates: bool = True,
) -> None:
    """Raise InvalidRecipe unless a network with `in_channels` takes the channels of a picture's context.

    Only a U-Net `concatenates`, and so can have further ones.

    A U-Net for segmentation maps takes one channel for each of its `classes`, and needs a map. Otherwise, a masked
    picture has a mask and the masked image's latents; a U-Net without further channels can inpaint too. Any other
    picture has no further channels.

    Raises ModelCorrupt if the number of classes differs from the number of channels.
    """
    extra = in_channels - latent_channels
    if extra < 0 or (extra and not concatenates) or (not classes and extra > latent_channels + 1):
        what = f"the model's network takes latents of {in_channels} channels, and its VAE has {latent_channels}"
        raise InvalidRecipe(what, "use the VAE of a model of the same family", "model")
    if classes and extra != classes:
        raise ModelCorrupt(
            f"the model's classes.json lists {classes} classes, and its U-Net has {extra} channels for them",
            "download the model's folder again; both must belong together",
        )
    if (classes and mapped) or (not classes and (extra == 0 or (masked and extra == latent_channels + 1))):
        return
    if classes:
        takes, hint = f"a segmentation map of {classes} classes", "use sdcli synthesize, or another model"
    elif extra == latent_channels + 1:
        takes = "a mask and a masked image's latents, so it can only inpaint"
        hint = "use sdcli inpaint, or another model"
    else:
        takes = f"{in_channels} channels, and {extra} of them are unknown"
        hint = f"use a model whose U-Net takes {latent_channels}, or {2 * latent_channels + 1} to inpaint"
    raise InvalidRecipe(f"this model's U-Net takes {takes}", hint, "model")
