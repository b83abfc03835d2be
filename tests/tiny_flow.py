"""Tiny models of today's families: real classes, folders as diffusers' own pipelines write them, random weights.

`make_folder(family, directory)` writes one; diffusers loads it with `DiffusionPipeline.from_pretrained`.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import AutoencoderKLQwenImage21
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from sdcli.models.tokenizer import byte_letters
from tests import tiny

EDITORS = ("flux2-klein", "flux2-base", "flux-kontext", "qwen-image-edit")
FAMILIES = ("z-image", "flux-dev", "flux-schnell", "flux2-klein", "flux2-base", "sd3", "sd3-without-t5", "qwen-image")
NEWER = ("chroma", "lumina2", "sana", "pixart-alpha", "pixart-sigma", "krea2", "krea2-turbo")

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def write_qwen_tokenizer(directory: Path) -> None:
    """A tokenizer of Qwen's kind with one token for each byte, in the two files that its class reads."""
    directory.mkdir(parents=True)
    vocab = {letter: place for place, letter in enumerate(byte_letters().values())}
    tiny.write_json(directory / "vocab.json", vocab)
    (directory / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    added = {str(len(vocab) + place): {"content": each, "special": True} for place, each in enumerate(QWEN_SPECIAL)}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": QWEN_SPECIAL[0], "eos_token": QWEN_SPECIAL[2]}
    settings |= {"added_tokens_decoder": added, "chat_template": CHAT, "unk_token": None, "model_max_length": 4096}
    tiny.write_json(directory / "tokenizer_config.json", settings)


def write_t5_tokenizer(directory: Path) -> None:
    """A tokenizer of T5's kind with one token for each letter."""
    letters = [chr(letter) for letter in range(ord("!"), ord("~") + 1)]
    vocab = [*((each, 0.0) for each in ("<pad>", "</s>", "<unk>")), *((each, -2.0) for each in ("▁", *letters))]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(directory)


def write_gemma_tokenizer(directory: Path) -> None:
    """A tokenizer of Gemma's kind with one token for each letter."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = ("\n", "▁", *(chr(letter) for letter in range(ord("!"), ord("~") + 1)))
    vocab = {each: place for place, each in enumerate((*special, *letters))}
    GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True).save_pretrained(directory)


def write_image_processor(directory: Path) -> None:
    """The settings of the image processor of Qwen2.5-VL."""
    directory.mkdir(parents=True)
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2}
    settings |= {"merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    tiny.write_json(directory / "preprocessor_config.json", settings)


def shaken(module: nn.Module, amount: float = 0.05) -> nn.Module:
    """The module with no two tensors alike, not even fresh norms and biases."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module.eval()


def make_vae(shift_factor: float | None = 0.1159) -> nn.Module:
    return shaken(
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=shift_factor,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def make_flux2_vae() -> nn.Module:
    made = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=8)
    with torch.no_grad():
        made.bn.running_mean.normal_()
        made.bn.running_var.uniform_(0.5, 2)
    return shaken(made)


def make_qwen_vae() -> nn.Module:
    statistics = {"latents_mean": torch.randn(4).tolist(), "latents_std": (1 + torch.rand(4)).tolist()}
    return shaken(AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, **statistics))


def qwen3(kind: Callable[..., nn.Module], layers: int) -> nn.Module:
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    return shaken(kind(Qwen3Config(vocab_size=264, num_hidden_layers=layers, tie_word_embeddings=False, **size)))


def qwen_vl() -> nn.Module:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": 264, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"fullatt_block_indexes": [0], "window_size": 28}
    ids = {"vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262}
    return shaken(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)))


def t5() -> nn.Module:
    size = {"d_model": 24, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    return shaken(T5EncoderModel(T5Config(vocab_size=264, feed_forward_proj="gated-gelu", **size)))


def gemma() -> nn.Module:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return shaken(Gemma2Model(Gemma2Config(vocab_size=264, num_key_value_heads=1, head_dim=8, **size)))


def clip(kind: Callable[..., nn.Module], width: int) -> nn.Module:
    settings = {"vocab_size": len(tiny.vocabulary()), "hidden_size": width, "intermediate_size": 16}
    settings |= {"num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": width}
    return shaken(kind(CLIPTextConfig(**settings, bos_token_id=0, eos_token_id=2, pad_token_id=1)))


def z_image() -> dict[str, Any]:
    settings = {"dim": 48, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    network = shaken(ZImageTransformer2DModel(**settings, axes_dims=[8, 8, 8], axes_lens=[1024, 64, 64]))
    return {"transformer": network, "vae": make_vae(), "text_encoder": qwen3(Qwen3Model, 3), "shift": 3.0}


def flux(guidance_embeds: bool) -> dict[str, Any]:
    settings = {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 12}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 8}
    network = FluxTransformer2DModel(**settings, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 4))
    parts = {"transformer": shaken(network), "vae": make_vae(), "text_encoder": clip(CLIPTextModel, 8)}
    flow = {"use_dynamic_shifting": True} if guidance_embeds else {"shift": 1.0}
    return {**parts, "text_encoder_2": t5(), **flow}


