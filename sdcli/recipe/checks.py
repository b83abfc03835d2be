"""Whether a recipe fits a model, by numbers and names from the model's configs. Knows nothing of files."""

from __future__ import annotations

from sdcli.errors import InvalidRecipe, ModelCorrupt
from sdcli.recipe.labels import Labels
from sdcli.recipe.recipe import Condition


def check_size(width: int, height: int, multiple: int, *, square: bool = False) -> None:
    """Raise InvalidRecipe, naming valid sizes, unless both sides are multiples of `multiple` pixels.

    With `square` they must be alike too.
    """
    for name, side in (("width", width), ("height", height)):
        if side % multiple:
            below, above = side - side % multiple, side - side % multiple + multiple
            raise InvalidRecipe(
                f"{name} is {side}, and this model makes multiples of {multiple} pixels",
                f"the nearest valid sizes are {below} and {above}",
                name,
            )
    if square and width != height:
        less, more = sorted((width, height))
        raise InvalidRecipe(
            f"the size is {width}×{height}, and this model makes squares only",
            f"the nearest valid sizes are {less}×{less} and {more}×{more}",
            "width",
        )


def check_clip_skip(clip_skip: int, layers: int, *, penultimate: bool) -> None:
    """Raise InvalidRecipe for a `clip_skip` beyond a text encoder of `layers`.

    `penultimate`: the model was trained with the last layer but one (SDXL), from which it counts.
    """
    most = layers - 1 if penultimate else layers
    if clip_skip > most:
        raise InvalidRecipe(
            f"clip_skip is {clip_skip}, and this model's text encoder has {layers} layers",
            f"clip_skip must be between 1 and {most}",
            "clip_skip",
        )


def check_condition(known: Labels | None, condition: Condition) -> int | None:
    """The class that `condition` asks a model of these labels for, None where the model takes a text.

    Raises InvalidRecipe where it takes the other, or has no such class.
    """
    if known is None:
        if condition.label is not None:
            hint = "give a PROMPT, or a model of classes with -m, such as ldm-imagenet"
            raise InvalidRecipe("this model takes a text, and no label", hint, "label")
        return None
    if condition.label is None:
        example = known.name(min(279, len(known.names) - 1))
        hint = f"say which of its {len(known.names)} classes, as with --label {example!r}, or use another model"
        raise InvalidRecipe("this model takes a class label, and no text", hint, "prompt")
    return known.find(condition.label)


def check_channels(
    in_channels: int, latent_channels: int, classes: int = 0, *, masked: bool, mapped: bool = False
) -> None:
    """Raise InvalidRecipe where a U-Net of `in_channels` cannot take what a picture has beside its latents.

    For a U-Net of segmentation maps that is a channel for each of its `classes`, and a map must be there. Else, with a
    mask, it is the mask and the masked image's latents, or nothing, for a U-Net of latents alone inpaints too; and
    without a mask it is nothing.

    Raises ModelCorrupt where the classes are not as many as the channels.
    """
    beside = in_channels - latent_channels
    if classes and beside != classes:
        raise ModelCorrupt(
            f"the model's classes.json lists {classes} classes, and its U-Net takes {beside} channels for them",
            "get the model's folder anew; both must come from the same place",
        )
    if (classes and mapped) or (not classes and (beside == 0 or (masked and beside == latent_channels + 1))):
        return
    if classes:
        takes, hint = f"a segmentation map of {classes} classes", "use sdcli synthesize, or another model"
    elif beside == latent_channels + 1:
        takes = "a mask and a masked image's latents beside its own: it inpaints, and does nothing else"
        hint = "use sdcli inpaint, or another model"
    else:
        takes = f"{in_channels} channels, {beside} beside its latents, and nothing here makes them"
        hint = f"use a model whose U-Net takes {latent_channels}, or {2 * latent_channels + 1} to inpaint"
    raise InvalidRecipe(f"this model's U-Net takes {takes}", hint, "model")
