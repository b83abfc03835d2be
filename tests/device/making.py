"""Pictures by tiny models of every family and context, on any device, and how far two of them are apart."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdcli.diffusion import device, pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files.palette import Class
from sdcli.models import addons, assemble, located, registry
from sdcli.recipe.recipe import Recipe
from tests import tiny

CLASSES = (Class(0, "sky", (120, 180, 240)), Class(1, "sand", (240, 214, 154)), Class(2, "fox", (255, 128, 0)))
TEXT = {"prompt": "an (arctic fox:1.2) in the snow", "negative_prompt": "grey"}
LABEL = {"label": "279"}
SHARED = {"seed": 7, "steps": 4, "guidance_scale": 4.0, "scheduler": "ddim", "width": 64, "height": 64}

Makes = dict[str, Callable[[Path], Path]]
MODELS: Makes = {
    **{family: functools.partial(tiny.make_folder, family) for family in tiny.FAMILIES},
    "dit": tiny.make_dit,
    "ldm": tiny.make_ldm,
    "nine": functools.partial(tiny.make_folder, "sd15", in_channels=9),
    "semantic": functools.partial(tiny.make_semantic_folder, classes=CLASSES),
}

# name → (model, what its recipe says besides SHARED); pictures are named as Studio writes them
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15-ddim": ("sd15", TEXT),
    "sd15-euler": ("sd15", {**TEXT, "scheduler": "euler"}),
    "sd15-dpm++-2m-karras": ("sd15", {**TEXT, "scheduler": "dpm++-2m", "sigmas": "karras"}),
    "sd15-euler-a": ("sd15", {**TEXT, "scheduler": "euler-a"}),
    "sd15-dpm++-sde": ("sd15", {**TEXT, "scheduler": "dpm++-sde"}),
    "sd15-unipc": ("sd15", {**TEXT, "scheduler": "unipc"}),
    "sd15-heun": ("sd15", {**TEXT, "scheduler": "heun"}),
    "sd15-eta": ("sd15", {**TEXT, "eta": 0.5}),
    "sd15-long-prompt": ("sd15", {"prompt": "a fox in the snow, " * 30}),
    "sd21-v": ("sd21-v", {**TEXT, "guidance_rescale": 0.7}),
    "sd-turbo": ("sd-turbo", {**TEXT, "scheduler": "euler-a", "guidance_scale": 0.0, "steps": 1}),
    "sdxl": ("sdxl", {**TEXT, "scheduler": "euler"}),
    "lcm": ("lcm", {**TEXT, "scheduler": "lcm", "guidance_scale": 8.0}),
    "dit": ("dit", LABEL),
    "dit-dpm++-2m": ("dit", {**LABEL, "scheduler": "dpm++-2m"}),
    "ldm": ("ldm", LABEL),
    "img2img": ("sd15", {**TEXT, "image": "photo.png", "strength": 0.75, "scheduler": "dpm++-2m"}),
    "img2img-sdxl": ("sdxl", {**TEXT, "image": "photo.png", "strength": 0.75, "scheduler": "euler"}),
    "inpaint-plain-u-net": ("sd15", {**TEXT, "image": "photo.png", "mask_image": "mask.png"}),
    "inpaint-plain-euler": ("sd15", {**TEXT, "image": "photo.png", "mask_image": "mask.png", "scheduler": "euler"}),
    "inpaint": ("nine", {**TEXT, "image": "photo.png", "mask_image": "mask.png", "scheduler": "dpm++-2m"}),
    "segmentation": ("semantic", {**TEXT, "segmentation_map": "map.png"}),
    "control": ("sd15", {**TEXT, "control": ["CONTROL/sd15=photo.png:0.8"]}),
    "control-sdxl": ("sdxl", {**TEXT, "control": ["CONTROL/sdxl=photo.png"], "scheduler": "euler"}),
}
_FILES = ("image", "mask_image", "segmentation_map")


class Studio:
    """Writes the tiny models once, loads each once for a device and dtype, and makes pictures with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = functools.cache(self._folder)
        self._model = functools.cache(self._load)
        self._draw()

    def recipe(self, name: str, *, device: str, dtype: str = "float32", **options: Any) -> Recipe:
        """The recipe of one of CASES, for that device."""
        model, said = CASES[name]
        asked = {**SHARED, **said, **options, "device": device, "dtype": dtype, "model": str(self.folder(model))}
        for key in _FILES:
            if key in asked:
                asked[key] = str(self.directory / asked[key])
        if "control" in asked:
            asked["control"] = [self._control(each) for each in asked["control"]]
        return self.resolved(asked)

    def resolved(self, asked: dict[str, Any]) -> Recipe:
        return device.resolve_execution(tiny.recipe_for(registry.find(asked["model"]), asked, user=False))

    def make(self, recipe: Recipe, seeds: Sequence[int] | None = None) -> list[pipeline.Result]:
        """The picture of `recipe`, or one for each of `seeds` in one batch."""
        seeds = [recipe.seed] if seeds is None else seeds
        recipes = [recipe.replace(seed=seed, batch_size=len(seeds)) for seed in seeds]
        model = self.model(recipe)
        return pipeline.run(model, recipes, inputs=tiny.inputs_of(model, recipe))

    def model(self, recipe: Recipe) -> LatentDiffusionModel:
        """The model of `recipe`, with its ControlNets, loaded once."""
        execution = recipe.execution
        return self._model(recipe.model, recipe.layout.nets, execution.device, execution.dtype)

    @functools.cache  # noqa: B019  one Studio lives as long as the tests
    def reference(self, name: str) -> pipeline.Result:
        """What the CPU makes of one of CASES in float32."""
        return self.make(self.recipe(name, device="cpu"))[0]

    def _folder(self, model: str) -> Path:
        return MODELS[model](self.directory / model)

    def _load(self, model: str, nets: tuple[str, ...], device: str, dtype: str) -> LatentDiffusionModel:
        asked = {**SHARED, "prompt": "x", "model": model, "device": device, "dtype": dtype}
        recipe = Recipe.from_dict({**asked, "control": [f"{each}=x.png" for each in nets]} if nets else asked)
        return assemble.load(addons.locate(located.find(model), recipe.to_dict()), recipe)

    def _control(self, words: str) -> str:
        family = words.partition("=")[0].partition("/")[2]
        net = self.directory / f"net-{family}"
        if not net.exists():
            tiny.make_controlnet(family, net)
        return words.replace(f"CONTROL/{family}=", f"{net}={self.directory}/")

    def _draw(self) -> None:
        rng = np.random.default_rng(1)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(self.directory / "photo.png")
        mask = Image.new("L", (64, 64))
        mask.paste(255, (16, 8, 48, 56))
        mask.save(self.directory / "mask.png")
        colours = np.array([each.color for each in CLASSES], dtype=np.uint8)
        Image.fromarray(colours[rng.integers(0, len(CLASSES), (64, 64))]).save(self.directory / "map.png")


def apart(one: pipeline.Result, other: pipeline.Result) -> dict[str, float]:
    """PSNR in dB (99 where equal) and greatest difference of pixels; greatest difference of latents by their std."""
    pixels = np.asarray(one.image, dtype=float) - np.asarray(other.image, dtype=float)
    mean = float((pixels**2).mean())
    latents = (one.latents - other.latents).abs().max() / other.latents.std()
    return {
        "psnr": round(10 * math.log10(255**2 / mean), 1) if mean else 99.0,
        "max": float(np.abs(pixels).max()),
        "latents": round(float(latents), 5),
    }


def synchronise(device: str) -> None:
    """Wait until the device has done all that it was told."""
    if device != "cpu":
        getattr(torch, device).synchronize()
