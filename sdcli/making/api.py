"""The Python API: `sdcli.load`, `sdcli.generate` and `sdcli.read_recipe`. See docs/python.md. Imports nothing heavy.

Settings come from the arguments, the model and the built-in defaults: the config file and SDCLI_ variables of the
command line are not used. Pictures are made in this process, one call at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from sdcli.config import DEFAULT_MODEL
from sdcli.errors import InputError
from sdcli.making import deliver
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture
from sdcli.models import located
from sdcli.planning import resolve
from sdcli.planning import warnings as planned_warnings
from sdcli.recipe.recipe import Recipe, loading_of

if TYPE_CHECKING:
    from sdcli.models.located import LocatedModel
    from sdcli.planning.resolve import Resolved


class Options(TypedDict, total=False):
    """The keys of a recipe that are options, with the meaning of the command line's. Files are given by their paths."""

    label: str
    negative_prompt: str
    prompt_2: str
    clip_skip: int
    prompt_weights: bool
    steps: int
    guidance_scale: float
    scheduler: str
    sigmas: str
    guidance_rescale: float
    guidance_interval: str
    eta: float
    device: str
    dtype: str
    threads: int
    batch_size: int
    compile: bool
    engine: str
    cache: str
    token_merging: float
    memory: str
    tiling: str
    width: int
    height: int
    seed: int
    image: str
    mask_image: str
    init_latents: str
    strength: float
    resize: bool
    invert_mask: bool
    fit_mask: bool
    mask_blur: float
    padding: int
    left: int
    right: int
    top: int
    bottom: int
    segmentation_map: str
    snap: bool
    control: str | list[str]
    lora: str | list[str]
    strict_lora: bool
    embedding: str | list[str]
    hires: str
    hires_upscaler: str
    hires_strength: float
    hires_steps: int
    refiner: str
    refiner_switch: float
    enlarge: str
    upscaler: str
    tile: int
    image_prompt: str | list[str]
    ip_adapter: str
    image_encoder: str
    reference: str | list[str]
    match_reference: bool
    shift: float
    true_cfg_scale: float
    skip_layer_guidance: str
    part: str | list[str]
    quantize: str


class Model:
    """A model on this machine. Its weights are loaded for the first picture and stay in memory.

    `defaults` are options of every picture. Not safe for use from several threads at once.
    """

    def __init__(self, name: str, defaults: Options) -> None:
        self.name = name
        self._located: LocatedModel = located.find(name, defaults)
        self._defaults = defaults
        self._maker = LocalMaker(keep=1)

    def recipe(self, prompt: str | None = None, **options: Unpack[Options]) -> Recipe:
        """Return the complete recipe of a picture without making it. A seed is chosen if none is given.

        Raises InvalidRecipe, InputError or ModelError if the picture cannot be made.
        """
        return self._resolve(prompt, options).recipe

    def generate(
        self, prompt: str | None = None, *, on_step: OnStep = lambda step: None, **options: Unpack[Options]
    ) -> Picture:
        """Make one picture. `on_step` is called after each step with an object that has `index` and `total`.

        Raises an SdcliError if the picture cannot be made.
        """
        return self._make(self._resolve(prompt, options), on_step)

    def make(self, recipe: Recipe, *, on_step: OnStep = lambda step: None) -> Picture:
        """Make the picture of a complete recipe, such as one from `read_recipe`. The model's name in it is not used."""
        flat: dict[str, Any] = {**recipe.to_dict(), "model": self.name}
        return self._make(self._resolve_flat(flat), on_step)

    def _resolve(self, prompt: str | None, options: Options) -> Resolved:
        given: dict[str, Any] = {**self._defaults, **options, "model": self.name}
        if prompt is not None:
            given["prompt"] = prompt
        return self._resolve_flat(given)

    def _resolve_flat(self, flat: Mapping[str, Any]) -> Resolved:
        same = loading_of(flat) == loading_of(self._defaults)
        return resolve.resolve(self._located if same else located.find(self.name, flat), flat, user=False)

    def _make(self, resolved: Resolved, on_step: OnStep) -> Picture:
        deliver.prepare_libraries()
        warnings = [each.message for each in planned_warnings.find(resolved.model, resolved.recipe, resolved.inputs)]
        (picture,) = self._maker.make(Task(resolved.weights, (resolved.recipe,), resolved.inputs), on_step)
        return replace(picture, warnings=(*warnings, *picture.warnings))


def load(model: str | PathLike[str] = DEFAULT_MODEL, **defaults: Unpack[Options]) -> Model:
    """Return a model by its name, path or `OWNER/NAME`, as -m takes it; `defaults` are options of every picture.

    Reads configs only. Raises ModelError if the model is missing or unusable.
    """
    return Model(str(model), defaults)


_last: dict[str, Model] = {}
"""The model of the last `generate`, by name."""


def generate(
    prompt: str | None = None,
    *,
    model: str | PathLike[str] = DEFAULT_MODEL,
    on_step: OnStep = lambda step: None,
    **options: Unpack[Options],
) -> Picture:
    """Make one picture. The model stays in memory until another one is used.

    Raises an SdcliError if the picture cannot be made.
    """
    name = str(model)
    if name not in _last:
        found = load(name)
        _last.clear()
        _last[name] = found
    return _last[name].generate(prompt, on_step=on_step, **options)


def read_recipe(picture: str | PathLike[str]) -> Recipe:
    """Return the recipe in the metadata of a PNG made by sdcli. Raises InputError if there is none."""
    from sdcli.files import metadata

    found = metadata.read(Path(picture))
    if found.recipe is None:
        raise InputError(f"{picture} has no recipe of sdcli", "see what it has with: sdcli info")
    return Recipe.from_dict(found.recipe)
