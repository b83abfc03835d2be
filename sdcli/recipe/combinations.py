"""Checks whether the values of a recipe can be combined. Knows nothing of models and of files."""

from __future__ import annotations

import math
from dataclasses import fields

from sdcli.errors import InvalidRecipe
from sdcli.recipe import control, schedulers
from sdcli.recipe.bounds import check_area
from sdcli.recipe.interval import Interval
from sdcli.recipe.parts import (
    LATENTS_KEYS,
    MAX_SIDE,
    OF_OPENVINO,
    UPSCALERS,
    Condition,
    Enlarging,
    Execution,
    Flow,
    Hires,
    ImagePrompts,
    Initial,
    Layout,
    Loading,
    References,
    Refiner,
    Sampling,
    Shortcuts,
)
from sdcli.recipe.skip_layers import SkipLayers

MAX_PROMPT, MAX_BRACKETS = 32_768, 1_000
"""Characters of a prompt, and weights that are opened in it."""


def check_texts(condition: Condition) -> None:
    """Raise InvalidRecipe for a prompt or label that is not valid Unicode or too long, and for both together.

    Arguments of a command line can contain bytes that are not UTF-8.
    """
    for key in ("prompt", "negative_prompt", "prompt_2", "label"):
        if any("\ud800" <= letter <= "\udfff" for letter in getattr(condition, key) or ""):
            raise InvalidRecipe(f"{key} is not valid Unicode", "give it as UTF-8", key)
    for key in ("prompt", "negative_prompt", "prompt_2", "label"):
        _check_length(key, getattr(condition, key) or "")
    if condition.label is not None and condition.prompt:
        raise InvalidRecipe(
            "there is a prompt and a label", "give one of them: a model takes a text or a class label", "label"
        )


def _check_length(key: str, text: str) -> None:
    if len(text) > MAX_PROMPT:
        hint = f"shorten it to at most {MAX_PROMPT:,} characters"
        raise InvalidRecipe(f"{key} is {len(text):,} characters long", hint, key)
    brackets = text.count("(") + text.count("[")
    if brackets > MAX_BRACKETS:
        hint = f"use at most {MAX_BRACKETS:,}"
        raise InvalidRecipe(f"{key} has {brackets:,} opening brackets", hint, key)


def check_sampling(sampling: Sampling) -> None:
    """Raise InvalidRecipe for an invalid combination of scheduler, sigmas and eta, or an invalid interval."""
    if sampling.guidance_interval is not None:
        Interval.parse(sampling.guidance_interval)
    schedulers.check(sampling.scheduler, sampling.sigmas, sampling.eta)


def check_flow(flow: Flow) -> None:
    """Raise InvalidRecipe for an invalid skip-layer guidance."""
    if flow.skip_layer_guidance is not None:
        SkipLayers.parse(flow.skip_layer_guidance)


def check_initial(initial: Initial, steps: int | None = None) -> None:
    """Raise InvalidRecipe for an invalid combination in `initial`, or a strength that runs none of `steps`."""
    if initial.init_latents is not None:
        for each in fields(Initial):
            if each.name not in LATENTS_KEYS and getattr(initial, each.name) != each.default:
                hint = "omit one of them; latents replace an image, and are redrawn completely"
                raise InvalidRecipe(f"{each.name} cannot be combined with init_latents", hint, each.name)
    elif initial.init_latents_sha256 is not None:
        hint = "give init_latents too"
        raise InvalidRecipe("init_latents_sha256 has no effect without latents", hint, "init_latents_sha256")
    elif initial.image is None and initial != Initial():
        for each in fields(Initial):
            if getattr(initial, each.name) != each.default:
                hint = "give an image (sdcli img2img, inpaint and others)"
                hint += ", or init_latents" if each.name in LATENTS_KEYS else ""
                raise InvalidRecipe(f"{each.name} has no effect without an image", hint, each.name)
    if initial.resize and initial.repaints:
        hint = "omit it; what is not repainted keeps its size"
        raise InvalidRecipe("resize cannot be combined with a mask or new borders", hint, "resize")
    if initial.mask_image is not None and any(initial.borders):
        raise InvalidRecipe(
            "new borders cannot be combined with a mask", "extend the image first, then inpaint it", "mask_image"
        )
    if steps is not None and initial.strength is not None and int(steps * initial.strength) < 1:
        least = math.ceil(1000 / steps) / 1000
        raise InvalidRecipe(
            f"strength {initial.strength:g} runs none of the {steps} steps",
            f"strength must be between {least:g} and 1",
            "strength",
        )


