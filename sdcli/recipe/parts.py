"""The parts of a recipe: what the keys are called, and which values each can have. Knows nothing of files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from sdcli.errors import InvalidRecipe
from sdcli.recipe import control, image_prompt, lora, part, schedulers
from sdcli.recipe.cache import Cache
from sdcli.recipe.control import Control
from sdcli.recipe.image_prompt import ImagePrompt
from sdcli.recipe.lora import Lora

MIN_SIDE, MAX_SIDE = 64, 16_384
MAX_HIRES = 8.0
OVERLAP = 4
"""Neighbouring tiles of a picture share 1 / OVERLAP of their side at least."""
UPSCALERS = ("latent", "lanczos")
QUANTIZATIONS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""By size: 8.5, 6, 5.5, 5 and 4.5 bits for each weight."""
OF_OPENVINO = {"xpu": "GPU", "npu": "NPU"}
"""OpenVINO's names of the devices that only it uses: Intel GPUs and NPUs."""
DEVICES = ("auto", "cpu", "cuda", "mps", *OF_OPENVINO)
DTYPES = ("auto", "float32", "float16", "bfloat16")
MEMORY = ("auto", "low", "high")
TILING = ("off", "slices", "tiles")
ENGINES = ("torch", "openvino")


def within(low: float, high: float, *, unit: str = "") -> dict[str, Any]:
    """The metadata of a field whose values are numbers from `low` to `high`."""
    return {"low": low, "high": high, "unit": unit}


def one_of(choices: Iterable[str]) -> dict[str, Any]:
    """The metadata of a field whose values are `choices`."""
    return {"choices": tuple(choices)}


@dataclass(frozen=True)
class Condition:
    """What the picture should show: the context y before encoding."""

    prompt: str
    """A text; empty if there is a `label`."""
    label: str | None = None
    """The name or number of a class, for class-conditional models."""
    prompt_2: str | None = None
    """The text for the second text encoder, if it differs from the prompt."""
    negative_prompt: str = ""
    clip_skip: int = field(default=1, metadata=within(1, 12))
    """The layer of the text encoder, counted from the end as in A1111: 1 is the last."""
    prompt_weights: bool = True
    """Whether `(word:1.3)`, `[word]` and `BREAK` are interpreted."""

    @property
    def words(self) -> str:
        """The label, or the prompt if there is none."""
        return self.prompt if self.label is None else self.label


TEXT_KEYS = ("negative_prompt", "prompt_2", "clip_skip", "prompt_weights")
"""Keys that apply to prompts and not to labels."""


@dataclass(frozen=True)
class Sampling:
    """How noise becomes latents."""

    steps: int = field(metadata=within(1, 1000))
    guidance_scale: float = field(metadata=within(0, 100))
    scheduler: str = field(metadata=one_of(schedulers.NAMES))
    sigmas: str = field(default="default", metadata=one_of(schedulers.SIGMAS))
    guidance_rescale: float = field(default=0.0, metadata=within(0, 1))
    guidance_interval: str | None = None
    """Where there is guidance, in the syntax of sdcli/recipe/interval.py; None is everywhere."""
    eta: float = field(default=0.0, metadata=within(0, 1))


