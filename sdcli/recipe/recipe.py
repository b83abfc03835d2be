"""The Recipe: everything that determines a picture. Knows nothing of torch, of files or of the terminal."""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from sdcli.errors import InvalidRecipe
from sdcli.recipe import control, lora, schedulers
from sdcli.recipe.bounds import check_area
from sdcli.recipe.control import Control
from sdcli.recipe.lora import Lora
from sdcli.terminal.printable import shown
from sdcli.terminal.spelling import did_you_mean

MAX_SEED = 2**32 - 1
MAX_SIDE = 16_384
MAX_HIRES = 8.0
UPSCALERS = ("latent", "lanczos")
MAX_PROMPT, MAX_BRACKETS = 32_768, 1_000
"""Characters of a prompt, and weights that are opened in it."""
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def _within(low: float, high: float, *, unit: str = "") -> dict[str, Any]:
    return {"low": low, "high": high, "unit": unit}


def _one_of(choices: Iterable[str]) -> dict[str, Any]:
    return {"choices": tuple(choices)}


@dataclass(frozen=True)
class Condition:
    """What the picture should show: the context y before encoding."""

    prompt: str
    """A text; empty if there is a `label`."""
    label: str | None = None
    """The name or number of a class, for class-conditional models."""
    negative_prompt: str = ""
    clip_skip: int = field(default=1, metadata=_within(1, 12))
    """The layer of the text encoder, counted from the end as in A1111: 1 is the last."""
    prompt_weights: bool = True
    """Whether `(word:1.3)`, `[word]` and `BREAK` are interpreted."""

    @property
    def words(self) -> str:
        """The label, or the prompt if there is none."""
        return self.prompt if self.label is None else self.label


TEXT_KEYS = ("negative_prompt", "clip_skip", "prompt_weights")
"""Keys that apply to prompts and not to labels."""


@dataclass(frozen=True)
class Sampling:
    """How noise becomes latents."""

    steps: int = field(metadata=_within(1, 1000))
    guidance_scale: float = field(metadata=_within(0, 100))
    scheduler: str = field(metadata=_one_of(schedulers.NAMES))
    sigmas: str = field(default="default", metadata=_one_of(schedulers.SIGMAS))
    guidance_rescale: float = field(default=0.0, metadata=_within(0, 1))
    eta: float = field(default=0.0, metadata=_within(0, 1))


@dataclass(frozen=True)
class Execution:
    """Device and precision. Pixels can depend on them, so a finished recipe has resolved values."""

    device: str = field(default="auto", metadata=_one_of(DEVICES))
    dtype: str = field(default="auto", metadata=_one_of(DTYPES))
    threads: int = field(default=0, metadata=_within(0, 1024))
    """CPU threads; 0 means torch's default."""
    batch_size: int = field(default=1, metadata=_within(1, 256))
    """Pictures per U-Net call."""


