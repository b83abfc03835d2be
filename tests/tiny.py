"""Tiny models of every family: real classes, real file layouts, random weights.

`make_folder(family, directory)` writes a diffusers folder that sdcli and diffusers' own pipelines both load, and
`make_dit` and `make_ldm` those of models that take class labels.
All of FAMILIES draw 64×64 pictures from 8×8 latents, with 4 latent channels and a VAE of 4 levels, as Stable
Diffusion does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.files import inputs, palette
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.files.palette import Class
from sdcli.models import families, located
from sdcli.models.registry import ModelEntry
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe

FAMILIES = ("sd15", "sd21-v", "sdxl", "sd-turbo", "lcm")
NATIVE_SIZE = 64

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    "a r",
    "c t",
    "i c</w>",
    "ar ct",
    "arct ic</w>",
    "f o",
    "fo x</w>",
    "t h",
    "th e</w>",
    "i n</w>",
    "o f</w>",
    "s n",
    "o w</w>",
    "sn ow</w>",
]

NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "steps_offset": 1,
    "clip_sample": False,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd15": {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
    },
    "sd21-v": {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "prediction_type": "v_prediction"},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    },
    "sd-turbo": {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    },
    "lcm": {
        "_class_name": "LCMScheduler",
        "original_inference_steps": 50,
        "prediction_type": "epsilon",
        "set_alpha_to_one": True,
    },
}

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"attention_head_dim": 4, "cross_attention_dim": 32},
    "sd21-v": {"attention_head_dim": [2, 2, 4], "use_linear_projection": True, "cross_attention_dim": 32},
    "sd-turbo": {"attention_head_dim": [2, 2, 4], "use_linear_projection": True, "cross_attention_dim": 32},
    "lcm": {"attention_head_dim": 4, "cross_attention_dim": 32, "time_cond_proj_dim": 16},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": [2, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 32 + 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    },
}


def vocabulary() -> dict[str, int]:
    """A vocabulary of CLIP's shape: 256 bytes, 256 bytes that end a word, merges, two special tokens."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [*map(chr, visible), *(chr(256 + place) for place in range(len(hidden)))]
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, BOS, EOS]
    return {token: place for place, token in enumerate(tokens)}


