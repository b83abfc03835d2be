"""The parts of a tiny diffusers folder as files, in the layouts in which people have them.

The inverse of what sdcli loads, written by hand from the names in the published files.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import original

State = Mapping[str, Tensor]

_JOINT = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
_FUSED = {("to_q", "to_k", "to_v"): "img", ("add_q_proj", "add_k_proj", "add_v_proj"): "txt"}


def _fuse(state: State, into: Callable[[str, str], str], also: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Join queries, keys and values; `into` gives the new name from the block and the side."""
    left, fused = dict(state), {}
    for names, side in _FUSED.items():
        for key in [key for key in state if re.search(rf"\.{names[0]}\.", key)]:
            block, leaf = key.split(f".{names[0]}.")
            pieces = [left.pop(f"{block}.{name}.{leaf}") for name in names]
            pieces += [left.pop(f"{block.removesuffix('.attn')}.{name}.{leaf}") for name in also]
            fused[f"{into(block, side)}.{leaf}"] = torch.cat(pieces)
    return {**left, **fused}


def _renamed(state: State, table: Mapping[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        new = next((key.replace(here, there) for here, there in table.items() if here in key), key)
        found[new] = value
    return found


def _swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _joint(state: State) -> dict[str, Tensor]:
    left = _fuse(
        {key: value for key, value in state.items() if key.startswith("transformer_blocks.")},
        lambda block, side: f"{block.removesuffix('.attn')}.{side}_attn.qkv",
    )
    blocks = _renamed(left, {f".{here}": f".{there}" for here, there in _JOINT.items()})
    return {key.replace("transformer_blocks.", "double_blocks."): value for key, value in blocks.items()}


def _flux_blocks(state: State) -> dict[str, Tensor]:
    single = {key: value for key, value in state.items() if key.startswith("single_transformer_blocks.")}
    single = _fuse(single, lambda block, side: f"{block.removesuffix('.attn')}.linear1", ("proj_mlp",))
    names = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
    names |= {"attn.norm_q.weight": "norm.query_norm.scale", "attn.norm_k.weight": "norm.key_norm.scale"}
    single = {key.replace("single_transformer_", "single_"): each for key, each in _renamed(single, names).items()}
    return {**_joint(state), **single}


def flux(state: State) -> dict[str, Tensor]:
    rest = {key: value for key, value in state.items() if "transformer_blocks." not in key}
    for leaf in ("weight", "bias"):
        rest[f"norm_out.linear.{leaf}"] = _swapped(rest[f"norm_out.linear.{leaf}"])
    ends = {"norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear"}
    ends |= {"context_embedder": "txt_in", "x_embedder": "img_in"}
    for here, there in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        for number, layer in ((1, "in"), (2, "out")):
            ends[f"time_text_embed.{here}_embedder.linear_{number}"] = f"{there}_in.{layer}_layer"
    return {**_flux_blocks(state), **_renamed(rest, ends)}


def chroma(state: State) -> dict[str, Tensor]:
    rest = {key: value for key, value in state.items() if "transformer_blocks." not in key}
    ends = {".linear_1.": ".in_layer.", ".linear_2.": ".out_layer."}
    ends |= {"context_embedder": "txt_in", "x_embedder": "img_in"}
    renamed = _renamed({key: value for key, value in rest.items() if not key.startswith("proj_out.")}, ends)
    renamed = {re.sub(r"(\.norms\.\d+\.)weight", r"\1scale", key): value for key, value in renamed.items()}
    final = {key.replace("proj_out", "final_layer.linear"): rest[key] for key in rest if key.startswith("proj_out.")}
    return {**_flux_blocks(state), **renamed, **final}


def flux2(state: State) -> dict[str, Tensor]:
    single = {key: value for key, value in state.items() if key.startswith("single_transformer_blocks.")}
    names = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
    names |= {"attn.norm_q.weight": "norm.query_norm.scale", "attn.norm_k.weight": "norm.key_norm.scale"}
    single = {key.replace("single_transformer_", "single_"): each for key, each in _renamed(single, names).items()}
    rest = {key: value for key, value in state.items() if "transformer_blocks." not in key}
    rest["norm_out.linear.weight"] = _swapped(rest["norm_out.linear.weight"])
    ends = {"norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear"}
    ends |= {"context_embedder": "txt_in", "x_embedder": "img_in", "modulation_img.linear": "modulation_img.lin"}
    ends |= {
        "modulation_txt.linear": "modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    }
    ends |= {
        f"time_guidance_embed.timestep_embedder.linear_{n}": f"time_in.{layer}_layer"
        for n, layer in ((1, "in"), (2, "out"))
    }
    return {**_joint(state), **single, **_renamed(rest, ends)}


def z_image(state: State) -> dict[str, Tensor]:
    fused = _fuse(state, lambda block, side: f"{block.removesuffix('.attention')}.attention.qkv")
    names = {"attention.to_out.0": "attention.out", "attention.norm_q": "attention.q_norm"}
    names |= {"attention.norm_k": "attention.k_norm", "all_final_layer.2-1.": "final_layer."}
    names |= {"all_x_embedder.2-1.": "x_embedder."}
    return {**_renamed(fused, names), "norm_final.weight": torch.ones(state["cap_embedder.0.weight"].shape[0])}


def sd3(state: State) -> dict[str, Tensor]:
    sides = {"img": "x_block", "txt": "context_block"}
    fused = _fuse(state, lambda block, side: f"{block.rpartition('.')[0]}.{sides[side]}.{block.rpartition('.')[2]}.qkv")
    last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks."))
    for leaf in ("weight", "bias"):
        for key in (f"norm_out.linear.{leaf}", f"transformer_blocks.{last}.norm1_context.linear.{leaf}"):
            fused[key] = _swapped(fused[key])
    names = {
        ".norm1.linear": ".x_block.adaLN_modulation.1",
        ".norm1_context.linear": ".context_block.adaLN_modulation.1",
    }
    names |= {".attn2.norm_q": ".x_block.attn2.ln_q", ".attn2.norm_k": ".x_block.attn2.ln_k"}
    names |= {".attn2.to_out.0": ".x_block.attn2.proj", ".attn.to_out.0": ".x_block.attn.proj"}
    names |= {".attn.norm_q": ".x_block.attn.ln_q", ".attn.norm_k": ".x_block.attn.ln_k"}
    names |= {".attn.norm_added_q": ".context_block.attn.ln_q", ".attn.norm_added_k": ".context_block.attn.ln_k"}
    names |= {".attn.to_add_out": ".context_block.attn.proj"}
    names |= {".ff.net.0.proj": ".x_block.mlp.fc1", ".ff.net.2": ".x_block.mlp.fc2"}
    names |= {".ff_context.net.0.proj": ".context_block.mlp.fc1", ".ff_context.net.2": ".context_block.mlp.fc2"}
    names |= {"pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj"}
    names |= {"norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear"}
    for here, there in (("timestep", "t"), ("text", "y")):
        for number, place in ((1, 0), (2, 2)):
            names[f"time_text_embed.{here}_embedder.linear_{number}"] = f"{there}_embedder.mlp.{place}"
    return {key.replace("transformer_blocks.", "joint_blocks."): each for key, each in _renamed(fused, names).items()}


def _all_renamed(state: State, table: Mapping[str, str]) -> dict[str, Tensor]:
    """Apply every row of a table of patterns, in turn."""
    found = dict(state)
    for here, there in table.items():
        found = {re.sub(here, there, key): value for key, value in found.items()}
    return found


def lumina2(state: State) -> dict[str, Tensor]:
    fused = _fuse(state, lambda block, side: f"{block.removesuffix('.attn')}.attention.qkv")
    names = {r"\.attn\.to_out\.0": ".attention.out", r"\.attn\.norm_([qk])": r".attention.\1_norm"}
    names |= {r"^norm_out\.linear_1": "final_layer.adaLN_modulation.1", r"^norm_out\.linear_2": "final_layer.linear"}
    names |= {r"\.feed_forward\.linear_(\d)": r".feed_forward.w\1", r"\.norm1\.linear": ".adaLN_modulation.1"}
    names |= {r"\.norm1\.norm": ".attention_norm1", r"\.norm([12])\.weight": r".attention_norm\1.weight"}
    names |= {r"time_caption_embed\.caption_embedder": "cap_embedder"}
    names |= {
        rf"time_caption_embed\.timestep_embedder\.linear_{n}": f"t_embedder.mlp.{at}" for n, at in ((1, 0), (2, 2))
    }
    return {**_all_renamed(fused, names), "norm_final.weight": torch.ones(3)}


def krea2(state: State) -> dict[str, Tensor]:
    names = {
        r"^transformer_blocks": "blocks",
        "^text_fusion": "txtfusion",
        "^img_in": "first",
        "^time_mod_proj": "tproj.1",
    }
    names |= {r"^time_embed\.linear_1": "tmlp.0", r"^time_embed\.linear_2": "tmlp.2"}
    names |= {
        r"^txt_in\.norm\.weight": "txtmlp.0.scale",
        r"^txt_in\.linear_1": "txtmlp.1",
        r"^txt_in\.linear_2": "txtmlp.3",
    }
    names |= {"^final_layer.norm.weight": "last.norm.scale", "^final_layer.scale_shift_table": "last.modulation.lin"}
    names |= {"^final_layer": "last", r"\.attn\.to_out\.0": ".attn.wo", r"\.attn\.to_gate": ".attn.gate"}
    names |= {r"\.attn\.to_([qkv])": r".attn.w\1", r"\.attn\.norm_([qk])\.weight": r".attn.qknorm.\1norm.scale"}
    names |= {r"\.ff\.": ".mlp.", r"\.norm1\.weight": ".prenorm.scale", r"\.norm2\.weight": ".postnorm.scale"}
    names |= {r"\.scale_shift_table": ".mod.lin"}
    found = _all_renamed(state, names)
    return {key: value.flatten() if key.endswith(".mod.lin") else value for key, value in found.items()}


_PIXART = {
    r"^scale_shift_table": "final_layer.scale_shift_table",
    r"^proj_out": "final_layer.linear",
    r"^(pos_embed|patch_embed)\.proj": "x_embedder.proj",
    r"^caption_projection\.linear_": "y_embedder.y_proj.fc",
    r"^caption_norm": "attention_y_norm",
    r"^(adaln_single|time_embed)\.linear": "t_block.1",
    r"^.*timestep_embedder": "t_embedder",
    r"^.*resolution_embedder": "csize_embedder",
    r"^.*aspect_ratio_embedder": "ar_embedder",
    r"_embedder\.linear_1": "_embedder.mlp.0",
    r"_embedder\.linear_2": "_embedder.mlp.2",
    r"^transformer_blocks": "blocks",
    r"attn1\.norm_([qk])": r"attn.\1_norm",
    r"attn2\.norm_([qk])": r"cross_attn.\1_norm",
    r"attn1\.to_out\.0": "attn.proj",
    r"attn2\.to_out\.0": "cross_attn.proj",
    r"attn2\.to_q": "cross_attn.q_linear",
    r"ff\.net\.0\.proj": "mlp.fc1",
    r"ff\.net\.2": "mlp.fc2",
    r"ff\.conv_(\w+)": r"mlp.\1_conv.conv",
}


def pixart(state: State) -> dict[str, Tensor]:
    """Sana has PixArt's names."""
    left = dict(state)
    for key in state:
        block, _, leaf = key.rpartition(".")
        if block.endswith("attn1.to_q"):
            pieces = [left.pop(f"{block[:-1]}{side}.{leaf}") for side in "qkv"]
            left[f"{block[:-10]}attn.qkv.{leaf}"] = torch.cat(pieces)
        elif block.endswith("attn2.to_k"):
            pieces = [left.pop(f"{block[:-1]}{side}.{leaf}") for side in "kv"]
            left[f"{block[:-10]}cross_attn.kv_linear.{leaf}"] = torch.cat(pieces)
    return _all_renamed(left, _PIXART) | {"y_embedder.y_embedding": torch.ones(3, 2)}


def dc_vae(state: State) -> dict[str, Tensor]:
    left = dict(state)
    for key in state:
        if ".attn.to_q." in key:
            pieces = [left.pop(key.replace("to_q", f"to_{side}")) for side in "qkv"]
            left[key.replace("to_q", "qkv.conv")] = torch.cat(pieces)[:, :, None, None]
        elif ".attn.to_out." in key:
            left[key.replace("to_out", "proj.conv")] = left.pop(key)[:, :, None, None]
    names = {r"_blocks\.(\d+)\.(\d+)\.": r"_blocks.\1.op_list.\2.", r"\.attn\.norm_out": ".attn.proj.norm"}
    names |= {r"\.conv_out\.norm": ".conv_out.point_conv.norm", r"\.conv_(depth|inverted|point)": r".\1_conv.conv"}
    names |= {r"(op_list\.\d+)\.norm": r"\1.main.conv2.norm", r"(op_list\.\d+)\.(conv[12])": r"\1.main.\2.conv"}
    names |= {r"(op_list\.\d+)\.conv\.": r"\1.main.conv.conv.", r"\.attn\.": ".context_module.main."}
    names |= {r"(op_list\.\d+)\.conv_out": r"\1.local_module.main", "encoder.down_blocks": "encoder.stages"}
    names |= {"decoder.up_blocks": "decoder.stages", "coder.conv_in": "coder.project_in.conv"}
    names |= {"encoder.conv_out": "encoder.project_out.main.op_list.0.conv"}
    names |= {"decoder.norm_out": "decoder.project_out.main.op_list.0"}
    names |= {"decoder.conv_out": "decoder.project_out.main.op_list.2.conv"}
    return _all_renamed(left, names)


def flux2_vae(state: State) -> dict[str, Tensor]:
    found = original.vae({key: value for key, value in state.items() if not key.startswith("bn.")})
    halves = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    moved = {
        next((key.replace(a, b) for a, b in halves.items() if key.startswith(a)), key): v for key, v in found.items()
    }
    return moved | {key: value for key, value in state.items() if key.startswith("bn.")}


TRANSFORMERS: Mapping[str, Callable[[State], dict[str, Tensor]]] = {
    "z-image": z_image,
    **dict.fromkeys(("flux-dev", "flux-schnell", "flux-kontext"), flux),
    **dict.fromkeys(("flux2-klein", "flux2-base"), flux2),
    **dict.fromkeys(("sd3", "sd3-without-t5"), sd3),
    **dict.fromkeys(("qwen-image", "qwen-image-edit"), dict),
    "chroma": chroma,
    "lumina2": lumina2,
    **dict.fromkeys(("sana", "pixart-alpha", "pixart-sigma"), pixart),
    **dict.fromkeys(("krea2", "krea2-turbo"), krea2),
}


def state_of(folder: Path, part: str) -> dict[str, Tensor]:
    return load_file(next((folder / part).glob("*.safetensors")))


def transformer(family: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's transformer in the original layout."""
    return TRANSFORMERS[family](state_of(folder, "transformer"))


def vae(family: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's VAE in the original layout; Qwen-Image's and Krea 2's is not in its own."""
    state = state_of(folder, "vae")
    if family.startswith(("qwen", "krea2")):
        return state
    if family == "sana":
        return dc_vae(state)
    return flux2_vae(state) if family.startswith("flux2") else original.vae(state)


def encoders(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a folder's text encoders, by part."""
    return {each.name: state_of(folder, each.name) for each in sorted(folder.glob("text_encoder*"))}


def save(state: State, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


def write(family: str, folder: Path, target: Path) -> dict[str, Path]:
    """Write each part with weights of `folder` as a file of its own in `target`, and return them by part."""
    states = {"transformer": transformer(family, folder), "vae": vae(family, folder), **encoders(folder)}
    return {part: save(state, target / f"{part}.safetensors") for part, state in states.items()}
