"""The form of `POST /v1/images/edits`: an image, and a mask whose transparent part is repainted.

Follows https://platform.openai.com/docs/api-reference/images/createEdit. Without a mask, the transparent part of the
image is repainted, or the whole image if it has none. A model that takes reference images gets the images as references
instead, one or more, unless there is a mask. Image prompts are sdcli's own fields, which need no image.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sdcli.errors import InvalidRecipe
from sdcli.files.reading import Files
from sdcli.recipe.image_prompt import MAX_SCALE, ImagePrompt
from sdcli.recipe.parts import INPUT_KEYS, Initial
from sdcli.recipe.paths import ALPHA
from sdcli.recipe.recipe import keys, parse_value
from sdcli.serving.limits import Limits
from sdcli.serving.refusals import UnfitFile, about

if TYPE_CHECKING:
    from PIL import Image

    from sdcli.files.canvas import InitialImage
    from sdcli.files.pictures import Decoded

PROMPTS, SCALES = ("image_prompt", "image_prompt[]"), "image_prompt_scale"
FILES = ("image", "image[]", "mask", *PROMPTS)
KEYS = ("strength", "ip_adapter")
"""Keys about input images that an edit can have: they name no file."""
MAX_FIELDS, MAX_FILES = 100, 33
"""Fields of a form, and files: 16 images, as OpenAI's API takes, a mask, and 16 image prompts."""
logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # otherwise its log goes to stderr
_REPAINT = "make the part to repaint transparent"


@dataclass(frozen=True)
class Upload:
    """A file of a form: the last part of its name, and its bytes."""

    name: str
    data: bytes


class _Parser(MultiPartParser):
    """Starlette's parser, which reads text that is not of the form's charset as Latin-1; this one refuses it."""

    def on_headers_finished(self) -> None:
        self._check(self._current_part.content_disposition or b"", "a name")
        super().on_headers_finished()

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            self._check(bytes(self._current_part.data), self._current_part.field_name)
        super().on_part_end()

    def _check(self, data: bytes, what: str) -> None:
        try:
            data.decode(self._charset)
        except (UnicodeDecodeError, LookupError) as error:
            raise MultiPartException(f"{what} is not valid {self._charset}; send the form as UTF-8") from error


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[FormData]:
    """Read a form whose text is valid in its charset, and remove its files from disk at the end."""
    async with aclosing(request.stream()) as stream:
        try:
            form = await _Parser(request.headers, stream, max_files=MAX_FILES, max_fields=MAX_FIELDS).parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error
    try:
        yield form
    finally:
        await form.close()


def fields(form: FormData) -> dict[str, Any]:
    """Return the form's fields except files: keys of a recipe by their type, the others as the texts that they are."""
    values: dict[str, Any] = {}
    for key, value in form.items():
        if key in FILES or key == SCALES:
            continue
        if not isinstance(value, str):
            raise InvalidRecipe(f"{key} is a file", "send files as image, mask and image_prompt", key)
        is_option = key in KEYS or (key in keys() and key not in ("prompt", "model", *INPUT_KEYS))
        values[key] = parse_value(key, value) if is_option else value
    return values


async def files(form: FormData) -> tuple[list[Upload], Upload | None]:
    """Return the images and the mask.

    Raises InvalidRecipe unless they are files, with one image or more, or none and no mask if there are image prompts.
    """
    images = [each for key in ("image", "image[]") for each in form.getlist(key)]
    if not images and "mask" not in form and any(key in form for key in PROMPTS):
        return [], None
    masks = form.getlist("mask")
    uploads = [await _upload(each, "image") for each in images if isinstance(each, UploadFile)]
    if not uploads or len(uploads) != len(images):
        raise InvalidRecipe(f"the form has {len(uploads)} files named image", "send one", "image")
    if len(masks) > 1 or not all(isinstance(each, UploadFile) for each in masks):
        raise InvalidRecipe("mask is not a file", "send it as a file, or omit it", "mask")
    mask = await _upload(masks[0], "mask") if masks and isinstance(masks[0], UploadFile) else None
    return uploads, mask


async def image_prompts(form: FormData) -> list[tuple[Upload, float]]:
    """Return the image prompts and their scales. Raises InvalidRecipe unless they are files, with a number for each."""
    sent = [each for key in PROMPTS for each in form.getlist(key)]
    uploads = [await _upload(each, "image_prompt") for each in sent if isinstance(each, UploadFile)]
    if len(uploads) != len(sent):
        raise InvalidRecipe("image_prompt is not a file", "send it as a file, or omit it", "image_prompt")
    texts = form.getlist(SCALES) or ["1"]
    try:
        scales = [float(each) for each in texts if isinstance(each, str) and math.isfinite(float(each))]
    except ValueError:
        scales = []
    if len(scales) != len(texts) or len(scales) not in (1, len(uploads)):
        hint = "send one number for all image prompts, or one for each of them"
        raise InvalidRecipe(f"{SCALES} is {', '.join(map(str, texts))}", hint, SCALES)
    if SCALES in form and not uploads:
        raise InvalidRecipe(f"there is no image_prompt for {SCALES}", "send a file, or omit it", SCALES)
    return list(zip(uploads, scales if len(scales) == len(uploads) else scales * len(uploads), strict=True))


