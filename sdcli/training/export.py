"""Writing a trained model as an ordinary diffusers folder in half precision, readable by transformers 4 and 5."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

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
    """Config and weights, keys with the `text_model.` prefix: without it transformers 4 would load random weights."""
    text_encoder.config.architectures = ["CLIPTextModel"]
    text_encoder.config.save_pretrained(folder)
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": value.to(torch.float16).contiguous()
        for name, value in text_encoder.state_dict().items()
        if "position_ids" not in name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def export(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler, folder: Path
) -> None:
    """Write everything but the tokenizer (see tokenizer.write_tokenizer); the models become half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("unet/*.safetensors*"):
        old.unlink()
    vae.half().save_pretrained(folder / "vae")
    unet.half().save_pretrained(folder / "unet", max_shard_size="12MB")
    export_text_encoder(text_encoder, folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