@dataclass(frozen=True)
class Execution:
    """Device and precision. Pixels can depend on them, so a finished recipe has resolved values."""

    device: str = field(default="auto", metadata=one_of(DEVICES))
    dtype: str = field(default="auto", metadata=one_of(DTYPES))
    threads: int = field(default=0, metadata=within(0, 1024))
    """CPU threads; 0 means torch's default."""
    batch_size: int = field(default=1, metadata=within(1, 256))
    """Pictures per U-Net call."""
    engine: str = field(default="torch", metadata=one_of(ENGINES))
    """What runs the network and decodes: torch, or OpenVINO on a CPU, an Intel GPU or an NPU, with other last bits."""
    compile: bool = False
    """Whether the network is compiled for the size of the picture by torch.compile, which changes the last bits."""
    memory: str = field(default="auto", metadata=one_of(MEMORY))
    """How much memory to use (see sdcli/planning/memory.py). Pixels only depend on it by `tiling`."""
    tiling: str = field(default="off", metadata=one_of(TILING))
    """How the latents of the picture are decoded: those of a batch together (`off`), one after the other (`slices`), or
    one after the other and in tiles (`tiles`), which changes pixels slightly. A finished recipe has what was done."""

    @property
    def torch_device(self) -> str:
        """The device of what torch computes: the CPU where another engine runs the network."""
        return self.device if self.engine == "torch" else "cpu"


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
    strength: float | None = field(default=None, metadata=within(0, 1))
    """The fraction of the steps to run: 1 starts from pure noise, a lower value keeps more of the image."""
    resize: bool = False
    """Whether the picture has the working size, to whose aspect ratio the image is cropped, rather than the image's."""
    invert_mask: bool = False
    fit_mask: bool = False
    """Whether a mask of another size is resized to the image's."""
    mask_blur: float = field(default=4.0, metadata=within(0, 512, unit=" pixels"))
    """Standard deviation of the Gaussian blur of the mask, in pixels of the image."""
    padding: int | None = field(default=None, metadata=within(0, MAX_SIDE, unit=" pixels"))
    """Crop to the masked area plus this many pixels around it; without it the whole image is used."""
    left: int = field(default=0, metadata=within(0, MAX_SIDE, unit=" pixels"))
    right: int = field(default=0, metadata=within(0, MAX_SIDE, unit=" pixels"))
    top: int = field(default=0, metadata=within(0, MAX_SIDE, unit=" pixels"))
    bottom: int = field(default=0, metadata=within(0, MAX_SIDE, unit=" pixels"))

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
class Loading:
    """How the model's parts are loaded."""

    part: tuple[str, ...] = field(default=(), metadata={"each": part.canonical})
    """Files or folders of parts, if not those of the model's entry, in the syntax of sdcli/recipe/part.py; paths are as
    given."""

    quantize: str = field(default="none", metadata=one_of(("none", *QUANTIZATIONS)))
    """The format of GGUF to which weights of layers are quantised on loading."""

    @property
    def places(self) -> dict[str, str]:
        """The paths by part."""
        return dict(map(part.parse, self.part))


def enlarged_size(text: str, width: int, height: int, key: str, multiple: int = 1) -> tuple[int, int]:
    """Return the size that `text` gives, `WIDTHxHEIGHT`, or a factor of this size, in multiples of `multiple`.

    Raises InvalidRecipe about `key` for anything else.
    """
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if sides is not None:
        return int(sides[1]), int(sides[2])
    try:
        factor = float(text)
    except ValueError:
        raise InvalidRecipe(f"{key} is {text!r}", "give a factor, or a size such as 1024x768", key) from None
    if not 1 < factor <= MAX_HIRES:
        raise InvalidRecipe(f"{key} is {factor:g}", f"a factor must be above 1, up to {MAX_HIRES:g}", key)
    return round(width * factor / multiple) * multiple, round(height * factor / multiple) * multiple


@dataclass(frozen=True)
class Hires:
    """A second pass at a larger size, which starts from the enlarged result of the first ("hires fix" in A1111)."""

    hires: str | None = None
    """The size of the picture, `WIDTHxHEIGHT` in pixels, or a factor of the recipe's size."""
    hires_upscaler: str = "latent"
    """How the result of the first pass is enlarged: its latents bilinearly (`latent`), its decoded pixels by Lanczos's
    filter (`lanczos`), or these by a network, the name or file of an upscaler."""
    hires_strength: float = field(default=0.6, metadata=within(0, 1))
    """The fraction of the second pass's steps that are run, like `strength`."""
    hires_steps: int | None = field(default=None, metadata=within(1, 1000))
    """The number of steps of the second pass; None is that of the first."""

    @property
    def network(self) -> str | None:
        """The name of the network that enlarges, if one does."""
        return None if self.hires is None or self.hires_upscaler in UPSCALERS else self.hires_upscaler

    def size(self, width: int, height: int, multiple: int = 1) -> tuple[int, int]:
        """Return the width and height of the picture for a first pass of this size.

        A factor gives the nearest multiples of `multiple`. Raises InvalidRecipe.
        """
        if self.hires is None:
            return width, height
        return enlarged_size(self.hires, width, height, "hires", multiple)


