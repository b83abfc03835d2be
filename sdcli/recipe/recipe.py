"""The Recipe: everything that determines a picture. Knows nothing of torch, of files or of the terminal."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from sdcli.errors import InvalidRecipe
from sdcli.recipe import schedulers
from sdcli.recipe.control import FORM, Control, canonical
from sdcli.terminal.spelling import did_you_mean

MAX_SEED = 2**32 - 1
MAX_SIDE = 16_384
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def _within(low: float, high: float, *, unit: str = "") -> dict[str, Any]:
    return {"low": low, "high": high, "unit": unit}


def _one_of(choices: Iterable[str]) -> dict[str, Any]:
    return {"choices": tuple(choices)}


@dataclass(frozen=True)
class Condition:
    """What the picture is to show: the context y before encoding."""

    prompt: str
    """A text; empty where `label` says what to draw."""
    label: str | None = None
    """The name or number of a class, for models that take one instead of a text."""
    negative_prompt: str = ""
    clip_skip: int = field(default=1, metadata=_within(1, 12))
    """The text encoder's layer read, counted from the last as A1111 does: 1 is the last, nothing skipped."""
    prompt_weights: bool = True
    """Whether `(word:1.3)`, `[word]` and `BREAK` are weights, or letters like all others."""

    @property
    def words(self) -> str:
        """What the picture is to show, in words: its label or else its prompt."""
        return self.prompt if self.label is None else self.label


TEXT_KEYS = ("negative_prompt", "clip_skip", "prompt_weights")
"""Keys that say more of a prompt, and nothing of a label."""


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
    """Where and how the arithmetic runs; pixels can depend on it, so a finished recipe holds resolved values."""

    device: str = field(default="auto", metadata=_one_of(DEVICES))
    dtype: str = field(default="auto", metadata=_one_of(DTYPES))
    threads: int = field(default=0, metadata=_within(0, 1024))
    """CPU threads; 0 asks for as many as torch takes by itself."""
    batch_size: int = field(default=1, metadata=_within(1, 256))
    """Pictures in one U-Net call."""


@dataclass(frozen=True)
class Initial:
    """The image a picture starts from, and what of it is to be repainted; without `image`, pure noise and all of it.

    Paths are as they were given. With a mask or new borders the picture is inpainted. `init_latents` stand in an
    image's place as they are, and only `strength` is said beside them.
    """

    image: str | None = None
    image_sha256: str | None = None
    """Of the file's bytes, in hex, like `mask_sha256`; files that have changed since are refused."""
    mask_image: str | None = None
    """A picture whose white is repainted, or `alpha`: the transparent parts of the image itself."""
    mask_sha256: str | None = None
    init_latents: str | None = None
    """A file of latents, z(x), to start from."""
    init_latents_sha256: str | None = None
    strength: float | None = field(default=None, metadata=_within(0, 1))
    """The share of the steps that is taken: 1 starts from pure noise, less keeps more of the image."""
    invert_mask: bool = False
    fit_mask: bool = False
    """Whether a mask of another size is stretched to the image's."""
    mask_blur: float = field(default=4.0, metadata=_within(0, 512, unit=" pixels"))
    """Standard deviation of the Gaussian that softens the mask's edge, in pixels of the image."""
    padding: int | None = field(default=None, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    """Work on the masked area alone, with so many pixels around it; without, on the whole image."""
    left: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    right: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    top: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))
    bottom: int = field(default=0, metadata=_within(0, MAX_SIDE, unit=" pixels"))

    @property
    def borders(self) -> tuple[int, int, int, int]:
        """New pixels beyond the image: left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def repaints(self) -> bool:
        """Whether a part of the image is repainted, rather than all of it redrawn."""
        return self.mask_image is not None or any(self.borders)

    @property
    def said(self) -> tuple[str, ...]:
        """The keys that say something of this start: none of pure noise."""
        if self.init_latents is not None:
            return LATENTS_KEYS
        if self.image is not None:
            return tuple(key for key in INITIAL_KEYS if key not in ("init_latents", "init_latents_sha256"))
        return ()


@dataclass(frozen=True)
class Layout:
    """Where things are to be: a segmentation map, and pictures that ControlNets read. Paths are as they were given."""

    segmentation_map: str | None = None
    segmentation_sha256: str | None = None
    """Of the file's bytes, in hex, like `control_sha256`; files that have changed since are refused."""
    snap: bool = False
    """Whether a colour of no class is taken for the nearest that is one."""
    control: tuple[str, ...] = field(default=(), metadata={"each": canonical})
    """ControlNets, each as sdcli/recipe/control.py has it. One without an image reads the segmentation map."""
    control_sha256: tuple[str, ...] = ()
    """Of the images in `control`, in their order."""

    @property
    def controls(self) -> tuple[Control, ...]:
        """`control`, taken apart."""
        return tuple(Control.parse(each) for each in self.control)

    @property
    def nets(self) -> tuple[str, ...]:
        """The names of the ControlNets, each once."""
        return tuple(dict.fromkeys(each.name for each in self.controls))