@dataclass(frozen=True)
class Initial:
    """The image that a picture starts from, and the part of it to repaint; without an image it starts from pure noise.

    Paths are as given. With a mask or new borders the picture is inpainted. `init_latents` replace the image, and are
    only combined with `strength`.
    """

    image: str | None = None
    image_sha256: str | None = None
    """SHA-256 of the file in hex, like `mask_sha256`; a file that has changed is an error."""
    mask_image: str | None = None
    """An image that is white where to repaint, or `alpha` for the transparent part of the image."""
    mask_sha256: str | None = None
    init_latents: str | None = None
    """A file of latents to start from."""
    init_latents_sha256: str | None = None
    strength: float | None = field(default=None, metadata=_within(0, 1))
    """The fraction of the steps to run: 1 starts from pure noise, a lower value keeps more of the image."""
    resize: bool = False
    """Whether the picture has the working size, to whose aspect ratio the image is cropped, rather than the image's."""
    invert_mask: bool = False
    fit_mask: bool = False
    """Whether a mask of another size is resized to the image's."""
    mask_blur: float = field(default=4.0, metadata=_within(0, 512, unit=" pixels"))
    """Standard deviation of the Gaussian blur of the mask, in pixels of the image."""
    padding: int | None = field(default=None, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    """Crop to the masked area plus this many pixels around it; without it the whole image is used."""
    left: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    right: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    top: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    bottom: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))

    @property
    def borders(self) -> tuple[int, int, int, int]:
        """Pixels added to the image: left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def repaints(self) -> bool:
        """Whether a part of the image is repainted, rather than the whole image."""
        return self.mask_image is not None or any(self.borders)

    @property
    def used_keys(self) -> tuple[str, ...]:
        """The keys that apply to this start; none for pure noise."""
        if self.init_latents is not None:
            return LATENTS_KEYS
        if self.image is not None:
            return tuple(key for key in INITIAL_KEYS if key not in ("init_latents", "init_latents_sha256"))
        return ()


@dataclass(frozen=True)
class Layout:
    """Spatial conditions: a segmentation map, and images for ControlNets. Paths are as given."""

    segmentation_map: str | None = None
    segmentation_sha256: str | None = None
    """SHA-256 of the file in hex, like `control_sha256`; a file that has changed is an error."""
    snap: bool = False
    """Whether a colour that belongs to no class is replaced by the nearest class."""
    control: tuple[str, ...] = field(default=(), metadata={"each": control.canonical})
    """ControlNets in the syntax of sdcli/recipe/control.py. One without an image reads the segmentation map."""
    control_sha256: tuple[str, ...] = ()
    """SHA-256 of the images in `control`, in order."""

    @property
    def controls(self) -> tuple[Control, ...]:
        """`control`, parsed."""
        return tuple(Control.parse(each) for each in self.control)

    @property
    def nets(self) -> tuple[str, ...]:
        """The names of the ControlNets without duplicates."""
        return tuple(dict.fromkeys(each.name for each in self.controls))


@dataclass(frozen=True)
class Adapters:
    """Additions to the model's weights."""

    lora: tuple[str, ...] = field(default=(), metadata={"each": lora.canonical})
    """LoRAs in the syntax of sdcli/recipe/lora.py, which are merged in this order."""
    strict_lora: bool = True
    """Whether a LoRA with tensors that do not fit the model is an error, or used without them."""
    embedding: tuple[str, ...] = ()
    """Names or files of embeddings (textual inversion), which are used where a prompt has their name."""

    @property
    def loras(self) -> tuple[Lora, ...]:
        """`lora`, parsed."""
        return tuple(Lora.parse(each) for each in self.lora)


@dataclass(frozen=True)
class Hires:
    """A second pass at a larger size, which starts from the enlarged result of the first ("hires fix" in A1111)."""

    hires: str | None = None
    """The size of the picture, `WIDTHxHEIGHT` in pixels, or a factor of the recipe's size."""
    hires_upscaler: str = field(default="latent", metadata=_one_of(UPSCALERS))
    """How the result of the first pass is enlarged: its latents bilinearly, or its decoded pixels by Lanczos."""
    hires_strength: float = field(default=0.6, metadata=_within(0, 1))
    """The fraction of the second pass's steps that are run, like `strength`."""
    hires_steps: int | None = field(default=None, metadata=_within(1, 1000))
    """The number of steps of the second pass; None is that of the first."""

    def size(self, width: int, height: int, multiple: int = 1) -> tuple[int, int]:
        """Return the width and height of the picture for a first pass of this size.

        A factor gives the nearest multiples of `multiple`. Raises InvalidRecipe.
        """
        if self.hires is None:
            return width, height
        sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.hires)
        if sides is not None:
            return int(sides[1]), int(sides[2])
        try:
            factor = float(self.hires)
        except ValueError:
            hint = "give a factor, or a size such as 1024x768"
            raise InvalidRecipe(f"hires is {self.hires!r}", hint, "hires") from None
        if not 1 < factor <= MAX_HIRES:
            raise InvalidRecipe(f"hires is {factor:g}", f"a factor must be above 1, up to {MAX_HIRES:g}", "hires")
        return round(width * factor / multiple) * multiple, round(height * factor / multiple) * multiple


