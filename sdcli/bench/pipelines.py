"""diffusers' pipelines around the parts of a loaded model: how each is made and called. Imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.diffusion import packing
from sdcli.diffusion.context import Context
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.recipe.recipe import Recipe

Options = dict[str, Any]
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def embeds_of(context: Context, dtype: torch.dtype) -> Options:
    """Return the embeddings of a context under the names that most pipelines have for them."""
    given = {name: getattr(context, name) for name in _EMBEDS}
    return {name: each.to(dtype) for name, each in given.items() if each is not None}


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers: `place` is its class as `module:class`, and `absent` are the parts that it does without.

    `conditions` are its arguments for a context, besides the scale of guidance, whose name is `scale`. `to_theirs` and
    `to_ours` convert latents (B, C, h, w), the latter with h and w.
    """

    place: str
    absent: tuple[str, ...]
    network: str = "transformer"
    conditions: Callable[[Context, torch.dtype], Options] = embeds_of
    scale: str = "guidance_scale"
    to_theirs: Callable[[Tensor], Tensor] = lambda latents: latents
    to_ours: Callable[[Tensor, int, int], Tensor] = lambda latents, height, width: latents
    latents_dtype: torch.dtype | None = None
    """That of the latents, if it is not the network's."""

    def make(self, network: Any, vae: Any, scheduler: Any, **more: Any) -> Any:
        """Return the pipeline around these parts."""
        module, _, name = self.place.partition(":")
        kind = getattr(importlib.import_module(module), name)
        parts = {self.network: network, "vae": vae, "scheduler": scheduler, **dict.fromkeys(self.absent)}
        made = kind(**parts, **more)
        made.set_progress_bar_config(disable=True)
        return made

    def guidance(self, recipe: Recipe) -> Options:
        """Return the arguments of guidance."""
        return {self.scale: recipe.sampling.guidance_scale}


def _lists(context: Context, dtype: torch.dtype) -> Options:
    """Z-Image takes a list of embeddings (L, D) for each half."""
    return {name: list(each) for name, each in embeds_of(context, dtype).items()}


def _with_masks(context: Context, dtype: torch.dtype) -> Options:
    """Qwen-Image takes a mask of tokens for each half."""
    embeds = embeds_of(context, dtype)
    return embeds | {f"{name}_mask": each.new_ones(each.shape[:2], dtype=torch.long) for name, each in embeds.items()}


def _padded(mask: str, more: Options | None = None) -> Callable[[Context, torch.dtype], Options]:
    """Several take embeddings of one length for both halves, and masks of their tokens, whose names end with `mask`."""

    def conditions(context: Context, dtype: torch.dtype) -> Options:
        embeds = embeds_of(context, dtype)
        masks = {"prompt_embeds": context.prompt_mask, "negative_prompt_embeds": context.negative_prompt_mask}
        longest = max(each.shape[1] for each in embeds.values())
        found = dict(more or {})
        for name, each in embeds.items():
            own, missing = masks.get(name), longest - each.shape[1]
            own = each.new_ones(each.shape[:2], dtype=torch.bool) if own is None else own
            found[name] = torch.nn.functional.pad(each, (*(0, 0) * (each.ndim - 2), 0, missing))
            found[f"{name.removesuffix('_embeds')}_{mask}"] = torch.nn.functional.pad(own, (0, missing))
        return found

    return conditions


_TEXT = ("text_encoder", "tokenizer")
_TWO = (*_TEXT, "text_encoder_2", "tokenizer_2")
_OF = "diffusers.pipelines"
PIPELINES: Mapping[str, Pipeline] = {
    "z_image": Pipeline(
        f"{_OF}.z_image.pipeline_z_image:ZImagePipeline", _TEXT, conditions=_lists, latents_dtype=torch.float32
    ),
    "flux": Pipeline(f"{_OF}.flux.pipeline_flux:FluxPipeline", _TWO, to_theirs=packing.pack, to_ours=packing.unpack),
    "flux2": Pipeline(f"{_OF}.flux2.pipeline_flux2_klein:Flux2KleinPipeline", _TEXT, to_ours=packing.unflatten),
    "sd3": Pipeline(
        f"{_OF}.stable_diffusion_3.pipeline_stable_diffusion_3:StableDiffusion3Pipeline",
        (*_TWO, "text_encoder_3", "tokenizer_3"),
    ),
    "qwen_image": Pipeline(
        f"{_OF}.qwenimage.pipeline_qwenimage:QwenImagePipeline",
        *(_TEXT, "transformer", _with_masks, "true_cfg_scale", packing.pack, packing.unpack),
    ),
    "chroma": Pipeline(
        f"{_OF}.chroma.pipeline_chroma:ChromaPipeline",
        *(_TEXT, "transformer", _padded("attention_mask"), "guidance_scale", packing.pack, packing.unpack),
    ),
    "krea2": Pipeline(
        f"{_OF}.krea2.pipeline_krea2:Krea2Pipeline",
        *(_TEXT, "transformer", _padded("embeds_mask"), "guidance_scale", packing.pack, packing.unpack),
    ),
    "lumina2": Pipeline(f"{_OF}.lumina2.pipeline_lumina2:Lumina2Pipeline", _TEXT, conditions=_padded("attention_mask")),
    "sana": Pipeline(
        f"{_OF}.sana.pipeline_sana:SanaPipeline",
        _TEXT,
        conditions=_padded("attention_mask", {"use_resolution_binning": False, "negative_prompt": None}),
    ),
}
_SD = Pipeline(
    f"{_OF}.stable_diffusion.pipeline_stable_diffusion:StableDiffusionPipeline",
    (*_TEXT, "safety_checker", "feature_extractor"),
    "unet",
)
_SDXL = Pipeline(f"{_OF}.stable_diffusion_xl.pipeline_stable_diffusion_xl:StableDiffusionXLPipeline", _TWO, "unet")


def of(model: LatentDiffusionModel) -> tuple[Pipeline, Options] | None:
    """Return the pipeline for `model`, and further arguments to make it; None if it has none for comparison."""
    if model.architecture == "unet" and model.labels is None:
        if model.facts.knows_sizes:
            return _SDXL, {"add_watermarker": False}
        return _SD, {"requires_safety_checker": False}
    found = PIPELINES.get(model.architecture)
    if found is None:
        return None
    distilled = {"flux2": model.facts.unguided, "krea2": bool(model.facts.schedule)}.get(model.architecture)
    return found, {} if distilled is None else {"is_distilled": distilled}