LATENTS_KEYS = ("init_latents", "init_latents_sha256", "strength")
"""Those of `Initial` that go together where a picture starts from latents."""
INITIAL_KEYS = tuple(each.name for each in fields(Initial))
LAYOUT_KEYS = tuple(each.name for each in fields(Layout))
INPUT_KEYS = (*INITIAL_KEYS, *LAYOUT_KEYS)
"""Keys about files, which are said of one picture and never once for all."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a picture. Frozen, torch-free, and a flat JSON object outside."""

    model: str
    condition: Condition
    sampling: Sampling
    execution: Execution
    width: int = field(metadata=_within(64, MAX_SIDE, unit=" pixels"))
    height: int = field(metadata=_within(64, MAX_SIDE, unit=" pixels"))
    seed: int = field(metadata=_within(0, MAX_SEED))
    initial: Initial = Initial()
    layout: Layout = Layout()

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Self:
        """The recipe of flat keys (`negative_prompt`, `guidance_scale`, …); absent ones take their defaults.

        Raises InvalidRecipe, naming the key, for one that is unknown, missing, of a wrong type or out of range.
        """
        known = list(keys())
        for key in flat:
            if key not in known:
                hint = did_you_mean(str(key), known, f"the keys are {', '.join(known)}")
                raise InvalidRecipe(f"unknown key {key!r}", hint, str(key))
        recipe: Self = _build(cls, flat if flat.get("label") is None else {"prompt": "", **flat})
        check_texts(recipe.condition)
        check_sampling(recipe.sampling)
        check_initial(recipe.initial, recipe.sampling.steps)
        check_layout(recipe.layout, recipe.initial)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """The flat keys and values, in declared order; `from_dict` of it is the same recipe.

        The keys of `initial` and `layout` that say nothing are left out, and `label` where there is none. With a label
        it is the prompt that is left out, and what else is said of prompts, unless it is something.
        """
        flat = dict(_flatten(self))
        needless = [key for key in INITIAL_KEYS if key not in self.initial.said]
        needless += [each.name for each in fields(Layout) if getattr(self.layout, each.name) == each.default]
        if self.condition.label is None:
            needless.append("label")
        else:
            usual = {each.name: each.default for each in fields(Condition)}
            needless += ["prompt", *(key for key in TEXT_KEYS if flat[key] == usual[key])]
        return {key: value for key, value in flat.items() if key not in needless}

    def replace(self, **flat: Any) -> Self:
        """The same recipe but for the flat keys given, validated anew."""
        return self.from_dict({**self.to_dict(), **flat})


def keys() -> Iterable[str]:
    """The flat keys of a recipe, in declared order."""
    return _keys(Recipe)


def _keys(part: type) -> Iterable[str]:
    return (each.name for each, _ in _rules(part))


def _rules(part: type) -> Iterable[tuple[dataclasses.Field[Any], type]]:
    """Each flat key's field, with its type."""
    hints = get_type_hints(part)
    for each in fields(part):
        if is_dataclass(hints[each.name]):
            yield from _rules(hints[each.name])
        else:
            yield each, hints[each.name]


@cache
def _rule_of(key: str) -> tuple[dataclasses.Field[Any], type]:
    return next(rule for rule in _rules(Recipe) if rule[0].name == key)


def check_value(key: str, value: Any) -> Any:
    """`value` as the flat `key` holds it, whatever the other keys say. Raises InvalidRecipe where it cannot be."""
    return _checked(*_rule_of(key), value)


def parse_value(key: str, text: str) -> Any:
    """The value that `text` is for the flat `key`: a number, true or false, or the text itself.

    Raises InvalidRecipe where it is none, or out of range.
    """
    kind = _rule_of(key)[1]
    kind = next((each for each in get_args(kind) if each is not NoneType), kind)
    value: Any = text
    if kind is bool:
        value = {"true": True, "false": False}.get(text.strip().lower(), text)
    elif kind in (int, float) and text.isascii():
        with suppress(ValueError):  # then it stays text, which the check refuses by name
            value = int(text) if kind is int else float(text)
    return check_value(key, value)


def defaults() -> dict[str, Any]:
    """The values of the keys that a recipe can do without, but for those that many lack: INPUT_KEYS and `label`."""
    found = {each.name: each.default for each, _ in _rules(Recipe) if each.default is not dataclasses.MISSING}
    return {key: value for key, value in found.items() if key not in ("label", *INPUT_KEYS)}


def _flatten(part: Any) -> Iterable[tuple[str, Any]]:
    for each in fields(part):
        value = getattr(part, each.name)
        if is_dataclass(value):
            yield from _flatten(value)
        else:
            yield each.name, list(value) if isinstance(value, tuple) else value


def _build(part: type[Any], flat: Mapping[str, Any]) -> Any:
    hints = get_type_hints(part)
    values = {}
    for each in fields(part):
        kind = hints[each.name]
        if is_dataclass(kind):
            values[each.name] = _build(kind, flat)  # type: ignore[arg-type]
        elif each.name in flat:
            values[each.name] = _checked(each, kind, flat[each.name])
        elif each.default is dataclasses.MISSING:
            raise InvalidRecipe(f"{each.name} is missing", f"give {each.name}", each.name)
    return part(**values)


