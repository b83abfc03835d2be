"""Writes a trained model as a diffusers folder in float16, readable by transformers 4 and 5."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

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
    """Write config and weights.

    Keys have the `text_model.` prefix: without it, transformers 4 would load random weights.
    """
    text_encoder.config.architectures = ["CLIPTextModel"]
    text_encoder.config.save_pretrained(folder)
    forget_origin(folder)
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": value.to("cpu", torch.float16).contiguous()
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
    config = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype", "torch_dtype")}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def copy_part(source: Path, folder: Path) -> None:
    """Copy a component's folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def write_index(folder: Path, stage: str, base: Path | None) -> None:
    """Write model_index.json: that of `base` if there is one, with the pipeline class of the stage."""
    index = MODEL_INDEX if base is None else json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    changed = {"_class_name": PIPELINES[stage]} if stage in PIPELINES else {}
    (folder / "model_index.json").write_text(json.dumps(index | changed, indent=2) + "\n", encoding="utf-8")