def only(images: list[Upload]) -> Upload:
    """Return the image, for a model that takes one. Raises InvalidRecipe if there are several."""
    if len(images) != 1:
        raise InvalidRecipe(f"the form has {len(images)} files named image", "send one", "image")
    return images[0]


def references(images: list[Upload], limits: Limits) -> tuple[dict[str, Any], Files]:
    """Return the recipe keys of reference images, and the files by the names in them.

    Raises UnfitFile for a file that is not a picture, and InvalidRecipe for one with too many pixels.
    """
    streams = _named(images, "image", limits)
    return {"reference": list(streams)}, Files(streams=streams)


def prompts(shown: list[tuple[Upload, float]], limits: Limits) -> tuple[dict[str, Any], Files]:
    """Return the recipe keys of image prompts, and the files by the names in them. Raises as `references` does."""
    if not shown:
        return {}, Files()
    streams = _named([upload for upload, _ in shown], "image_prompt", limits)
    texts = [str(ImagePrompt(name, scale)) for name, (_, scale) in zip(streams, shown, strict=True)]
    if [ImagePrompt.parse(each).image for each in texts] != list(streams):  # otherwise it would name another file
        hint = f"send numbers from 0 to {MAX_SCALE:g}, such as 0.6"
        raise InvalidRecipe(f"{SCALES} is {', '.join(f'{scale:g}' for _, scale in shown)}", hint, SCALES)
    return {"image_prompt": texts}, Files(streams=streams)


def _named(uploads: list[Upload], param: str, limits: Limits) -> dict[str, bytes]:
    """Return the content of pictures by their names, which are numbered if some are the same."""
    for each in uploads:
        _decode(each, param, limits)
    names = [each.name for each in uploads]
    repeated = len(set(names)) != len(names)
    named = [f"{place}-{each}" if repeated else each for place, each in enumerate(names, start=1)]
    return {name: each.data for name, each in zip(named, uploads, strict=True)}


async def _upload(file: UploadFile, otherwise: str) -> Upload:
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    return Upload(name or otherwise, await file.read())


def initial(image: Upload, mask: Upload | None, limits: Limits) -> tuple[dict[str, Any], InitialImage]:
    """Return the recipe keys of the files, with the names they were sent under, and the decoded pictures.

    Raises UnfitFile for a file that is not a picture or does not fit, and InvalidRecipe for one with too many pixels.
    """
    from PIL import ImageChops

    from sdcli.files import canvas

    recorded: dict[str, Any] = {"image": image.name}
    decoded = _decode(image, "image", limits)
    picture, warnings, white, mask_sha256 = decoded.picture, decoded.warnings, None, None
    if mask is not None:
        recorded["mask_image"] = mask.name
        found = _decode(mask, "mask", limits)
        warnings = (*warnings, *found.warnings)
        white, mask_sha256 = _white(found.picture, picture), hashlib.sha256(mask.data).hexdigest()
    elif picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 128:  # type: ignore[operator]
        white, recorded["mask_image"] = ImageChops.invert(picture.getchannel("A")), ALPHA
    image_sha256 = hashlib.sha256(image.data).hexdigest()
    with about("image" if mask is None else "mask", "make more of it transparent"):
        prepared = canvas.prepare(picture, white, Initial(**recorded), image_sha256, mask_sha256)
    return recorded, replace(prepared, warnings=(*warnings, *prepared.warnings))


def _decode(upload: Upload, param: str, limits: Limits) -> Decoded:
    """Decode a picture, after its size was compared with the limit."""
    from PIL import Image

    from sdcli.files import pictures
    from sdcli.files.reading import decoding

    with about(param):
        if upload.data:
            with decoding(upload.name), Image.open(BytesIO(upload.data)) as image:
                size = image.size
            limits.check_upload(size, param)
        return pictures.decode(upload.data, upload.name, "mask_image" if param == "mask" else "image")


def _white(mask: Image.Image, image: Image.Image) -> Image.Image:
    """Return a mask that is white where `mask` is transparent, of the image's size."""
    from PIL import ImageChops

    if mask.mode != "RGBA":
        raise UnfitFile("the mask has no transparent part", _REPAINT, "mask")
    if mask.size != image.size:
        sizes = f"the mask is {mask.width}×{mask.height} and the image {image.width}×{image.height}"
        raise UnfitFile(sizes, "send a mask of the image's size", "mask")
    if mask.getchannel("A").getextrema()[0] >= 128:  # type: ignore[operator]
        raise UnfitFile("the mask has nothing to repaint: no part of it is transparent", _REPAINT, "mask")
    return ImageChops.invert(mask.getchannel("A"))


def check_size(size: str | None, given: InitialImage) -> None:
    """Raise InvalidRecipe for a size other than the image's."""
    own = f"{given.image.width}x{given.image.height}"
    if size not in (None, "auto", own):
        raise InvalidRecipe(f"size is {size!r}, and an edit has the size of its image", f"use {own}", "size")


def is_transparent(given: InitialImage, pngs: list[bytes]) -> bool:
    """Whether any of the pictures has transparent pixels, which only an image with an alpha channel leaves."""
    from PIL import Image

    if given.image.mode != "RGBA" or given.mask is None:
        return False
    for png in pngs:
        with Image.open(BytesIO(png)) as picture:
            if picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
                return True
    return False
