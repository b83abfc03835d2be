"""Translates the metadata of other tools to the keys of a recipe. Opens no files.

- AUTOMATIC1111's web UI, and tools that write its format: modules/infotext_utils.py, modules/processing.py
- stable-diffusion.cpp: `get_image_params` in examples/cli/main.cpp; A1111's form with its own names for samplers
- InvokeAI from 3.0 on: `CoreMetadataInvocation` in invokeai/app/invocations/metadata.py, as JSON

None of them records everything that determines a picture. Keys that cannot be reproduced are listed by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdcli.recipe import prompt_syntax, schedulers

if TYPE_CHECKING:
    from sdcli.files.metadata import PictureInfo


@dataclass(frozen=True)
class Translation:
    """The metadata of another tool: flat keys of a recipe, the model's name and hash, and what cannot be reproduced."""

    recipe: Mapping[str, Any]
    model: str = ""
    model_hash: str = ""
    """The first hex digits of the SHA-256 of the model's file, if recorded."""
    unhonoured: tuple[str, ...] = field(default=())
    """One sentence per key, which starts with the key."""


_SDXL_CLIP_SKIP: Mapping[str, int] = {"SD.Next": 0, "stable-diffusion.cpp": -1}
"""What to add to a recorded clip skip, for SDXL; other tools (A1111, InvokeAI) record it and ignore it there.

stable-diffusion.cpp counts from the last layer, and SDXL was trained with the second to last one, which is 1 here.
"""

_IGNORED = {
    # keys that do not affect the pixels, or repeat another key
    "Prompt", "Negative prompt", "Version", "App",
    "Time", "User", "Created Date", "Model hash", "Model", "Schedule type",
}  # fmt: skip

# https://github.com/leejet/stable-diffusion.cpp, src/stable-diffusion.cpp: sample_method_to_str, scheduler_to_str.
# `dpm++2mv2` is a variant of its own; `dpm++2s_a`, `ipndm` and others have no counterpart here.
SDCPP_SAMPLERS: Mapping[str, str] = {
    "euler": "euler",
    "euler_a": "euler-a",
    "heun": "heun",
    "dpm2": "dpm2",
    "dpm++2m": "dpm++-2m",
    "dpm++2m_sde": "dpm++-2m-sde",
    "lms": "lms",
    "lcm": "lcm",
    "ddim_trailing": "ddim",
    "tcd": "tcd",
}
_SDCPP_SIGMAS = {"": "default", "default": "default", "discrete": "default", "karras": "karras"}
_SDCPP_SIGMAS |= {"exponential": "exponential", "beta": "beta"}

# https://github.com/invoke-ai/InvokeAI, invokeai/backend/stable_diffusion/schedulers/schedulers.py; `_k` is Karras.
INVOKEAI_SCHEDULERS: Mapping[str, str] = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "lms": "lms",
    "pndm": "pndm",
    "heun": "heun",
    "euler": "euler",
    "euler_a": "euler-a",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2-a",
    "dpmpp_2s": "dpm++-2s",
    "dpmpp_2m": "dpm++-2m",
    "dpmpp_2m_sde": "dpm++-2m-sde",
    "dpmpp_sde": "dpm++-sde",
    "unipc": "unipc",
    "lcm": "lcm",
    "tcd": "tcd",
}

_TAGS = {
    "Prompt": re.compile(r"<hypernet:[^<>]*>"),  # tags of LoRAs are followed
    "Negative prompt": re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>"),  # A1111 ignores them there
}


def translate(found: PictureInfo) -> Translation | None:
    """Translate the metadata of a picture by another tool; None if it has none that is known."""
    if found.invokeai is not None:
        return from_invokeai(found.invokeai)
    if found.writer in ("A1111", "stable-diffusion.cpp"):
        return from_parameters(found.fields)
    return None


def sdxl_clip_skip(found: PictureInfo, clip_skip: int) -> int:
    """Return the layer that a recorded clip skip means for a picture of SDXL."""
    tool = "SD.Next" if found.fields.get("App", "").startswith("SD.Next") else found.writer
    return max(1, clip_skip + _SDXL_CLIP_SKIP[tool]) if tool in _SDXL_CLIP_SKIP else 1


def from_parameters(fields: Mapping[str, str]) -> Translation:
    """Translate A1111's fields (`infotext.parse`), written by A1111 or stable-diffusion.cpp."""
    is_sdcpp = fields.get("Version", "").startswith("stable-diffusion.cpp")
    recipe: dict[str, Any] = {}
    unhonoured: list[str] = []
    for key, name in (("Prompt", "prompt"), ("Negative prompt", "negative_prompt")):
        text = fields.get(key, "")
        unhonoured += [f"{key}: {tag} is ignored" for tag in _TAGS[key].findall(text)]
        if not is_sdcpp:
            unhonoured += _of_syntax(key, text)
        recipe[name] = _TAGS[key].sub("", text).strip()
    sampler, schedule = fields.get("Sampler", ""), fields.get("Schedule type", "")
    scheduler = _sdcpp_scheduler(sampler) if is_sdcpp else schedulers.from_a1111(sampler, schedule)
    if scheduler is not None:
        recipe["scheduler"], recipe["sigmas"] = scheduler
    elif sampler:
        also = f" with schedule type {schedule}" if schedule else ""
        unhonoured.append(f"Sampler: {sampler}{also} is not supported; the model's default is used instead")
    rng = fields.get("RNG", "not recorded")  # which means the GPU in A1111
    if rng.lower() != "cpu":
        unhonoured.append(f"RNG: {rng}; sdcli generates noise on the CPU, which can give another picture")
    hires = {} if is_sdcpp else _hires(fields)
    recipe |= hires
    for key, text in fields.items():
        if key in _IGNORED or key in ("Sampler", "RNG", *(_HIRES if hires else ())) or (is_sdcpp and key == "Guidance"):
            continue  # sd.cpp records the guidance that is distilled into Flux as Guidance
        rule = _FIELDS.get(key)
        taken = rule(text, recipe) if rule else None
        if taken is None:
            unhonoured.append(f"{key}: {_shortened(text)} has no counterpart in sdcli")
        recipe |= taken or {}
    model = fields.get("Model", "").removesuffix(".safetensors")
    return Translation(recipe, model, fields.get("Model hash", "").lower(), tuple(unhonoured))


def _of_syntax(key: str, text: str) -> list[str]:
    """Name each schedule, alternation and AND, which A1111 interprets."""
    found = dict.fromkeys(each for each in prompt_syntax.find(text) if each.meaning in prompt_syntax.IN_BRACKETS)
    return [f"{key}: {_shortened(each.text)} is {each.meaning} in A1111, and is taken as words here" for each in found]


def _whole(key: str, plus: int = 0) -> Callable[[str, Mapping[str, Any]], dict[str, Any] | None]:
    return lambda text, recipe: {key: int(text) + plus} if re.fullmatch(r"\d{1,20}", text) else None


def _real(key: str) -> Callable[[str, Mapping[str, Any]], dict[str, Any] | None]:
    return lambda text, recipe: {key: float(text)} if re.fullmatch(r"\d{1,6}(\.\d{0,12})?", text) else None


