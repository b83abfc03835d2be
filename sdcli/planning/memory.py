"""Plans how a run fits into memory, from the sizes of the model's parts and the room on the device. Imports no torch.

What the plan does not change, it does not tell: only `tiling` changes pixels, and is part of a finished recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdcli.diffusion import architectures, tiling
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.errors import ModelCorrupt
from sdcli.models import addons, families
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning.sizes import Size
from sdcli.recipe.recipe import Recipe

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SHARES = {"cpu": 0.75, "mps": 0.75}
"""The share of main memory that a run may take if `memory` is `auto`: other programs need some too."""
SHARE_OF_GPU = 0.9
IN_GROUPS = 16
"""With offload in groups, about so small a part of a network's weights is on the device at once."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights of parts, and of activations. `network` includes add-ons and a class embedder."""

    text: int
    network: int
    vae: int
    denoising: int
    decoding: Mapping[str, int]
    """By the way of decoding (see sdcli/diffusion/tiling.py), the usual one first."""

    @property
    def weights(self) -> int:
        """All weights."""
        return self.text + self.network + self.vae


@dataclass(frozen=True)
class MemoryPlan:
    """How a run fits into memory.

    `staged`: text encoders are loaded, used and dropped before the network is loaded. `offload`: which weights wait in
    main memory until they are used on a GPU: `none`, those of whole parts (`model`), or of layers (`group`). `tiling`:
    how latents are decoded. `peak`: bytes on the device, estimated.
    """

    staged: bool = False
    offload: str = "none"
    tiling: str = "off"
    peak: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan without the estimate, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "peak"}


def plan(sizes: Sizes, of: Recipe, device: str, *, room: int | None, host: int | None) -> MemoryPlan:
    """Choose how a run of `of` fits into `room`, the bytes on `device`, and `host`, those of main memory.

    `memory` of the recipe is `auto` for what fits at the least cost, `low` for the least memory, and `high` for none of
    it. Time is a lower cost than other pixels. A room of None is unknown, and then everything fits. A way of decoding
    that the recipe asks for is kept, unless another one takes less and is needed.
    """
    asked, known = of.execution.tiling, list(sizes.decoding)
    ways = known[known.index(asked) :] if asked in known else [asked]
    least = (True, "group" if device == "cuda" else "none")
    match of.execution.memory:
        case "low":
            return _planned(sizes, least, ways[-1])
        case "high":
            return _planned(sizes, (False, "none"), asked)
    most, holds_all = usable(room, device), _fits(sizes.weights, usable(host, "cpu"))
    possible = [(False, "none"), (True, "none")]
    if device == "cuda":
        possible = [(False, "none"), *((not holds_all, each) for each in ("none", "model", "group"))]
    plans = [_planned(sizes, each, way) for way in ways for each in possible]
    return next((each for each in plans if _fits(each.peak, most)), plans[-1])


def _planned(sizes: Sizes, staged_and_offload: tuple[bool, str], way: str) -> MemoryPlan:
    staged, offload = staged_and_offload
    staged = staged and sizes.text > 0
    return MemoryPlan(staged, offload, way, _peak(sizes, staged, offload, way))


def usable(room: int | None, device: str) -> int | None:
    """Return how much of the room on a device runs may take, or None if it is unknown."""
    return None if room is None else round(room * SHARES.get(device, SHARE_OF_GPU))


def _fits(count: int, room: int | None) -> bool:
    return room is None or count <= room


def _peak(sizes: Sizes, staged: bool, offload: str, way: str) -> int:
    """Return the peak on the device if the picture is decoded in `way`."""
    decoding = sizes.decoding.get(way, min(sizes.decoding.values()))
    text, network = sizes.text, sizes.network
    if offload != "none":
        if offload == "group":
            text, network = text // IN_GROUPS, network // IN_GROUPS
        return max(text, network + sizes.denoising, sizes.vae + decoding)
    drawing = network + sizes.vae + max(sizes.denoising, decoding)
    return max(text, drawing) if staged else text + drawing


