"""Picture metadata: writes it to PNGs, and reads it from sdcli's and other tools' pictures.

A PNG has two text chunks. `parameters` has the text that AUTOMATIC1111's web UI writes and many tools read. `sdcli` has
JSON without loss: `{"recipe": {…flat keys…}, "software": {…name: version…}, "pixels_sha256": …}`. The same recipe,
picture and software give the same bytes; times and machines are not recorded. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from sdcli import __version__
from sdcli.errors import InputError
from sdcli.files import infotext, other_tools, png_chunks
from sdcli.files.images import pixels_sha256
from sdcli.files.reading import STDIN, check_size, decoding, file_bytes, is_stream_name
from sdcli.files.user_files import from_home
from sdcli.recipe import lora, schedulers
from sdcli.recipe.control import Control
from sdcli.recipe.parts import OVERLAP
from sdcli.recipe.paths import exchange, exchange_weights
from sdcli.recipe.recipe import Recipe

SOFTWARE = ("torch", "diffusers", "transformers")
UPSCALED = "upscaled"
"""The key of sdcli's chunk about enlarging a finished picture (see upscaled.py)."""
MAX_TEXT_CHARACTERS = 1024**2

_UNPRINTABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class PictureInfo:
    """The metadata of a picture file.

    `writer` is "sdcli", "A1111" (or a tool with the same format), "stable-diffusion.cpp", "InvokeAI", the name of a
    tool whose metadata are only read in part (see other_tools.py), or "other".
    `recipe` has flat keys as `Recipe.from_dict` takes them, unchecked, and `software` versions by name. `parameters` is
    A1111's text, and `fields` its content: `Prompt`, `Negative prompt`, `Steps`, `Sampler` and others, as strings.
    `intact` tells whether the pixels are those that were written, or None if that is not recorded. `chunk` is the whole
    content of sdcli's chunk, `invokeai` the JSON object of InvokeAI's `invokeai_metadata`, and `postprocessing` the
    text of A1111 about a picture that was enlarged and has no `parameters`. `skipped` has a
    sentence about each part of the metadata that is damaged or too long.
    """

    format: str
    width: int
    height: int
    pixels_sha256: str
    writer: str
    recipe: Mapping[str, Any] | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    parameters: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    intact: bool | None = None
    chunk: Mapping[str, Any] = field(default_factory=dict)
    invokeai: Mapping[str, Any] | None = None
    postprocessing: str | None = None
    skipped: tuple[str, ...] = ()


def png_bytes(
    image: Image.Image,
    recipe: Recipe,
    *,
    extra: Mapping[str, Any] | None = None,
    hashes: Mapping[str, Mapping[str, str]] | None = None,
) -> bytes:
    """Encode `image` as a PNG with `recipe` in both chunks.

    `extra` is further JSON for the `sdcli` chunk, and `hashes` are for `parameters`.
    """
    content = {
        **(extra or {}),
        "recipe": shareable(recipe),
        "software": {"sdcli": __version__, **{name: installed_version(name) for name in SOFTWARE}},
        "pixels_sha256": pixels_sha256(image),
    }
    chunks = PngInfo()
    chunks.add_text("parameters", parameters(recipe, hashes or {}))
    chunks.add_text("sdcli", json.dumps(content, allow_nan=False))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def shareable(recipe: Recipe) -> dict[str, Any]:
    """Return the flat keys of `recipe` for a file that others may get.

    Of the absolute path of an input only the name is recorded, because the file is known by its sha256, and a pipe is
    `-`. Models and add-ons below the user's home are `~/…`.
    """
    flat = exchange(recipe.to_dict(), lambda key, path, sha256: _shareable(path))
    return exchange_weights(flat, lambda key, name: from_home(name))


def _shareable(path: str) -> str:
    if is_stream_name(path):
        return STDIN
    return PurePath(path).name if path.startswith("/") else path


def parameters(recipe: Recipe, hashes: Mapping[str, Mapping[str, str]] = {}) -> str:
    """Format `recipe` as A1111 does: the prompt, the negative prompt if there is one, and a line of fields.

    LoRAs are tags in the prompt. `hashes` has the hashes of add-ons in A1111, by the field and the name in the recipe.
    NUL and lone surrogates, which a PNG's text cannot contain, become U+FFFD. A prompt with a line that starts with
    `Negative prompt:` is ambiguous in this format; the `sdcli` chunk never is.
    """
    condition, sampling = recipe.condition, recipe.sampling
    plain = "Uniform" if len(schedulers.TABLE[sampling.scheduler].sigmas) > 1 else None  # "Automatic" may mean Karras
    values = {
        "Steps": sampling.steps,
        "Sampler": schedulers.a1111_name(sampling.scheduler, "default"),
        "Schedule type": plain if sampling.sigmas == "default" else sampling.sigmas.capitalize(),
        "CFG scale": f"{sampling.guidance_scale!r}".removesuffix(".0"),
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Class label": condition.label,
        "Model": PurePath(recipe.model).name.removesuffix(".safetensors"),
        "Clip skip": condition.clip_skip if condition.clip_skip > 1 else None,
        "Eta DDIM": sampling.eta if sampling.eta and sampling.scheduler == "ddim" else None,
        **_hires(recipe),
        **_refiner(recipe),
        **_enlarging(recipe),
        **{f"ControlNet {place}": _control(each) for place, each in enumerate(recipe.layout.controls)},
        **{
            key: ", ".join(f"{lora.file_stem(name)}: {each[:12]}" for name, each in of_kind.items()) or None
            for key, of_kind in hashes.items()
        },
        "RNG": "CPU",
        "Version": f"sdcli {__version__}",
    }
    line = ", ".join(f"{key}: {infotext.quote(str(value))}" for key, value in values.items() if value is not None)
    negative = f"\n{infotext.NEGATIVE} {condition.negative_prompt}" if condition.negative_prompt else ""
    prompt = " ".join(filter(None, [condition.prompt, *(each.tag for each in recipe.adapters.loras)]))
    return _UNPRINTABLE.sub("\ufffd", f"{prompt}{negative}\n{line}".strip())


def _hires(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a second pass; `Hires steps` counts the steps that are run."""
    hires, (width, height) = recipe.hires, recipe.size
    if hires.hires is None:
        return {}
    factor = width / recipe.width
    same = factor == height / recipe.height
    return {
        "Denoising strength": f"{hires.hires_strength:g}",
        "Hires upscale" if same else "Hires resize": f"{factor:g}" if same else f"{width}x{height}",
        "Hires steps": max(1, int((hires.hires_steps or recipe.sampling.steps) * hires.hires_strength)),
        "Hires upscaler": hires.hires_upscaler.capitalize() if hires.network is None else lora.file_stem(hires.network),
    }


def _enlarging(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of an image that was enlarged and redrawn in tiles, those of A1111's script "SD upscale"."""
    enlarging, strength = recipe.enlarging, recipe.initial.strength
    if enlarging.enlarge is None:
        return {}
    return {
        "Denoising strength": None if strength is None else f"{strength:g}",
        "SD upscale overlap": max(recipe.seen_at_once) // OVERLAP,
        "SD upscale upscaler": "Lanczos" if enlarging.network is None else lora.file_stem(enlarging.network),
    }


def _refiner(recipe: Recipe) -> dict[str, Any]:
    name, switch = recipe.refiner.refiner, recipe.refiner.refiner_switch
    return {} if name is None else {"Refiner": PurePath(name).name, "Refiner switch at": f"{switch:g}"}


def _control(control: Control) -> str:
    """Format a ControlNet as A1111's extension does; its image is not recorded there."""
    module, thresholds = "none", ""
    if control.canny is not None:
        module, thresholds = "canny", ", Threshold A: {}, Threshold B: {}".format(*control.canny)
    return (
        f"Module: {module}, Model: {PurePath(control.name).name}, Weight: {control.scale:g}, "
        f"Resize Mode: Crop and Resize, Guidance Start: {control.start:g}, Guidance End: {control.end:g}, "
        f"Control Mode: Balanced{thresholds}"
    )


def read(path: str | Path, data: bytes | None = None) -> PictureInfo:
    """Read the metadata of a picture file: PNG, JPEG, WebP, or another format that Pillow reads.

    `data` is its content, if it was already read. Raises InputError for a file that is not a picture, is too large, or
    has damaged pixels or a damaged recipe.
    """
    cleaned = png_chunks.clean(file_bytes(path) if data is None else data)
    skipped = list(cleaned.skipped)
    with decoding(path):
        with Image.open(BytesIO(cleaned.data)) as image:
            check_size(image, path)
            image.verify()  # a PNG's checksums
        with Image.open(BytesIO(cleaned.data)) as image:
            image.load()
    text, problem = _parameters_of(image)
    skipped += [problem] if problem else []
    chunk = image.info.get("sdcli") if image.format == "PNG" else None
    invokeai = image.info.get("invokeai_metadata") if image.format == "PNG" else None
    return _info(path, image, text, chunk, invokeai, tuple(f"{path}: {each}, and was skipped" for each in skipped))


def _info(
    path: str | Path,
    image: Image.Image,
    text: str | None,
    chunk: str | None,
    invokeai: str | None,
    skipped: tuple[str, ...],
) -> PictureInfo:
    ours = _sdcli_chunk(path, chunk) if chunk is not None else None
    fields = infotext.parse(text) if text else {}
    digest = pixels_sha256(image)
    recorded = ours.get("pixels_sha256") if ours else None
    theirs = _json_object(invokeai) if invokeai else None
    writer = "sdcli" if ours else "InvokeAI" if theirs else _writer_of(fields)
    other = other_tools.find(image.info, _json_object) if writer == "other" and image.format == "PNG" else None
    if other is not None:
        writer, fields = other
    return PictureInfo(
        format=image.format or "",
        width=image.width,
        height=image.height,
        pixels_sha256=digest,
        writer=writer,
        recipe=ours["recipe"] if ours else None,
        software=ours["software"] if ours else {},
        parameters=text,
        fields=fields,
        intact=recorded == digest if recorded else None,
        chunk=ours or {},
        invokeai=theirs,
        postprocessing=image.info.get("postprocessing") if image.format == "PNG" else None,
        skipped=skipped,
    )


def _writer_of(fields: Mapping[str, str]) -> str:
    if "Steps" not in fields:
        return "other"
    return "stable-diffusion.cpp" if fields.get("Version", "").startswith("stable-diffusion.cpp") else "A1111"


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def installed_version(name: str) -> str:
    """Return the version of an installed package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _parameters_of(image: Image.Image) -> tuple[str | None, str | None]:
    """Return A1111's text, from a PNG's chunk or the EXIF user comment of other formats, and what is wrong with it."""
    text = image.info.get("parameters") if image.format == "PNG" else None
    if isinstance(text, str):
        return str(text), None
    try:
        exif: Any = image.getexif()
        key = ExifTags.Base.UserComment
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(key) or exif.get(key)  # some tools write it in IFD0
    except Exception as error:  # noqa: BLE001  Pillow raises many for damaged EXIF data
        return None, f"its EXIF data are damaged ({error})"
    if isinstance(comment, bytes):
        comment = infotext.user_comment(comment)
    if not isinstance(comment, str) or not comment:
        return None, None
    if len(comment) > MAX_TEXT_CHARACTERS:
        return None, f"its EXIF comment is longer than {MAX_TEXT_CHARACTERS:,} characters"
    return comment, None


def _sdcli_chunk(path: str | Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        parts = content["recipe"], content["software"]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("recipe and software must be objects")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"the sdcli chunk in {path} is damaged: {error}",
            "its recipe cannot be read; use another tool to open the picture",
        ) from error
    return dict(content)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number")
    return number