def _checked(each: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    """`value` as `kind` (an int counts as a float, and nothing else as anything else), within the field's range."""
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
        raise InvalidRecipe(f"{name} is {value!r}", f"{name} must be {words[kind]}", name)
    if "choices" in rule and value not in rule["choices"]:
        choices = f"{name} is one of {', '.join(rule['choices'])}"
        near = did_you_mean(str(value), rule["choices"], "")
        hint = f"{near} {choices}" if near else choices
        raise InvalidRecipe(f"unknown {name} {value!r}", hint, name)
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        low, high, unit = rule["low"], rule["high"], rule["unit"]
        raise InvalidRecipe(f"{name} is {value}", f"{name} must be between {low} and {high}{unit}", name)
    return value


def check_texts(condition: Condition) -> None:
    """Raise InvalidRecipe for a prompt or label that is no text, and for both at once.

    A command line can hold bytes that are not UTF-8.
    """
    for key in ("prompt", "negative_prompt", "label"):
        if any("\ud800" <= letter <= "\udfff" for letter in getattr(condition, key) or ""):
            raise InvalidRecipe(f"{key} is not valid Unicode", "give it as UTF-8", key)
    if condition.label is not None and condition.prompt:
        raise InvalidRecipe("a prompt and a label at once", "give one: a model takes a text or a class label", "label")


def _checked_texts(each: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """Texts, of which one may stand without a list around it, in the form that the field gives them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(type(text) is str for text in texts):
        raise InvalidRecipe(f"{each.name} is {value!r}", f"{each.name} must be text, or a list of texts", each.name)
    return tuple(map(each.metadata.get("each", str), texts))


def check_sampling(sampling: Sampling) -> None:
    """Raise InvalidRecipe where scheduler, sigmas and eta do not go together."""
    schedulers.check(sampling.scheduler, sampling.sigmas, sampling.eta)


def initial_of(flat: Mapping[str, Any]) -> Initial:
    """The part `Initial` alone of flat keys, before the rest is known. Raises InvalidRecipe."""
    initial: Initial = _build(Initial, flat)
    check_initial(initial)
    return initial


def check_initial(initial: Initial, steps: int | None = None) -> None:
    """Raise InvalidRecipe where the parts of `initial` do not go together, or its strength takes none of `steps`."""
    if initial.init_latents is not None:
        for each in fields(Initial):
            if each.name not in LATENTS_KEYS and getattr(initial, each.name) != each.default:
                hint = "leave one of them away; latents stand in the place of an image, and all of them are redrawn"
                raise InvalidRecipe(f"{each.name} and init_latents at once", hint, each.name)
    elif initial.init_latents_sha256 is not None:
        hint = "give init_latents too"
        raise InvalidRecipe("init_latents_sha256 is of no use without latents", hint, "init_latents_sha256")
    elif initial.image is None:
        for each in fields(Initial):
            if getattr(initial, each.name) != each.default:
                hint = "give an image (sdcli img2img, inpaint …)"
                hint += ", or init_latents" if each.name in LATENTS_KEYS else ""
                raise InvalidRecipe(f"{each.name} is of no use without an image", hint, each.name)
    if initial.mask_image is not None and any(initial.borders):
        raise InvalidRecipe("new borders and a mask at once", "extend the image first, then inpaint it", "mask_image")
    if steps is not None and initial.strength is not None and int(steps * initial.strength) < 1:
        least = math.ceil(1000 / steps) / 1000
        raise InvalidRecipe(
            f"strength {initial.strength:g} takes none of the {steps} steps",
            f"strength must be between {least:g} and 1",
            "strength",
        )


def layout_of(flat: Mapping[str, Any]) -> Layout:
    """The part `Layout` alone of flat keys, before the rest is known. Raises InvalidRecipe."""
    layout: Layout = _build(Layout, flat)
    check_layout(layout, initial_of(flat))
    return layout


def check_layout(layout: Layout, initial: Initial) -> None:
    """Raise InvalidRecipe where the parts of `layout` do not go together, or not with `initial`."""
    if layout.segmentation_map is None:
        for key in ("segmentation_sha256", "snap"):
            if getattr(layout, key):
                raise InvalidRecipe(f"{key} is of no use without a map", "give segmentation_map too", key)
        for each in layout.controls:
            if each.image is None:
                raise InvalidRecipe(f"control {each} names no picture", f"write it as {FORM}", "control")
    elif initial.image is not None:
        raise InvalidRecipe("a segmentation map and an image at once", "leave one of them away", "segmentation_map")
    elif initial.init_latents is not None:
        raise InvalidRecipe("a segmentation map and latents at once", "leave one of them away", "segmentation_map")
    if layout.control_sha256 and len(layout.control_sha256) != sum(each.image is not None for each in layout.controls):
        raise InvalidRecipe(
            f"control_sha256 has {len(layout.control_sha256)} entries", "it must have one for each image", "control"
        )


def draw_seed() -> int:
    """A seed nobody chose, 0 … 2³²−1."""
    return secrets.randbelow(MAX_SEED + 1)