def _size(text: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    return {"width": int(match[1]), "height": int(match[2])} if match else None


def _eta(text: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """A number for schedulers that take one; empty or `inf` (stable-diffusion.cpp's "not given") is 0."""
    number = _real("eta")(text, recipe)
    if text == "inf" or number == {"eta": 0.0}:
        return {}
    row = schedulers.TABLE.get(recipe.get("scheduler", ""))
    return number if row is not None and row.takes_eta else None


def _switch(text: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    found = _real("refiner_switch")(text, recipe)
    return found if "refiner" in recipe and found and 0.01 <= found["refiner_switch"] <= 0.99 else None


_REFINERS = ("sd_xl_refiner", "sdxl-refiner")
"""How the names of SDXL's refiner start, in A1111 and here."""


def _hashes(text: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accept the hashes of the model, of LoRAs and of embeddings, which other fields have too."""
    try:
        names = json.loads(text)
    except ValueError:
        return None
    known = isinstance(names, dict) and all(key == "model" or key.startswith(("lora:", "embed:")) for key in names)
    return {} if known else None


def _embeddings(text: str, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"embedding": list(hashes_of(text))} if hashes_of(text) else None


def hashes_of(text: str) -> dict[str, str]:
    """Parse a field such as `Lora hashes`, "name: hash, name: hash", to hashes by name."""
    pairs = (each.strip().rpartition(": ") for each in text.split(","))
    return {name: digest for name, _, digest in pairs if name and re.fullmatch(r"[0-9a-f]{8,64}", digest)}


_HIRES = ("Denoising strength", "Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")


def _hires(fields: Mapping[str, str]) -> dict[str, Any]:
    """Translate the fields of a second pass; {} if there is none, or with an upscaler that has no counterpart.

    `Hires steps` counts the steps that are run, 0 or absent those of the first pass.
    """
    size = fields.get("Hires resize") or fields.get("Hires upscale")
    upscaler = fields.get("Hires upscaler", "").lower()
    strength = _real("s")(fields.get("Denoising strength", ""), {})
    if size is None or strength is None or not 0 < strength["s"] <= 1 or upscaler not in ("latent", "lanczos"):
        return {}
    run = fields.get("Hires steps", "0")
    steps = {"hires_steps": math.ceil(int(run) / strength["s"])} if re.fullmatch(r"[1-9]\d{0,3}", run) else {}
    return {"hires": size, "hires_upscaler": upscaler, "hires_strength": strength["s"], **steps}


# From a field's text and the recipe so far to keys of a recipe; None if it cannot be reproduced.
_FIELDS: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any] | None]] = {
    "Steps": _whole("steps"),
    "Seed": _whole("seed"),
    "CFG scale": _real("guidance_scale"),
    "Size": _size,
    "Clip skip": _whole("clip_skip"),
    "Eta": _eta,
    "Eta DDIM": _eta,
    "Hashes": _hashes,
    "Lora hashes": lambda text, recipe: {} if hashes_of(text) else None,  # compared in a replay
    "TI hashes": _embeddings,
    "Refiner": lambda text, recipe: {"refiner": "sdxl-refiner"} if text.startswith(_REFINERS) else None,
    "Refiner switch at": _switch,
}


def _sdcpp_scheduler(sampler: str) -> tuple[str, str] | None:
    method, _, schedule = sampler.partition(" ")
    name, sigmas = SDCPP_SAMPLERS.get(method), _SDCPP_SIGMAS.get(schedule)
    if name is None or sigmas is None or sigmas not in schedulers.TABLE[name].sigmas:
        return None
    return name, sigmas


def from_invokeai(recorded: Mapping[str, Any]) -> Translation:
    """Translate InvokeAI's `invokeai_metadata`."""
    recipe: dict[str, Any] = {"prompt_weights": False}  # its syntax of weights differs: (fox)1.3, fox++
    unhonoured: list[str] = []
    for key, value in recorded.items():
        if key in ("app_version", "model", "metadata_version") or value is None or value is False:
            continue
        if value in ("", [], {}):
            continue
        taken = _invokeai_value(key, value, recorded)
        if taken is None:
            unhonoured.append(f"{key}: {_shortened(str(value))} has no counterpart in sdcli")
        recipe |= taken or {}
    recipe.setdefault("prompt", "")
    if not recorded.get("rand_device"):
        unhonoured.append("rand_device: not recorded; sdcli generates noise on the CPU")
    for key in ("prompt", "negative_prompt"):
        if re.search(r"\)[\d.+-]|\w[+-]{1,9}(?=\W|$)", recipe.get(key, "")):
            unhonoured.append(f"{key}: InvokeAI's prompt weights are not interpreted")
    model = recorded.get("model")
    model = model if isinstance(model, Mapping) else {}
    name = str(model.get("name") or model.get("model_name") or "")
    digest = str(model.get("hash") or "")
    return Translation(
        recipe, name, digest.removeprefix("sha256:") if digest.startswith("sha256:") else "", tuple(unhonoured)
    )


_INVOKEAI_KEYS: Mapping[str, tuple[str, type]] = {
    "positive_prompt": ("prompt", str),
    "negative_prompt": ("negative_prompt", str),
    "width": ("width", int),
    "height": ("height", int),
    "seed": ("seed", int),
    "steps": ("steps", int),
    "cfg_scale": ("guidance_scale", float),
    "cfg_rescale_multiplier": ("guidance_rescale", float),
}


def _invokeai_value(key: str, value: Any, recorded: Mapping[str, Any]) -> dict[str, Any] | None:
    if key in _INVOKEAI_KEYS:
        name, kind = _INVOKEAI_KEYS[key]
        value = float(value) if kind is float and type(value) is int else value
        return {name: value} if type(value) is kind else None
    if key == "scheduler":
        plain = str(value).removesuffix("_k")
        name = INVOKEAI_SCHEDULERS.get(plain, "")
        known = name and (plain == value or len(schedulers.TABLE[name].sigmas) > 1)
        return {"scheduler": name, "sigmas": "default" if plain == value else "karras"} if known else None
    if key == "clip_skip":  # it counts skipped layers
        return {"clip_skip": value + 1} if type(value) is int else None
    without_effect = {
        "generation_mode": ("txt2img", "sdxl_txt2img"),
        "rand_device": ("cpu",),
        "positive_style_prompt": (recorded.get("positive_prompt"),),
        "negative_style_prompt": (recorded.get("negative_prompt"),),
    }
    return {} if value in without_effect.get(key, ()) else None


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"