def flux2(is_distilled: bool) -> dict[str, Any]:
    settings = {"in_channels": 32, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": (4, 4, 4, 4)}
    network = shaken(Flux2Transformer2DModel(**settings, guidance_embeds=False))
    parts = {"transformer": network, "vae": make_flux2_vae(), "text_encoder": qwen3(Qwen3ForCausalLM, 28)}
    return {**parts, "is_distilled": is_distilled, "use_dynamic_shifting": True}


def sd3(with_t5: bool) -> dict[str, Any]:
    settings = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    settings |= {"joint_attention_dim": 24, "pooled_projection_dim": 20, "sample_size": 16, "pos_embed_max_size": 24}
    network = shaken(SD3Transformer2DModel(**settings, qk_norm="rms_norm", dual_attention_layers=(0,)))
    clips = {
        "text_encoder": clip(CLIPTextModelWithProjection, 8),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 12),
    }
    parts = {"transformer": network, "vae": make_vae(), **clips, "text_encoder_3": t5() if with_t5 else None}
    return {**parts, "shift": 3.0}


def qwen_image() -> dict[str, Any]:
    settings = {"in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 12}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4)}
    network = shaken(QwenImageTransformer2DModel(**settings))
    parts = {"transformer": network, "vae": make_qwen_vae(), "text_encoder": qwen_vl()}
    flow = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
    return {**parts, **flow, "max_image_seq_len": 8192}


def qwen_image21() -> dict[str, Any]:
    settings = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 12}
    settings |= {"num_attention_heads": 2, "context_in_dim": 16, "axes_dims_rope": (4, 4, 4)}
    network = shaken(QwenImage21Transformer2DModel(**settings))
    sizes = {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 2, 2], "num_res_blocks": 1}
    statistics = {"latents_mean": torch.randn(4).tolist(), "latents_std": (1 + torch.rand(4)).tolist()}
    vae = shaken(AutoencoderKLQwenImage21(**sizes, **statistics))
    parts = {"transformer": network, "vae": vae, "text_encoder": qwen3_vl()}
    return {**parts, "use_dynamic_shifting": True}