def sizes_of(weights: Weights, parts: Mapping[str, Size], of: Recipe, dtype: str) -> Sizes:
    """Return the sizes of a run of `of` in `dtype`, from the sizes of all parts and add-ons in their files.

    Raises ModelCorrupt for invalid configs.

    The peak of activations is in the VAE's decoder, at the picture's full size, or in the U-Net with its skip
    connections. The number of tensors of the largest size was measured with kit at 256 and 512 pixels in float32 and
    bfloat16, where the estimate is within 25 % of the peak. The activations of add-ons are a fraction of the U-Net's
    (`Kind.activations`). torch itself is not included.
    """
    source = weights.model
    network, vae = (source.config(part) for part in (source.denoiser, "vae"))
    size = BYTES[dtype]
    vae_size = 4 if families.keeps_float32(vae, dtype) else size
    taken = {}
    for part, each in parts.items():
        quantize = of.loading.quantize if _takes_quantised(source, part) else "none"
        taken[part] = each.in_memory(vae_size if part == "vae" else size, quantize)
    text = sum(count for part, count in taken.items() if part.startswith("text_encoder"))
    of_vae = taken.get("vae", 0)
    return Sizes(
        text=text,
        network=sum(taken.values()) - text - of_vae,
        vae=of_vae,
        denoising=round(size * _denoising(weights, of, network, vae)),
        decoding=_decoding(of, vae, vae_size),
    )


def _takes_quantised(source: Source, part: str) -> bool:
    """Whether a part is quantised on loading: the network and language models."""
    index = source.index_if_any().get(part)
    is_clip = isinstance(index, list) and str(index[-1]).startswith("CLIP")
    return part in ("unet", "transformer") or (part.startswith("text_encoder") and not is_clip)


def sizes_of_vae(vae: Mapping[str, Any], parameters: int, of: Recipe, size: int) -> Sizes:
    """Return the sizes of decoding `of` by a VAE alone, from its config, with `size` bytes a number."""
    return Sizes(text=0, network=0, vae=size * parameters, denoising=0, decoding=_decoding(of, vae, size))


def _denoising(weights: Weights, of: Recipe, network: Mapping[str, Any], vae: Mapping[str, Any]) -> float:
    """Return about how many numbers the network keeps at once."""
    source, space = weights.model, LatentSpace.of(vae)
    most = of.enlarging.tile or max(of.size)
    latents = math.prod(min(side, most) for side in of.size) // (space.vae_scale_factor // space.patch) ** 2
    architecture = architectures.load(architectures.find(source.denoiser, network))
    try:
        kept = architecture.activations(network, latents)
        facts = architecture.facts(network, vae, source.index_if_any())
    except (KeyError, TypeError, ValueError) as error:
        file = source.folder(source.denoiser) / "config.json"
        raise ModelCorrupt(f"{file} is invalid: {error}", "download the model's folder again") from error
    guided = 2 if facts.is_guided(of.sampling.guidance_scale) else 1
    beside = max((addons.KINDS[each.kind].activations for each in weights.addons), default=0)
    return guided * of.execution.batch_size * kept * (1 + beside)


def _decoding(of: Recipe, vae: Mapping[str, Any], size: int) -> dict[str, int]:
    """Return the bytes that decoding takes, by its ways: more than off are only those that take less."""
    vae_class = str(vae.get("_class_name", ""))
    batch, one = of.execution.batch_size, 6 * _widest(vae) * size
    pixels, tile = math.prod(of.size), min(of.size[0], tiling.TILE) * min(of.size[1], tiling.TILE)
    counts = {"off": batch * pixels, "slices": pixels, "tiles": tile}
    return {way: one * counts[way] for way in tiling.ways("off", of.size, batch, vae_class)}


def _widest(vae: Mapping[str, Any]) -> int:
    """Return the channels at the picture's full size: the last block starts with the width of the one before."""
    if "z_dim" in vae:
        return max(int(vae.get("base_dim", 96)) * int(factor) for factor in vae.get("dim_mult", (1, 2))[:2])
    return max(map(int, (vae.get("block_out_channels") or vae["decoder_block_out_channels"])[:2]))
