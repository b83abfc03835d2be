"""The weights of a diffusers model under their original CompVis/SGM names.

The inverse of what sdcli loads, written the other way round (from pieces of names, block by block, as the
conversion scripts of the diffusers project do), so that an error in one does not hide in the other.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = Mapping[str, Tensor]


def write_single_file(folder: Path, file: Path, layout: str) -> Path:
    """The diffusers folder of a `layout` ("sd1", "sd2" or "sdxl") as ONE file in the original key layout."""
    parts = {
        part: load_file(next((folder / part).glob("*.safetensors")))
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        if (folder / part).exists()
    }
    save_file({key: value.contiguous() for key, value in to_original(parts, layout).items()}, file)
    return file


def to_original(parts: Mapping[str, State], layout: str) -> dict[str, Tensor]:
    original = {f"model.diffusion_model.{key}": value for key, value in unet(parts["unet"], layout).items()}
    original |= {f"first_stage_model.{key}": value for key, value in vae(parts["vae"]).items()}
    first = {key.removeprefix("text_model."): value for key, value in parts["text_encoder"].items()}
    if layout == "sd1":
        original |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in first.items()}
    if layout == "sd2":
        original |= {f"cond_stage_model.model.{key}": value for key, value in open_clip(first).items()}
    if layout == "sdxl":
        second = {key.removeprefix("text_model."): value for key, value in parts["text_encoder_2"].items()}
        original |= {f"conditioner.embedders.0.transformer.text_model.{key}": each for key, each in first.items()}
        original |= {f"conditioner.embedders.1.model.{key}": value for key, value in open_clip(second).items()}
    return original


def unet(state: State, layout: str) -> dict[str, Tensor]:
    levels = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("down_blocks."))
    pieces = {"mid_block.attentions.0.": "middle_block.1."}
    pieces |= {"mid_block.resnets.0.": "middle_block.0.", "mid_block.resnets.1.": "middle_block.2."}
    for level in range(levels):
        for layer in range(2):
            pieces[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{3 * level + layer + 1}.0."
            pieces[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{3 * level + layer + 1}.1."
        for layer in range(3):
            pieces[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{3 * level + layer}.0."
            pieces[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{3 * level + layer}.1."
        pieces[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{3 * (level + 1)}.0.op."
        place = 1 if level == 0 and layout in ("sd1", "sd2") else 2  # SD's lowest level has no attention before it
        pieces[f"up_blocks.{level}.upsamplers.0."] = f"output_blocks.{3 * level + 2}.{place}."
    ends = {
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "add_embedding.linear_1.": "label_emb.0.0.",
        "add_embedding.linear_2.": "label_emb.0.2.",
        "conv_in.": "input_blocks.0.0.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    inside = {
        "norm1.": "in_layers.0.",
        "conv1.": "in_layers.2.",
        "norm2.": "out_layers.0.",
        "conv2.": "out_layers.3.",
        "time_emb_proj.": "emb_layers.1.",
        "conv_shortcut.": "skip_connection.",
    }
    original = {}
    for key, value in state.items():
        new = key
        for table in (ends, pieces):
            new = next((there + key[len(here) :] for here, there in table.items() if key.startswith(here)), new)
        if "resnets" in key:
            for here, there in inside.items():
                new = new.replace(here, there)
        original[new] = value
    return original


def vae(state: State) -> dict[str, Tensor]:
    pieces = {"conv_norm_out.": "norm_out.", "conv_shortcut.": "nin_shortcut.", "group_norm.": "norm."}
    pieces |= {"mid_block.attentions.0.": "mid.attn_1.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v."}
    pieces |= {"to_out.0.": "proj_out."}
    pieces |= {"mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2."}
    levels = 1 + max(int(key.split(".")[2]) for key in state if ".down_blocks." in key)
    for level in range(levels):
        pieces[f"down_blocks.{level}.downsamplers.0."] = f"down.{level}.downsample."
        pieces[f"up_blocks.{level}.upsamplers.0."] = f"up.{levels - 1 - level}.upsample."
        for layer in range(3):
            pieces[f"down_blocks.{level}.resnets.{layer}."] = f"down.{level}.block.{layer}."
            pieces[f"up_blocks.{level}.resnets.{layer}."] = f"up.{levels - 1 - level}.block.{layer}."
    original = {}
    for key, value in state.items():
        new = key
        for here, there in pieces.items():
            new = new.replace(here, there)
        is_projection = ".attentions." in key and value.ndim == 2
        original[new] = value[:, :, None, None] if is_projection else value
    return original


def open_clip(state: State) -> dict[str, Tensor]:
    """An OpenCLIP text tower; SD 2.x files hold one layer and a projection more than diffusers' use of it."""
    pieces = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "encoder.layers.": "transformer.resblocks.",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "fc1": "c_fc",
        "fc2": "c_proj",
        "self_attn": "attn",
        "final_layer_norm": "ln_final",
    }
    original = {}
    for key, value in state.items():
        new = key
        for here, there in pieces.items():
            new = new.replace(here, there)
        if key == "text_projection.weight":
            original["text_projection"] = value.T
        elif ".q_proj." in key:
            three = [state[key.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            original[new.replace(".q_proj.", ".in_proj_")] = torch.cat(three)
        elif ".k_proj." not in key and ".v_proj." not in key:
            original[new] = value
    return original