@dataclass(frozen=True)
class Enlarging:
    """Redrawing an image larger than it is, and pictures larger than a model can take at once."""

    enlarge: str | None = None
    """The size to which the image is enlarged before it is redrawn, and which the picture has: `WIDTHxHEIGHT` in
    pixels, or a factor. The recipe's `width` and `height` are the next multiples that the model takes."""
    upscaler: str = "lanczos"
    """What enlarges the image: `lanczos`, or the name or file of an upscaler."""
    tile: int | None = field(default=None, metadata=within(MIN_SIDE, MAX_SIDE, unit=" pixels"))
    """The side of the tiles, which overlap, in which a larger picture is denoised; None is all of it at once."""

    @property
    def network(self) -> str | None:
        """The name of the network that enlarges the image, if one does."""
        return None if self.enlarge is None or self.upscaler == "lanczos" else self.upscaler

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that an image of this size is enlarged to. Raises InvalidRecipe."""
        assert self.enlarge is not None
        return enlarged_size(self.enlarge, width, height, "enlarge")


@dataclass(frozen=True)
class ImagePrompts:
    """Images that say what to draw, besides the prompt, by an IP-Adapter."""

    image_prompt: tuple[str, ...] = field(default=(), metadata={"each": image_prompt.canonical})
    """The images in the syntax of sdcli/recipe/image_prompt.py."""
    image_prompt_sha256: tuple[str, ...] = ()
    ip_adapter: str | None = None
    """The name or file of the IP-Adapter."""
    image_encoder: str | None = None
    """The folder of the image encoder, if not the one that is near the adapter."""

    @property
    def prompts(self) -> tuple[ImagePrompt, ...]:
        """`image_prompt`, parsed."""
        return tuple(ImagePrompt.parse(each) for each in self.image_prompt)


@dataclass(frozen=True)
class Refiner:
    """Another model that takes the last steps (SDXL)."""

    refiner: str | None = None
    """Its name or path."""
    refiner_switch: float = field(default=0.8, metadata=within(0.01, 0.99))
    """The fraction of the noise levels, from pure noise, after which it is used."""


@dataclass(frozen=True)
class References:
    """Images that a model takes as references, such as the one to edit; the picture shows them changed or combined."""

    reference: tuple[str, ...] = ()
    """The paths of the images, in order."""
    reference_sha256: tuple[str, ...] = ()
    match_reference: bool = False
    """Whether the picture, which is made at `width` × `height`, is resized to the size of the first image."""


@dataclass(frozen=True)
class Flow:
    """Sampling of models that were trained by flow matching."""

    shift: float | None = field(default=None, metadata=within(0.01, 100))
    """How far the noise levels are shifted towards noise; None is the model's own shift, which can depend on size."""
    true_cfg_scale: float | None = field(default=None, metadata=within(1, 100))
    """Guidance by a negative prompt, besides a guidance scale that is distilled into the model (FLUX.1 [dev])."""
    skip_layer_guidance: str | None = None
    """Guidance away from the prediction without some layers: see sdcli/recipe/skip_layers.py (SD 3.5)."""


@dataclass(frozen=True)
class Shortcuts:
    """Ways to compute less, which change the picture more than its last bits."""

    cache: str | None = None
    """What is reused between steps, in the syntax of sdcli/recipe/cache.py."""
    token_merging: float = field(default=0.0, metadata=within(0, 0.75))
    """The share of the tokens that self-attention of a U-Net merges into others, where there are most."""

    @property
    def cached(self) -> Cache | None:
        """`cache`, parsed."""
        return None if self.cache is None else Cache.parse(self.cache)


OMITTED_KEYS = ("memory", "tiling", "compile", "engine")
"""Keys of `Execution` that most recipes do not have."""
LATENTS_KEYS = ("init_latents", "init_latents_sha256", "strength")
"""The keys of `Initial` that apply if a picture starts from latents."""
INITIAL_KEYS = tuple(each.name for each in fields(Initial))
LAYOUT_KEYS = tuple(each.name for each in fields(Layout))
IMAGE_PROMPT_KEYS = tuple(each.name for each in fields(ImagePrompts))
INPUT_KEYS = (*INITIAL_KEYS, *LAYOUT_KEYS, *IMAGE_PROMPT_KEYS, *(each.name for each in fields(References)))
"""Keys of input files."""
HIRES_KEYS = tuple(each.name for each in fields(Hires))
REFINER_KEYS = tuple(each.name for each in fields(Refiner))
ENLARGING_KEYS = tuple(each.name for each in fields(Enlarging))
WITHOUT_DEFAULTS = ("prompt_2", *INPUT_KEYS, *HIRES_KEYS, *REFINER_KEYS, *ENLARGING_KEYS, "part")
"""Keys that the user's settings cannot have."""
