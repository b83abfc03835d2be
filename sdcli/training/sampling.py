"""Pictures from a model in training or from a folder, through diffusers' own pipeline, so that what is judged is
what any user of the folder gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++-2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@dataclass(frozen=True)
class Sampling:
    """How to sample; the fields bear the names of the pipeline's arguments."""

    scheduler: str = "ddim"
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0


def assemble(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> StableDiffusionPipeline:
    """The pipeline of these parts, silent and without a safety checker."""
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of a diffusers folder, in fp32: left to itself, transformers 5 keeps the text encoder in fp16."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, batch: int = 8
) -> np.ndarray:
    """One picture for each (prompt, seed): uint8 (n, height, width, 3)."""
    name, changes = SCHEDULERS[sampling.scheduler]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **changes)
    pictures = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = pipeline(
                list(prompts[part]),
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                guidance_rescale=sampling.guidance_rescale,
                generator=generators,
                output_type="latent",
            ).images
            decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        pixels = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        pictures.append(pixels.permute(0, 2, 3, 1).numpy())
    return np.concatenate(pictures)


def sheet(pictures: np.ndarray, columns: int, side: int = 192) -> Image.Image:
    """The pictures as a contact sheet, row by row."""
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (columns * side, rows * side))
    for index, picture in enumerate(pictures):
        thumbnail = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
        image.paste(thumbnail, (index % columns * side, index // columns * side))
    return image
