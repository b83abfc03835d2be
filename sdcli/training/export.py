"""Writes a trained model as a diffusers folder in float16, readable by transformers 4 and 5."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from sdcli.models.export import prefixed, write_json
from sdcli.models.families import read_json
from sdcli.models.source import INDEX

PIPELINES = {"inpaint": "StableDiffusionInpaintPipeline"}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """Write config and weights, with the tensor names that transformers 4 and 5 read."""
    text_encoder.config.architectures = ["CLIPTextModel"]
    text_encoder.config.save_pretrained(folder)
    forget_origin(folder)
    tensors = {
        prefixed(name): value.to("cpu", torch.float16).contiguous()
        for name, value in text_encoder.state_dict().items()
        if "position_ids" not in name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def export_unet(unet: UNet2DConditionModel, folder: Path, shard_mb: int) -> None:
    """Write config and weights, in files of at most `shard_mb` megabytes. Converts the U-Net to float16."""
    unet.half().save_pretrained(folder, max_shard_size=f"{shard_mb}MB")
    forget_origin(folder)


def export_vae(vae: Any, folder: Path) -> None:
    """Write config and weights. Converts the autoencoder to float16."""
    vae.half().save_pretrained(folder)
    forget_origin(folder)


def forget_origin(folder: Path) -> None:
    """Remove the path of the initial weights and the training precision from a component's config."""
    file = folder / "config.json"
    dropped = ("_name_or_path", "dtype", "torch_dtype")
    write_json(file, {key: value for key, value in read_json(file).items() if key not in dropped})


def copy_part(source: Path, folder: Path) -> None:
    """Copy a component's folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def write_index(folder: Path, stage: str, base: Path | None) -> None:
    """Write model_index.json: that of `base` if there is one, with the pipeline class of the stage."""
    index = MODEL_INDEX if base is None else read_json(base / INDEX)
    changed = {"_class_name": PIPELINES[stage]} if stage in PIPELINES else {}
    write_json(folder / INDEX, index | changed)