def chroma() -> dict[str, Any]:
    settings = {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 12}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4)}
    settings |= {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    parts = {"transformer": shaken(ChromaTransformer2DModel(**settings)), "vae": make_vae(), "text_encoder": t5()}
    return {**parts, "use_dynamic_shifting": True}


def qwen3_vl() -> nn.Module:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 36, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text |= {"num_key_value_heads": 1, "vocab_size": 264, "head_dim": 8, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    ids = {"vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262}
    return shaken(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)))


def krea2(is_distilled: bool) -> dict[str, Any]:
    settings = {"in_channels": 16, "num_layers": 1, "attention_head_dim": 12, "num_attention_heads": 2}
    settings |= {"num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": 16}
    settings |= {"text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 32}
    settings |= {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 4, 4)}
    network = shaken(Krea2Transformer2DModel(**settings))
    parts = {"transformer": network, "vae": make_qwen_vae(), "text_encoder": qwen3_vl()}
    return {**parts, "is_distilled": is_distilled, "use_dynamic_shifting": True}


def lumina2() -> dict[str, Any]:
    settings = {"hidden_size": 36, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 3}
    settings |= {"num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 4, 4), "axes_lens": (300, 64, 64)}
    network = shaken(Lumina2Transformer2DModel(**settings, cap_feat_dim=16, sample_size=16))
    return {"transformer": network, "vae": make_vae(), "text_encoder": gemma(), "shift": 6.0}


SANA_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}


def sana() -> dict[str, Any]:
    settings = {"in_channels": 8, "out_channels": 8, "num_layers": 1, "num_attention_heads": 2, "sample_size": 16}
    settings |= {"attention_head_dim": 8, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
    settings |= {"cross_attention_dim": 16, "caption_channels": 16, "qk_norm": "rms_norm_across_heads"}
    blocks = {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
    blocks |= {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
    blocks |= {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())}
    types = {f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")}
    vae = shaken(AutoencoderDC(latent_channels=8, attention_head_dim=8, scaling_factor=0.41407, **blocks, **types))
    network = shaken(SanaTransformer2DModel(**settings))
    return {"transformer": network, "vae": vae, "text_encoder": gemma(), **SANA_FLOW}


PIXART_NOISE = {"beta_schedule": "linear", "beta_end": 0.004}
"""Less than that of the published models, in which a network that predicts no noise gives latents of any size."""


def pixart(sample_size: int) -> dict[str, Any]:
    settings = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24}
    settings |= {"in_channels": 16, "out_channels": 32, "caption_channels": 24, "sample_size": sample_size}
    network = shaken(PixArtTransformer2DModel(**settings, interpolation_scale=2))
    return {"transformer": network, "vae": make_vae(None), "text_encoder": t5(), **PIXART_NOISE}


MAKERS: Mapping[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "z-image": ("ZImagePipeline", z_image),
    "flux-dev": ("FluxPipeline", lambda: flux(True)),
    "flux-kontext": ("FluxKontextPipeline", lambda: flux(True)),
    "flux-schnell": ("FluxPipeline", lambda: flux(False)),
    "flux2-klein": ("Flux2KleinPipeline", lambda: flux2(True)),
    "flux2-base": ("Flux2KleinPipeline", lambda: flux2(False)),
    "sd3": ("StableDiffusion3Pipeline", lambda: sd3(True)),
    "sd3-without-t5": ("StableDiffusion3Pipeline", lambda: sd3(False)),
    "qwen-image": ("QwenImagePipeline", qwen_image),
    "qwen-image-edit": ("QwenImageEditPlusPipeline", qwen_image),
    "qwen-image-21": ("QwenImage21Pipeline", qwen_image21),
    "chroma": ("ChromaPipeline", chroma),
    "krea2": ("Krea2Pipeline", lambda: krea2(False)),
    "krea2-turbo": ("Krea2Pipeline", lambda: krea2(True)),
    "lumina2": ("Lumina2Pipeline", lumina2),
    "sana": ("SanaPipeline", sana),
    "pixart-alpha": ("PixArtAlphaPipeline", lambda: pixart(128)),
    "pixart-sigma": ("PixArtSigmaPipeline", lambda: pixart(16)),
}
_TOKENIZERS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "CLIPTextModel": ("CLIPTokenizer", tiny.write_tokenizer),
    "CLIPTextModelWithProjection": ("CLIPTokenizer", tiny.write_tokenizer),
    "T5EncoderModel": ("T5TokenizerFast", write_t5_tokenizer),
    "Gemma2Model": ("GemmaTokenizer", write_gemma_tokenizer),
    "Qwen3Model": ("Qwen2Tokenizer", write_qwen_tokenizer),
    "Qwen3ForCausalLM": ("Qwen2Tokenizer", write_qwen_tokenizer),
    "Qwen3VLModel": ("Qwen2Tokenizer", write_qwen_tokenizer),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2Tokenizer", write_qwen_tokenizer),
}


def make_folder(family: str, directory: Path, *, seed: int = 0) -> Path:
    """Write a tiny diffusers folder of `family`, one of those above, to `directory`, and return it."""
    pipeline, make = MAKERS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = make()
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    if "is_distilled" in parts:
        index["is_distilled"] = parts["is_distilled"]
    if family == "qwen-image-edit":
        write_image_processor(directory / "processor")
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
    for part, module in parts.items():
        if part.startswith("text_encoder"):
            tokens = part.replace("text_encoder", "tokenizer")
            index[part] = index[tokens] = [None, None]
            if module is not None:
                name, write = _TOKENIZERS[type(module).__name__]
                if family == "qwen-image-21":
                    del index[tokens]
                    tokens, name = "processor", "Qwen3VLProcessor"
                write(directory / tokens)
                index[part], index[tokens] = ["transformers", type(module).__name__], ["transformers", name]
        if isinstance(module, nn.Module):
            module.save_pretrained(directory / part)
            index.setdefault(part, ["diffusers", type(module).__name__])
    kind = (
        "DPMSolverMultistepScheduler"
        if {"beta_schedule", "use_flow_sigmas"} & {*parts}
        else "FlowMatchEulerDiscreteScheduler"
    )
    scheduler = {"_class_name": kind, "num_train_timesteps": 1000}
    scheduler |= {key: value for key, value in parts.items() if isinstance(value, int | float | str)}
    scheduler.pop("is_distilled", None)
    (directory / "scheduler").mkdir()
    tiny.write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", kind]
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return directory


@cache
def pipeline_of(directory: Path) -> Any:
    """diffusers' own pipeline of a folder, in float32."""
    from diffusers import DiffusionPipeline

    index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
    absent = dict.fromkeys(part for part, each in index.items() if each == [None, None])
    made = DiffusionPipeline.from_pretrained(directory, **absent)
    made.set_progress_bar_config(disable=True)
    return made
