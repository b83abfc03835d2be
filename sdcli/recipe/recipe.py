"""The Recipe: everything that determines a picture. Knows nothing of torch, of files or of the terminal."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from types import NoneType
from typing import Any, Self, get_args

from sdcli.errors import InvalidRecipe
from sdcli.recipe.bounds import check_area
from sdcli.recipe.combinations import (
    check_engine,
    check_enlarging,
    check_flow,
    check_hires,
    check_image_prompts,
    check_initial,
    check_layout,
    check_references,
    check_refiner,
    check_sampling,
    check_shortcuts,
    check_texts,
)
from sdcli.recipe.part import check_once
from sdcli.recipe.parts import (
    INITIAL_KEYS,
    MAX_SIDE,
    MIN_SIDE,
    OMITTED_KEYS,
    TEXT_KEYS,
    WITHOUT_DEFAULTS,
    Adapters,
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
    within,
)
from sdcli.recipe.values import build, checked, default, defaults_of, rules, typed_fields
from sdcli.terminal.spelling import did_you_mean

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a picture. Frozen, without torch, and converted to and from flat JSON."""

    model: str
    condition: Condition
    sampling: Sampling
    execution: Execution
    width: int = field(metadata=within(MIN_SIDE, MAX_SIDE, unit=" pixels"))
    height: int = field(metadata=within(MIN_SIDE, MAX_SIDE, unit=" pixels"))
    seed: int = field(metadata=within(0, MAX_SEED))
    initial: Initial = field(default=Initial())
    layout: Layout = field(default=Layout())
    adapters: Adapters = field(default=Adapters())
    hires: Hires = field(default=Hires())
    refiner: Refiner = field(default=Refiner())
    enlarging: Enlarging = field(default=Enlarging())
    image_prompts: ImagePrompts = field(default=ImagePrompts())
    references: References = field(default=References())
    flow: Flow = field(default=Flow())
    loading: Loading = field(default=Loading())
    shortcuts: Shortcuts = field(default=Shortcuts())

    @property
    def size(self) -> tuple[int, int]:
        """The width and height that are worked at last: after a second pass if there is one."""
        return self.hires.size(self.width, self.height)

    @property
    def seen_at_once(self) -> tuple[int, int]:
        """The width and height of what the network sees at once: a tile, or `width` and `height`."""
        tile = self.enlarging.tile
        return (self.width, self.height) if tile is None else (min(self.width, tile), min(self.height, tile))

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
        recipe: Self = build(cls, flat if flat.get("label") is None else {"prompt": "", **flat})
        check_area(recipe.width, recipe.height)
        check_texts(recipe.condition)
        check_sampling(recipe.sampling)
        check_flow(recipe.flow)
        check_initial(recipe.initial, recipe.sampling.steps)
        check_layout(recipe.layout, recipe.initial)
        check_references(recipe.references, recipe.initial, recipe.layout)
        check_image_prompts(recipe.image_prompts)
        check_once(recipe.loading.part)
        check_shortcuts(recipe.shortcuts, recipe.execution)
        check_engine(
            recipe.execution, recipe.shortcuts, recipe.layout, recipe.image_prompts, recipe.loading, recipe.flow
        )
        check_enlarging(recipe.enlarging, recipe.initial, (recipe.width, recipe.height))
        check_hires(recipe.hires, recipe.initial, (recipe.width, recipe.height), recipe.sampling.steps)
        check_refiner(recipe.refiner, recipe.hires, recipe.enlarging, recipe.initial)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the flat keys and values in order; `from_dict` gives the same recipe.

        Keys of `initial`, `layout`, `adapters`, `hires`, `refiner`, `enlarging`, `image_prompts`, `references`, `flow`,
        `loading` and `shortcuts` that do not apply are omitted, as are a missing `label`, `prompt_2` or
        `guidance_interval`, `resize` if it is false, and OMITTED_KEYS if they have their defaults. With a label, the
        prompt is omitted, and the other keys of prompts if they have their defaults.
        """
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self._flat.items()}

    @cached_property
    def _flat(self) -> Mapping[str, Any]:
        used = self.initial.used_keys
        omitted = {key for key in INITIAL_KEYS if key not in used}
        optional = self.layout, self.adapters, self.hires, self.refiner, self.enlarging, self.image_prompts
        for part in (*optional, self.references, self.flow, self.loading, self.shortcuts):
            omitted |= _at_default(part)
        omitted |= _at_default(self.execution) & {*OMITTED_KEYS}
        if not self.initial.resize:
            omitted.add("resize")
        if self.condition.prompt_2 is None:
            omitted.add("prompt_2")
        if self.sampling.guidance_interval is None:
            omitted.add("guidance_interval")
        if self.condition.label is None:
            omitted.add("label")
        else:
            unset = {each.name: each.default for each in fields(Condition)}
            omitted |= {"prompt", *(key for key in TEXT_KEYS if getattr(self.condition, key) == unset[key])}
        parts: dict[Any, Any] = {None: self, **vars(self)}
        return {key: getattr(parts[part], key) for part, key in _places() if key not in omitted}

    def replace(self, **flat: Any) -> Self:
        """Return a copy with these flat keys replaced, and validate it."""
        return self.from_dict({**self.to_dict(), **flat})


def keys() -> Iterable[str]:
    """The flat keys of a recipe in order."""
    return _rules_by_key()


@cache
def _rules_by_key() -> Mapping[str, tuple[dataclasses.Field[Any], type]]:
    return {each.name: (each, kind) for each, kind in rules(Recipe)}


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
    return checked(*_rule_of(key), value)


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
    found = {each.name: each.default for each, _ in rules(Recipe) if each.default is not dataclasses.MISSING}
    return {key: value for key, value in found.items() if key not in ("label", *WITHOUT_DEFAULTS)}


def _at_default(part: Any) -> Set[str]:
    """The keys of a part that have their defaults."""
    kind: Any = type(part)
    known = defaults_of(kind)
    if part is default(kind):  # which is usual, and fast
        return known.keys()
    return {key for key, value in known.items() if getattr(part, key) == value}


@cache
def _places() -> tuple[tuple[str | None, str], ...]:
    """Return each flat key, in order, after the name of its part in a recipe."""
    found: list[tuple[str | None, str]] = []
    for each, kind, is_part in typed_fields(Recipe):
        found += [(each.name, inner.name) for inner in fields(kind)] if is_part else [(None, each.name)]
    return tuple(found)


def initial_of(flat: Mapping[str, Any]) -> Initial:
    """Make only the part `Initial` of flat keys. Raises InvalidRecipe."""
    initial: Initial = build(Initial, flat)
    check_initial(initial)
    return initial


def adapters_of(flat: Mapping[str, Any]) -> Adapters:
    """Make only the part `Adapters` of flat keys. Raises InvalidRecipe."""
    adapters: Adapters = build(Adapters, flat)
    return adapters


def hires_of(flat: Mapping[str, Any]) -> Hires:
    """Make only the part `Hires` of flat keys. Raises InvalidRecipe."""
    hires: Hires = build(Hires, flat)
    return hires


def enlarging_of(flat: Mapping[str, Any]) -> Enlarging:
    """Make only the part `Enlarging` of flat keys. Raises InvalidRecipe."""
    enlarging: Enlarging = build(Enlarging, flat)
    return enlarging


def image_prompts_of(flat: Mapping[str, Any]) -> ImagePrompts:
    """Make only the part `ImagePrompts` of flat keys. Raises InvalidRecipe."""
    prompts: ImagePrompts = build(ImagePrompts, flat)
    check_image_prompts(prompts)
    return prompts


def references_of(flat: Mapping[str, Any]) -> References:
    """Make only the part `References` of flat keys. Raises InvalidRecipe."""
    references: References = build(References, flat)
    return references


def loading_of(flat: Mapping[str, Any]) -> Loading:
    """Make only the part `Loading` of flat keys. Raises InvalidRecipe."""
    loading: Loading = build(Loading, flat)
    check_once(loading.part)
    return loading


def layout_of(flat: Mapping[str, Any]) -> Layout:
    """Make only the part `Layout` of flat keys. Raises InvalidRecipe."""
    layout: Layout = build(Layout, flat)
    check_layout(layout, initial_of(flat))
    return layout


def refiner_of(flat: Mapping[str, Any]) -> Refiner:
    """Make only the part `Refiner` of flat keys. Raises InvalidRecipe."""
    refiner: Refiner = build(Refiner, flat)
    return refiner


def draw_seed() -> int:
    """Return a random seed, 0 … 2³²−1."""
    return secrets.randbelow(MAX_SEED + 1)