def check_layout(layout: Layout, initial: Initial) -> None:
    """Raise InvalidRecipe for an invalid combination in `layout`, or with `initial`."""
    if layout.segmentation_map is None:
        for key in ("segmentation_sha256", "snap"):
            if getattr(layout, key):
                raise InvalidRecipe(f"{key} has no effect without a map", "give segmentation_map too", key)
        for each in layout.controls:
            if each.image is None:
                raise InvalidRecipe(f"control {each} has no image", f"write it as {control.FORM}", "control")
    elif initial.image is not None:
        raise InvalidRecipe(
            "a segmentation map cannot be combined with an image", "omit one of them", "segmentation_map"
        )
    elif initial.init_latents is not None:
        raise InvalidRecipe(
            "a segmentation map cannot be combined with latents", "omit one of them", "segmentation_map"
        )
    if layout.control_sha256 and len(layout.control_sha256) != sum(each.image is not None for each in layout.controls):
        raise InvalidRecipe(
            f"control_sha256 has {len(layout.control_sha256)} entries", "it must have one for each image", "control"
        )


def check_references(references: References, initial: Initial, layout: Layout) -> None:
    """Raise InvalidRecipe for keys that need reference images without any, or inputs that exclude each other."""
    if not references.reference:
        for each in fields(References):
            if getattr(references, each.name) != each.default:
                raise InvalidRecipe(f"{each.name} has no effect without a reference", "give reference too", each.name)
        return
    given = {"image": initial.image, "init_latents": initial.init_latents, "segmentation_map": layout.segmentation_map}
    for key, value in given.items():
        if value is not None:
            raise InvalidRecipe(f"reference images cannot be combined with {key}", "omit one of them", "reference")
    if references.reference_sha256 and len(references.reference_sha256) != len(references.reference):
        count = len(references.reference_sha256)
        raise InvalidRecipe(f"reference_sha256 has {count} entries", "it must have one for each image", "reference")


def check_hires(hires: Hires, initial: Initial, first: tuple[int, int], steps: int) -> None:
    """Raise InvalidRecipe for a second pass that is not larger, that runs no step, or that has no first pass.

    `first` is the size of the first pass, and `steps` its number of steps.
    """
    if hires.hires is None:
        for each in fields(Hires):
            if getattr(hires, each.name) != each.default:
                raise InvalidRecipe(f"{each.name} has no effect without hires", "give hires too", each.name)
        return
    if not hires.hires_upscaler.strip():
        hint = f"it is {', '.join(UPSCALERS)}, or the name or file of an upscaler"
        raise InvalidRecipe("hires_upscaler is empty", hint, "hires_upscaler")
    width, height = hires.size(*first)
    for key, given in (("image", initial.image), ("init_latents", initial.init_latents)):
        if given is not None:
            raise InvalidRecipe(f"hires cannot be combined with {key}", "omit one of them", "hires")
    for name, side, own in zip(("width", "height"), (width, height), first, strict=True):
        if not own <= side <= MAX_SIDE:
            hint = f"it must be between {own}, the {name} of the first pass, and {MAX_SIDE}"
            raise InvalidRecipe(f"hires gives a {name} of {side}", hint, "hires")
    check_area(width, height, what="the size of the second pass", field="hires")
    if (width, height) == first:
        raise InvalidRecipe(f"hires is the size of the first pass, {width}x{height}", "give a larger size", "hires")
    steps = hires.hires_steps or steps
    if int(steps * hires.hires_strength) < 1:
        hint = f"it must be between {math.ceil(1000 / steps) / 1000:g} and 1"
        raise InvalidRecipe(
            f"hires_strength {hires.hires_strength:g} runs none of the {steps} steps", hint, "hires_strength"
        )


def check_shortcuts(shortcuts: Shortcuts, execution: Execution) -> None:
    """Raise InvalidRecipe for an invalid cache, or for shortcuts that change what is compiled during a picture."""
    for key, used in (("cache", shortcuts.cached), ("token_merging", shortcuts.token_merging)):
        if used and execution.compile:
            raise InvalidRecipe(f"{key} cannot be combined with compile", "omit one of them", key)