LATENTS_KEYS = ("init_latents", "init_latents_sha256", "strength")
"""The keys of `Initial` that apply if a picture starts from latents."""
INITIAL_KEYS = tuple(each.name for each in fields(Initial))
LAYOUT_KEYS = tuple(each.name for each in fields(Layout))
INPUT_KEYS = (*INITIAL_KEYS, *LAYOUT_KEYS)
"""Keys of input files."""
HIRES_KEYS = tuple(each.name for each in fields(Hires))
WITHOUT_DEFAULTS = (*INPUT_KEYS, *HIRES_KEYS)
"""Keys that the user's settings cannot have."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a picture. Frozen, without torch, and converted to and from flat JSON."""

    model: str
    condition: Condition
    sampling: Sampling
    execution: Execution
    width: int = field(metadata=_within(64, MAX_SIDE, unit=" pixels"))
    height: int = field(metadata=_within(64, MAX_SIDE, unit=" pixels"))
    seed: int = field(metadata=_within(0, MAX_SEED))
    initial: Initial = Initial()
    layout: Layout = Layout()
    adapters: Adapters = Adapters()
    hires: Hires = Hires()

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the picture, after a second pass if there is one."""
        return self.hires.size(self.width, self.height)

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Self:
        """Make a recipe of flat keys (`negative_prompt`, `guidance_scale` and so on); missing ones get defaults.

        Raises InvalidRecipe, with the key, if one is unknown, required and missing, of a wrong type, or out of range.
        """
        known = list(keys())
        for key in flat:
            if key not in known:
                hint = did_you_mean(str(key), known, f"the keys are {', '.join(known)}")
                raise InvalidRecipe(f"unknown key {key!r}", hint, str(key))
        recipe: Self = _build(cls, flat if flat.get("label") is None else {"prompt": "", **flat})
        check_area(recipe.width, recipe.height)
        check_texts(recipe.condition)
        check_sampling(recipe.sampling)
        check_initial(recipe.initial, recipe.sampling.steps)
        check_layout(recipe.layout, recipe.initial)
        check_hires(recipe)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the flat keys and values in order; `from_dict` gives the same recipe.

        Keys of `initial`, `layout`, `adapters` and `hires` that do not apply are omitted, as are a missing `label`
        and `resize` if it is false. With a label, the prompt is omitted, and the other keys of prompts if they have
        their defaults.
        """
        used = self.initial.used_keys
        omitted = {key for key in INITIAL_KEYS if key not in used}
        for part in (self.layout, self.adapters, self.hires):
            kind: Any = type(part)
            omitted |= {key for key, default in _defaults_of(kind) if getattr(part, key) == default}
        if not self.initial.resize:
            omitted.add("resize")
        if self.condition.label is None:
            omitted.add("label")
        else:
            unset = {each.name: each.default for each in fields(Condition)}
            omitted |= {"prompt", *(key for key in TEXT_KEYS if getattr(self.condition, key) == unset[key])}
        parts: dict[Any, Any] = {None: self, **vars(self)}
        flat = {key: getattr(parts[part], key) for part, key in _places() if key not in omitted}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}

    def replace(self, **flat: Any) -> Self:
        """Return a copy with these flat keys replaced, and validate it."""
        return self.from_dict({**self.to_dict(), **flat})


def keys() -> Iterable[str]:
    """The flat keys of a recipe in order."""
    return _rules_by_key()


@cache
def _typed_fields(part: type) -> tuple[tuple[dataclasses.Field[Any], Any, bool], ...]:
    """The fields of `part`, their types, and whether these are parts themselves.

    Parsing annotations is slow, and a batch has thousands of recipes.
    """
    hints = get_type_hints(part)
    return tuple((each, hints[each.name], is_dataclass(hints[each.name])) for each in fields(part))


