"""The components of a latent diffusion model for training, in float32: loaded from a folder, or new."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdcli.errors import ModelCorrupt, ModelNotFound

TEXT_WIDTH = 256
LATENT_CHANNELS = 8
UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (96, 128, 192),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (1, 4, 6),  # the number of heads, despite the name
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": TEXT_WIDTH,
    "max_position_embeddings": 77,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # has no effect with trailing timesteps, but diffusers warns of other values
}


@dataclass(frozen=True)
class Parts:
    """The components of a model.

    `scheduler` is a DDIMScheduler with the model's noise schedule: it adds noise, and samples the sheets.
    """

    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler

    @property
    def side(self) -> int:
        """The native size of the U-Net in pixels."""
        return int(self.unet.config.sample_size) * self.cell

    @property
    def cell(self) -> int:
        """The side of the square of pixels that one latent represents: the VAE's scale factor."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def to(self, device: torch.device) -> "Parts":
        """Move the components to a device; returns them."""
        for part in (self.vae, self.unet, self.text_encoder):
            part.to(device)
        return self


def read(folder: Path) -> Parts:
    """Load a diffusers folder with one CLIP text encoder. Raises ModelNotFound or ModelCorrupt."""
    text_encoder, tokenizer = read_text(folder)
    return Parts(
        read_vae(folder / "vae"),
        read_unet(folder / "unet"),
        text_encoder,
        tokenizer,
        DDIMScheduler.from_config(_loaded_config(folder / "scheduler")),
    )


def read_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Load the text encoder of such a folder, in float32, and its tokenizer.

    Raises ModelNotFound or ModelCorrupt.
    """
    if not (folder / "model_index.json").is_file():
        raise ModelNotFound(f"{folder} is not a diffusers folder: it has no model_index.json", "give one with --from")
    if (folder / "text_encoder_2").exists():
        raise ModelCorrupt(
            f"{folder} has two text encoders", "use a model with one, such as kit or Stable Diffusion 1 and 2"
        )
    text_encoder, tokenizer = read_text_encoder(folder / "text_encoder"), read_tokenizer(folder / "tokenizer")
    known = text_encoder.config.vocab_size
    if len(tokenizer) > known:
        problem = f"the tokenizer of {folder} has {len(tokenizer)} tokens, but its text encoder has {known}"
        raise ModelCorrupt(problem, "download the model again; both must come from the same model")
    return text_encoder, tokenizer


def read_vae(folder: Path) -> Any:
    """Load the autoencoder in a folder, frozen, in float32. Raises ModelCorrupt."""
    tiny = _loaded_config(folder).get("_class_name") == "AutoencoderTiny"
    return _loaded(AutoencoderTiny if tiny else AutoencoderKL, folder).eval().requires_grad_(False)


def read_unet(folder: Path) -> UNet2DConditionModel:
    """Load the U-Net in a folder, in float32. Raises ModelCorrupt."""
    unet: UNet2DConditionModel = _loaded(UNet2DConditionModel, folder)
    return unet


def read_text_encoder(folder: Path) -> CLIPTextModel:
    """Load the text encoder in a folder, in float32. Raises ModelCorrupt."""
    text_encoder: CLIPTextModel = _loaded(CLIPTextModel, folder)
    return text_encoder


def noise_scheduler() -> DDIMScheduler:
    """Return the noise schedule of a new model."""
    return DDIMScheduler(**SCHEDULER)


def _loaded(kind: Any, folder: Path) -> Any:
    for library in (diffusers, transformers):  # their progress bars would mix with ours
        library.utils.logging.disable_progress_bar()
    try:
        # without this, transformers 5 would keep the file's float16
        key = "dtype" if kind is CLIPTextModel else "torch_dtype"
        return kind.from_pretrained(folder, local_files_only=True, **{key: torch.float32})
    except (OSError, ValueError, RuntimeError) as error:
        hint = "it must be a component of a diffusers folder, with config and safetensors weights"
        raise ModelCorrupt(f"cannot read {folder}: {error}", hint) from error


def _loaded_config(folder: Path) -> Any:
    try:
        name = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
        return DDIMScheduler._dict_from_json_file(folder / name)
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"cannot read {folder}: {error}", "it must be a component of a diffusers folder") from error


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer in a folder. Raises ModelCorrupt."""
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"cannot read {folder}: {error}", "it needs vocab.json and merges.txt") from error


def build(vae: Any, tokenizer: CLIPTokenizer, unet: dict[str, Any] = UNET) -> Parts:
    """Return a model with a new U-Net and a new text encoder for an autoencoder and a tokenizer."""
    return Parts(vae, UNet2DConditionModel(**unet), build_text_encoder(tokenizer), tokenizer, noise_scheduler())


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a new text encoder for a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **TEXT_ENCODER,
        )
    )


@torch.no_grad()
def widen(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """Add `channels` input channels to a U-Net, with zero weights: its output does not change.

    A U-Net that has them already is returned unchanged. Raises ModelCorrupt for any other number of input channels.
    """
    before, latents = unet.config.in_channels, unet.config.out_channels
    if before == latents + channels:
        return unet
    if before != latents:
        raise ModelCorrupt(
            f"the U-Net takes {before} channels, not {latents} or {latents + channels}", "use another model"
        )
    known = unet.conv_in.weight
    weight = known.new_zeros((len(known), latents + channels, *known.shape[2:]))
    weight[:, :latents] = known
    return with_input_weight(unet, weight)


@torch.no_grad()
def with_input_weight(unet: UNet2DConditionModel, weight: Tensor) -> UNet2DConditionModel:
    """Set the weight (out, in, k, k) of a U-Net's first convolution, and so its number of input channels."""
    old, channels = unet.conv_in, weight.shape[1]
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    new.weight.copy_(weight)
    new.bias = old.bias
    unet.conv_in = new.to(old.weight.device)
    unet.register_to_config(in_channels=channels)
    return unet


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Return the token ids of prompts (n, 77)."""
    encoded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids
