"""The form of `POST /v1/images/edits`: an image, and a mask whose transparent part is repainted.

Follows https://platform.openai.com/docs/api-reference/images/createEdit. Without a mask, the transparent part of the
image is repainted, or the whole image if it has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile

from sdcli.errors import InputError, InvalidRecipe
from sdcli.recipe.paths import ALPHA
from sdcli.recipe.recipe import INPUT_KEYS, Initial, keys, parse_value

if TYPE_CHECKING:
    from sdcli.files.canvas import InitialImage

FILES = ("image", "image[]", "mask")


def fields(form: FormData) -> dict[str, Any]:
    """Return the form's fields except files, with numbers and booleans converted as in JSON."""
    values: dict[str, Any] = {}
    for key, value in form.items():
        if key in FILES:
            continue
        if not isinstance(value, str):
            raise InvalidRecipe(f"{key} is a file", "send files as image and mask", key)
        values[key] = value
        if key in keys() and key not in ("prompt", "model", *INPUT_KEYS):
            values[key] = parse_value(key, value)
        elif key not in ("prompt", "model", "size"):
            with suppress(ValueError):
                values[key] = json.loads(value)
    return values


async def initial(form: FormData) -> tuple[dict[str, Any], InitialImage]:
    """Return the recipe keys of the files, with the names they were sent under, and the decoded pictures.

    Raises InvalidRecipe unless the form has one image, and InputError for a file that is not a picture or does not fit.
    """
    sent = [each for key in ("image", "image[]") for each in form.getlist(key)]
    if len(sent) != 1 or not isinstance(sent[0], UploadFile):
        raise InvalidRecipe(f"the form has {len(sent)} files named image", "send one", "image")
    mask = form.get("mask")
    if mask is not None and not isinstance(mask, UploadFile):
        raise InvalidRecipe("mask is not a file", "send it as a file, or omit it", "mask")
    named = {"image": sent[0].filename or "image"}
    image_data = await sent[0].read()
    mask_data = None
    if mask is not None:
        named["mask_image"] = mask.filename or "mask"
        mask_data = await mask.read()
    return _decoded(named, image_data, mask_data)


def _decoded(
    named: Mapping[str, str], image_data: bytes, mask_data: bytes | None
) -> tuple[dict[str, Any], InitialImage]:
    from PIL import ImageChops

    from sdcli.files import canvas, pictures

    recorded: dict[str, Any] = dict(named)
    decoded = pictures.decode(image_data, named["image"])
    image, warnings = decoded.picture, decoded.warnings
    mask, mask_sha256 = None, None
    if mask_data is not None:
        found = pictures.decode(mask_data, named["mask_image"], "mask_image")
        picture, warnings = found.picture, (*warnings, *found.warnings)
        if picture.mode != "RGBA":
            raise InputError(f"{named['mask_image']} has no transparent part", "make the part to repaint transparent")
        mask, mask_sha256 = ImageChops.invert(picture.getchannel("A")), hashlib.sha256(mask_data).hexdigest()
    elif image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 128:  # type: ignore[operator]
        mask, recorded["mask_image"] = ImageChops.invert(image.getchannel("A")), ALPHA
    image_sha256 = hashlib.sha256(image_data).hexdigest()
    prepared = canvas.prepare(image, mask, Initial(**recorded), image_sha256, mask_sha256)
    return recorded, replace(prepared, warnings=(*warnings, *prepared.warnings))


def check_size(size: str | None, given: InitialImage) -> None:
    """Raise InvalidRecipe for a size other than the image's."""
    own = f"{given.image.width}x{given.image.height}"
    if size not in (None, "auto", own):
        raise InvalidRecipe(f"size is {size!r}, and an edit has the size of its image", f"use {own}", "size")