def write_tokenizer(directory: Path, pad_token: str = EOS) -> None:
    """The four files that a CLIP tokenizer's folder on the hub has."""
    directory.mkdir(parents=True)
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    write_json(directory / "vocab.json", vocabulary())
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    write_json(directory / "special_tokens_map.json", special)
    write_json(directory / "tokenizer_config.json", settings)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def make_unet(family: str, in_channels: int = 4) -> UNet2DConditionModel:
    settings = {
        "sample_size": NATIVE_SIZE // 8,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**settings, **UNETS[family]})


def make_controlnet(family: str, directory: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Write a ControlNet for the tiny U-Net of `family` into `directory`; returns `directory`. None of it is zero."""
    shared = ("block_out_channels", "layers_per_block", "norm_num_groups", "down_block_types", "cross_attention_dim")
    shared += ("attention_head_dim", "use_linear_projection", "transformer_layers_per_block", "addition_embed_type")
    shared += ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    config = make_unet(family).config
    settings = {key: config[key] for key in shared} | {"conditioning_embedding_out_channels": (8, 8, 16, 16)} | settings
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = ControlNetModel(**settings)
        for parameter in net.parameters():  # its last convolutions begin as zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.save_pretrained(directory)
    return directory


def make_semantic_folder(directory: Path, classes: Sequence[Class], *, family: str = "sd15") -> Path:
    """A tiny model whose U-Net takes a segmentation map of `classes` beside its latents."""
    make_folder(family, directory, in_channels=4 + len(classes))
    palette.write(directory, classes)
    return directory


def make_vae(family: str) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=NATIVE_SIZE,
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        force_upcast=family == "sdxl",
    )


def make_text_encoders(family: str) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu" if family in ("sd21-v", "sd-turbo") else "quick_gelu",
        "projection_dim": 32,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as Stable Diffusion's configs say: the highest id is then EOS
        "pad_token_id": 1,
    }
    encoders: list[CLIPTextModel | CLIPTextModelWithProjection] = [CLIPTextModel(CLIPTextConfig(**settings))]
    if family == "sdxl":
        second = {**settings, "hidden_size": 48, "projection_dim": 40, "hidden_act": "gelu"}
        encoders.append(CLIPTextModelWithProjection(CLIPTextConfig(**second)))
    return encoders


def make_folder(family: str, directory: Path, *, seed: int = 0, in_channels: int = 4) -> Path:
    """Write a tiny diffusers folder of `family` (one of FAMILIES) into `directory`; returns `directory`.

    With 9 `in_channels` the U-Net inpaints: it takes a mask and a masked image's latents beside its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoders = make_unet(family, in_channels), make_vae(family), make_text_encoders(family)
        _shake(unet, vae, *text_encoders)
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    (directory / "scheduler").mkdir()
    scheduler = {"_diffusers_version": "0.42.1", **NOISE_SCHEDULE, **SCHEDULERS[family]}
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    pipeline = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    if family == "lcm":
        index["_class_name"] = "LatentConsistencyModelPipeline"
    if in_channels == 9:
        index["_class_name"] = pipeline.replace("Pipeline", "InpaintPipeline")
    for suffix, text_encoder in zip(("", "_2"), text_encoders, strict=False):
        text_encoder.save_pretrained(directory / f"text_encoder{suffix}")
        pad_token = "!" if suffix or family in ("sd21-v", "sd-turbo") else EOS
        write_tokenizer(directory / f"tokenizer{suffix}", pad_token)
        index[f"text_encoder{suffix}"] = ["transformers", type(text_encoder).__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    index["scheduler"] = ["diffusers", SCHEDULERS[family]["_class_name"]]
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    write_json(directory / "model_index.json", index)
    return directory


def make_refiner(directory: Path, *, seed: int = 2) -> Path:
    """Write a tiny refiner of SDXL: one text encoder, the second one, and an aesthetic score in place of a size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = make_text_encoders("sdxl")[1]
        like = make_unet("sdxl").config
        width = like["projection_class_embeddings_input_dim"] - like["addition_time_embed_dim"]
        settings = {"cross_attention_dim": 48, "projection_class_embeddings_input_dim": width}
        unet, vae = UNet2DConditionModel.from_config({**like, **settings}), make_vae("sdxl")
        _shake(unet, vae, text_encoder)
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    text_encoder.save_pretrained(directory / "text_encoder_2")
    write_tokenizer(directory / "tokenizer_2", "!")
    index = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    index |= {"force_zeros_for_empty_prompt": False, "text_encoder": [None, None], "tokenizer": [None, None]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    index |= {"tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", SCHEDULERS["sdxl"]["_class_name"]]}
    return _finish(directory, index, {**NOISE_SCHEDULE, **SCHEDULERS["sdxl"]})


def make_dit(directory: Path, *, seed: int = 0) -> Path:
    """Write a tiny DiT of ImageNet's classes, of 64×64 pixels, as facebook/DiT-XL-2-256 is laid out."""
    settings = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "in_channels": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = DiTTransformer2DModel(**settings, out_channels=8, sample_size=8, patch_size=2)
        vae = make_vae("sd15")
        _shake(transformer, vae)
    transformer.save_pretrained(directory / "transformer")
    vae.save_pretrained(directory / "vae")
    scheduler = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler |= {"num_train_timesteps": 1000, "trained_betas": None, "clip_sample": False, "steps_offset": 0}
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "id2label": _imagenet()["id2label"]}
    return _finish(directory, index, scheduler)


def make_ldm(directory: Path, *, seed: int = 0) -> Path:
    """Write a tiny LDM of ImageNet's classes, of 64×64 pixels from 16×16×3 latents, as its family is laid out."""
    sides = ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2), (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 32, 64),
            layers_per_block=2,
            norm_num_groups=8,
            down_block_types=sides[0],
            up_block_types=sides[1],
            attention_head_dim=1,
            cross_attention_dim=16,
        )
        vae = VQModel(
            sample_size=NATIVE_SIZE,
            block_out_channels=(16, 16, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            norm_num_groups=8,
            latent_channels=3,
            vq_embed_dim=3,
            num_vq_embeddings=512,
            scaling_factor=1.0,
        )
        embedder = nn.Embedding(1001, 16)
        _shake(unet, vae)
        nn.init.normal_(vae.quantize.embedding.weight)  # else all codes are one to the eye
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    (directory / "class_embedder").mkdir()
    save_file(embedder.state_dict(), directory / "class_embedder" / "diffusion_pytorch_model.safetensors")
    write_json(directory / "class_embedder" / "config.json", {"num_embeddings": 1001, "embedding_dim": 16})
    folder = families.config_folder("ldm-imagenet")
    return _finish(directory, _imagenet(), families.read_json(folder / "scheduler" / "scheduler_config.json"))


def _imagenet() -> dict[str, Any]:
    return families.read_json(families.config_folder("ldm-imagenet") / "model_index.json")


def _shake(*models: nn.Module) -> None:
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():  # no two tensors alike, not even fresh norms and biases
                parameter.add_(0.02 * torch.randn_like(parameter))


def _finish(directory: Path, index: dict[str, Any], scheduler: dict[str, Any]) -> Path:
    (directory / "scheduler").mkdir()
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_diffusers_version": "0.42.1", **index, "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(directory / "model_index.json", index)
    return directory


def recipe_for(entry: ModelEntry, options: Mapping[str, Any], **more: Any) -> Recipe:
    """The recipe of these flat keys for the model of `entry`."""
    return resolve.resolve(located.locate(entry), options, **more).recipe


def inputs_of(model: LatentDiffusionModel, recipe: Recipe, given: InitialImage | None = None) -> Inputs:
    """The files that `recipe` names, read for a loaded model; `given` stands in the place of its image and mask."""
    known = [model.classes, *(each.classes for each in model.controlnets.values())]
    return inputs.read(
        recipe.initial,
        recipe.layout,
        palettes=[each for each in known if each],
        latent_channels=model.latent_channels,
        scaling_factor=model.latent_space.scaling_factor,
        given=given,
    )