def _rules(part: type) -> Iterable[tuple[dataclasses.Field[Any], type]]:
    """Yield the field and the type of each flat key."""
    for each, kind, is_part in _typed_fields(part):
        if is_part:
            yield from _rules(kind)
        else:
            yield each, kind


@cache
def _rules_by_key() -> Mapping[str, tuple[dataclasses.Field[Any], type]]:
    return {each.name: (each, kind) for each, kind in _rules(Recipe)}


def _rule_of(key: str) -> tuple[dataclasses.Field[Any], type]:
    return _rules_by_key()[key]


def choices(key: str) -> tuple[str, ...]:
    """Return the values that a flat key can have, if they are few; `true` and `false` for a switch."""
    rule, kind = _rule_of(key)
    return ("true", "false") if kind is bool else rule.metadata.get("choices", ())


def is_whole(key: str) -> bool:
    """Whether the values of a flat key are whole numbers."""
    kind = _rule_of(key)[1] if key in _rules_by_key() else None
    return kind is int or int in get_args(kind)


def check_value(key: str, value: Any) -> Any:
    """Validate and convert the value of a flat key, independently of other keys. Raises InvalidRecipe."""
    return _checked(*_rule_of(key), value)


def parse_value(key: str, text: str) -> Any:
    """Parse `text` as the value of a flat key: a number, true or false, or the text itself. Raises InvalidRecipe."""
    kind = _rule_of(key)[1]
    kind = next((each for each in get_args(kind) if each is not NoneType), kind)
    value: Any = text
    if kind is bool:
        value = {"true": True, "false": False}.get(text.strip().lower(), text)
    elif kind in (int, float) and text.isascii():
        with suppress(ValueError):  # otherwise it stays text, which the check rejects
            value = int(text) if kind is int else float(text)
    return check_value(key, value)


@cache
def defaults() -> Mapping[str, Any]:
    """Return the default values of keys, except WITHOUT_DEFAULTS and `label`."""
    found = {each.name: each.default for each, _ in _rules(Recipe) if each.default is not dataclasses.MISSING}
    return {key: value for key, value in found.items() if key not in ("label", *WITHOUT_DEFAULTS)}


@cache
def _defaults_of(part: type) -> tuple[tuple[str, Any], ...]:
    return tuple((each.name, each.default) for each, _, _ in _typed_fields(part))


@cache
def _places() -> tuple[tuple[str | None, str], ...]:
    """Return each flat key, in order, after the name of its part in a recipe."""
    found: list[tuple[str | None, str]] = []
    for each, kind, is_part in _typed_fields(Recipe):
        found += [(each.name, inner.name) for inner in fields(kind)] if is_part else [(None, each.name)]
    return tuple(found)


def _build(part: Any, flat: Mapping[str, Any]) -> Any:
    values = {}
    for each, kind, is_part in _typed_fields(part):
        if is_part:
            values[each.name] = _build(kind, flat)
        elif each.name in flat:
            values[each.name] = _checked(each, kind, flat[each.name])
        elif each.default is dataclasses.MISSING:
            raise InvalidRecipe(f"{each.name} is missing", f"give {each.name}", each.name)
    return part(**values)


def _checked(each: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    """Validate `value` as `kind` and within the field's range; the only conversion is from int to float."""
    name, rule = each.name, each.metadata
    if get_origin(kind) is tuple:
        return _checked_texts(each, value)
    if NoneType in get_args(kind):
        if value is None:
            return None
        kind = get_args(kind)[0]
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise InvalidRecipe(f"{name} is {shown(value)}", f"{name} must be {words[kind]}", name)
    if "choices" in rule and value not in rule["choices"]:
        choices = f"{name} is one of {', '.join(rule['choices'])}"
        near = _USUAL.get((name, str(value).lower())) or did_you_mean(str(value), rule["choices"], "")
        hint = f"{near} {choices}" if near else choices
        raise InvalidRecipe(f"unknown {name} {shown(value)}", hint, name)
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        low, high, unit = rule["low"], rule["high"], rule["unit"]
        raise InvalidRecipe(f"{name} is {shown(value)}", f"{name} must be between {low} and {high}{unit}", name)
    return value


def check_texts(condition: Condition) -> None:
    """Raise InvalidRecipe for a prompt or label that is not valid Unicode or too long, and for both together.

    Arguments of a command line can contain bytes that are not UTF-8.
    """
    for key in ("prompt", "negative_prompt", "label"):
        if any("\ud800" <= letter <= "\udfff" for letter in getattr(condition, key) or ""):
            raise InvalidRecipe(f"{key} is not valid Unicode", "give it as UTF-8", key)
    for key in ("prompt", "negative_prompt", "label"):
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


_USUAL = {
    ("device", "gpu"): "use cuda, or mps on a Mac;",
    ("device", "nvidia"): "use cuda;",
    ("device", "metal"): "use mps;",
    ("dtype", "fp16"): "use float16;",
    ("dtype", "half"): "use float16;",
    ("dtype", "bf16"): "use bfloat16;",
    ("dtype", "fp32"): "use float32;",
}
"""What other tools call values, with the hint."""


def _checked_texts(each: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """Validate a list of texts, or a single text, and convert them to the field's canonical form."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(type(text) is str for text in texts):
        raise InvalidRecipe(
            f"{each.name} is {shown(value)}", f"{each.name} must be text, or a list of texts", each.name
        )
    return tuple(map(each.metadata.get("each", str), texts))


def check_sampling(sampling: Sampling) -> None:
    """Raise InvalidRecipe for an invalid combination of scheduler, sigmas and eta."""
    schedulers.check(sampling.scheduler, sampling.sigmas, sampling.eta)


def initial_of(flat: Mapping[str, Any]) -> Initial:
    """Make only the part `Initial` of flat keys. Raises InvalidRecipe."""
    initial: Initial = _build(Initial, flat)
    check_initial(initial)
    return initial


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
    elif initial.image is None:
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


def adapters_of(flat: Mapping[str, Any]) -> Adapters:
    """Make only the part `Adapters` of flat keys. Raises InvalidRecipe."""
    adapters: Adapters = _build(Adapters, flat)
    return adapters


def layout_of(flat: Mapping[str, Any]) -> Layout:
    """Make only the part `Layout` of flat keys. Raises InvalidRecipe."""
    layout: Layout = _build(Layout, flat)
    check_layout(layout, initial_of(flat))
    return layout


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


def check_hires(recipe: Recipe) -> None:
    """Raise InvalidRecipe for a second pass that is not larger, that runs no step, or that has no first pass."""
    hires, initial = recipe.hires, recipe.initial
    if hires.hires is None:
        for each in fields(Hires):
            if getattr(hires, each.name) != each.default:
                raise InvalidRecipe(f"{each.name} has no effect without hires", "give hires too", each.name)
        return
    width, height = recipe.size
    for key, given in (("image", initial.image), ("init_latents", initial.init_latents)):
        if given is not None:
            raise InvalidRecipe(f"hires cannot be combined with {key}", "omit one of them", "hires")
    for name, side, own in (("width", width, recipe.width), ("height", height, recipe.height)):
        if not own <= side <= MAX_SIDE:
            hint = f"it must be between {own}, the {name} of the first pass, and {MAX_SIDE}"
            raise InvalidRecipe(f"hires gives a {name} of {side}", hint, "hires")
    check_area(width, height, what="the size of the second pass", field="hires")
    if (width, height) == (recipe.width, recipe.height):
        raise InvalidRecipe(f"hires is the size of the first pass, {width}x{height}", "give a larger size", "hires")
    steps = hires.hires_steps or recipe.sampling.steps
    if int(steps * hires.hires_strength) < 1:
        hint = f"it must be between {math.ceil(1000 / steps) / 1000:g} and 1"
        raise InvalidRecipe(
            f"hires_strength {hires.hires_strength:g} runs none of the {steps} steps", hint, "hires_strength"
        )


def draw_seed() -> int:
    """Return a random seed, 0 … 2³²−1."""
    return secrets.randbelow(MAX_SEED + 1)