def check_engine(
    execution: Execution, shortcuts: Shortcuts, layout: Layout, prompts: ImagePrompts, loading: Loading, flow: Flow
) -> None:
    """Raise InvalidRecipe for what only torch can run, and for devices of one engine with another."""
    if execution.engine == "torch":
        if execution.device in OF_OPENVINO:
            what = f"device {execution.device} needs engine openvino"
            raise InvalidRecipe(what, "give engine openvino too", "device")
        return
    for key, asked in (
        ("compile", execution.compile),
        ("cache", shortcuts.cached),
        ("token_merging", shortcuts.token_merging),
        ("control", layout.control),
        ("image_prompt", prompts.image_prompt),
        ("quantize", loading.quantize != "none"),
        ("skip_layer_guidance", flow.skip_layer_guidance),
    ):
        if asked:
            raise InvalidRecipe(f"{key} cannot be combined with engine {execution.engine}", "omit one of them", key)
    if execution.device not in ("auto", "cpu", *OF_OPENVINO):
        what = f"engine {execution.engine} does not run on {execution.device}"
        raise InvalidRecipe(what, f"use device cpu, {' or '.join(OF_OPENVINO)}, or omit engine", "device")
    if execution.device == "npu" and execution.dtype == "float32":
        raise InvalidRecipe("device npu does not compute in float32", "choose dtype bfloat16, or omit it", "dtype")
    if execution.dtype == "float16":
        what = f"engine {execution.engine} computes in float32 or bfloat16"
        raise InvalidRecipe(what, "choose one of them with dtype, or omit engine", "dtype")


def check_refiner(refiner: Refiner, hires: Hires, enlarging: Enlarging, initial: Initial) -> None:
    """Raise InvalidRecipe for a refiner of a picture that has a second pass, tiles or a known part."""
    if refiner.refiner is None:
        if refiner.refiner_switch != Refiner.refiner_switch:
            raise InvalidRecipe("refiner_switch has no effect without a refiner", "give refiner too", "refiner_switch")
        return
    tiled = enlarging.tile is not None or enlarging.enlarge is not None
    for key, given in (("hires", hires.hires is not None), ("tiles", tiled), ("inpainting", initial.repaints)):
        if given:
            raise InvalidRecipe(f"a refiner cannot be combined with {key}", "omit one of them", "refiner")


def check_enlarging(enlarging: Enlarging, initial: Initial, size: tuple[int, int]) -> None:
    """Raise InvalidRecipe for enlarging without an image that is redrawn as a whole, or to another size than `size`."""
    if enlarging.enlarge is None:
        if enlarging.upscaler != Enlarging.upscaler:
            raise InvalidRecipe("upscaler has no effect without enlarge", "give enlarge too", "upscaler")
        return
    if not enlarging.upscaler.strip():
        raise InvalidRecipe("upscaler is empty", "it is lanczos, or the name or file of an upscaler", "upscaler")
    if initial.image is None:
        raise InvalidRecipe("enlarge has no effect without an image", "give an image: sdcli img2img", "enlarge")
    if initial.repaints or initial.resize:
        what = "resize" if initial.resize else "a mask or new borders"
        raise InvalidRecipe(f"enlarge cannot be combined with {what}", "omit one of them", "enlarge")
    target = enlarging.target(*size)
    if "x" in enlarging.enlarge and any(wanted > side for wanted, side in zip(target, size, strict=True)):
        what = f"the image is enlarged to {enlarging.enlarge}, and the size is {size[0]}x{size[1]}"
        raise InvalidRecipe(what, "omit width and height", "enlarge")


def check_image_prompts(prompts: ImagePrompts) -> None:
    """Raise InvalidRecipe for image prompts without an adapter, or an adapter without image prompts."""
    if prompts.image_prompt and prompts.ip_adapter is None:
        hint = "give the file of an IP-Adapter: --ip-adapter ip-adapter_sd15.safetensors"
        raise InvalidRecipe("an image prompt needs an IP-Adapter", hint, "ip_adapter")
    for key in ("image_prompt_sha256", "ip_adapter", "image_encoder"):
        if getattr(prompts, key) and not prompts.image_prompt:
            raise InvalidRecipe(f"{key} has no effect without an image prompt", "give image_prompt too", key)
    if prompts.image_prompt_sha256 and len(prompts.image_prompt_sha256) != len(prompts.image_prompt):
        count = len(prompts.image_prompt_sha256)
        raise InvalidRecipe(
            f"image_prompt_sha256 has {count} entries", "it must have one for each image", "image_prompt"
        )
