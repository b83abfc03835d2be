"""Loads a diffusers folder, a hub snapshot or a single `.safetensors` file to a LatentDiffusionModel.

Knows nothing of prompts or pictures. Never uses the network or a pickle. The classes of the parts come from the
configs. Weights are checked by name and shape before the first one is read, and are loaded one at a time in their final
dtype, so that loading needs little more memory than the model.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion import architectures
from sdcli.diffusion.model import LatentDiffusionModel, TextEncoder
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.files import palette
from sdcli.models import families, labels
from sdcli.models.imports import lean_imports
from sdcli.models.loading import single_file
from sdcli.models.loading.weights import Stored, fill, read_headers
from sdcli.models.source import INDEX, Source
from sdcli.models.tokenizer import read_tokenizer

with lean_imports():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.embeddings import PatchEmbed
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

PIPELINES: Mapping[str, tuple[str, ...]] = {
    name: parts for row in architectures.TABLE.values() for name, parts in row.pipelines.items()
}
"""The required parts of each pipeline."""
_TEXT_ENCODERS: Mapping[str, type[nn.Module]] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
COMPONENTS: Mapping[str, Mapping[str, type[nn.Module] | str]] = {
    "unet": architectures.networks("unet"),
    "transformer": architectures.networks("transformer"),
    "vae": {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny, "VQModel": VQModel},
    "class_embedder": {"Embedding": nn.Embedding},
    "text_encoder": _TEXT_ENCODERS,
    "text_encoder_2": _TEXT_ENCODERS,
}
"""The classes of each part, by the names in model_index.json; networks as `module:class`, imported when needed."""
TEXT_PREFIXES = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_DOWNLOAD_AGAIN = "download the model's folder again; its parts must belong together"
_SUPPORTED = "Stable Diffusion 1.x, 2.x, XL, their distilled versions, DiT, and LDM of ImageNet are supported"


Find = Callable[[str, nn.Module], Mapping[str, Stored]]
"""From a component's name and its empty module to the stored tensors by their names in the module."""


def load(source: Source, *, name: str, device: torch.device, dtype: torch.dtype) -> LatentDiffusionModel:
    """Load the model at `source`, in `dtype` on `device`.

    With float16, a VAE with `force_upcast` in its config stays in float32; a VQModel always does.

    Raises ModelNotFound, ModelUnsafe for pickles, ModelCorrupt for files that are missing, invalid or do not fit each
    other, and ModelError for an unsupported kind of model.
    """
    source.check()
    find = finder(source)
    index = read_index(source)
    vae_in_float32 = families.keeps_float32(families.read_json(source.folder("vae") / "config.json"), str(dtype)[6:])
    text_encoders = text_parts(index)
    part = partial(_component, source, index, find, device=device, dtype=dtype)
    needed = PIPELINES[index["_class_name"]]
    network_part = "transformer" if "transformer" in needed else "unet"
    family = architectures.find(network_part, {"_class_name": index[network_part][1]})
    architecture = architectures.load(family)
    text = tuple(_text_encoder(source, index, find, each, device, dtype) for each in text_encoders)
    network, vae = part(network_part), part("vae", dtype=torch.float32 if vae_in_float32 else dtype)
    model = LatentDiffusionModel(
        name=name,
        text_encoders=text,
        network=network,
        architecture=family,
        facts=architecture.facts(network.config, vae.config),
        latent_space=architecture.latent_space(vae),
        vae=vae,
        labels=labels.read(source),
        class_embedder=part("class_embedder") if "class_embedder" in needed else None,
        scheduler_config=families.read_json(source.folder("scheduler") / "scheduler_config.json"),
        device=device,
        dtype=dtype,
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
        classes=palette.read(palette.find(source.folder("unet")).parent),
    )
    misfit = architecture.misfit(model)
    if misfit is not None:
        raise source.explain(ModelCorrupt(f"{source.base}: {misfit}", _DOWNLOAD_AGAIN))
    return model


def text_parts(index: Mapping[str, Any]) -> list[str]:
    """Return the text encoders in a model_index.json, in the order of `LatentDiffusionModel.text_encoders`."""
    return [each for each in ("text_encoder", "text_encoder_2") if index.get(each, [None])[0]]


def finder(source: Source) -> Find:
    """Return a function that finds the tensors of a component in the single file or in its folder."""
    stored = read_headers([source.path]) if source.is_file else {}

    def find(part: str, module: nn.Module) -> Mapping[str, Stored]:
        if source.is_file and not source.is_elsewhere(part):
            return find_in_file(source.path, stored, source.base, part, module)
        return find_in_folder(source.folder(part), source.variant, module)

    return find


def read_index(source: Source) -> Mapping[str, Any]:
    """Read model_index.json. Raises ModelError unless its pipeline and component classes are supported."""
    configs = source.base
    file = configs / INDEX
    index = source.index()
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise ModelError(f"{configs} is a {pipeline}, which is not supported", _SUPPORTED)
    for part in COMPONENTS:
        library_and_class = index.get(part, [None, None])
        if not isinstance(library_and_class, list) or len(library_and_class) != 2:
            raise ModelCorrupt(f"{file} has no valid entry for {part}", _DOWNLOAD_AGAIN)
        if library_and_class[1] is None and part in PIPELINES[pipeline]:
            raise ModelCorrupt(f"{file} has no {part}", _DOWNLOAD_AGAIN)
        if library_and_class[1] is not None and library_and_class[1] not in COMPONENTS[part]:
            where = source.folder(part) if source.is_elsewhere(part) else configs
            raise ModelError(f"{where} has a {library_and_class[1]} as its {part}", _SUPPORTED)
    return index


def build(folder: Path, part: str, class_name: str) -> Any:
    """Build a component from the config in its `folder` on the meta device, without weights."""
    made = COMPONENTS[part][class_name]
    if isinstance(made, str):
        module, _, name = made.partition(":")
        with lean_imports():
            made = getattr(importlib.import_module(module), name)
    return construct(folder, made)


def construct(folder: Path, made: type[nn.Module]) -> Any:
    """Build a module of the class `made` from the config in `folder` on the meta device."""
    file = folder / "config.json"
    config = families.read_json(file)
    try:
        with torch.device("meta"):
            if made in _TEXT_ENCODERS.values():
                return made(CLIPTextConfig(**_known(CLIPTextConfig.__annotations__, config)))
            return made(**_known(inspect.signature(made.__init__).parameters, config))
    except Exception as error:  # the libraries raise anything for a wrong value
        what = " ".join(str(error).split())
        raise ModelCorrupt(f"{file} is not a config of a {made.__name__}: {what}", _DOWNLOAD_AGAIN) from error


def _component(
    source: Source, index: Mapping[str, Any], find: Find, part: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """Build a component and load its weights."""
    module = build(source.folder(part), part, index[part][1])
    fill(module, find(part, module), device, dtype)
    for name, buffer in module.named_buffers():  # buffers that files do not have
        if buffer.is_meta:
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            setattr(owner, last, _BUFFERS[last](owner).to(device))
    return module


def _positions(embedding: PatchEmbed) -> Tensor:
    """Return the position embedding (1, patches, D), from a new module that is not on the meta device."""
    channels, patch = embedding.proj.in_channels, embedding.patch_size
    height, width = embedding.height * patch, embedding.width * patch
    made: Tensor = PatchEmbed(height, width, patch, channels, embedding.proj.out_channels).pos_embed
    return made


_BUFFERS: Mapping[str, Callable[[Any], Tensor]] = {
    "position_ids": lambda owner: torch.arange(owner.position_ids.shape[-1]).expand(owner.position_ids.shape),
    "pos_embed": _positions,
}


def _text_encoder(
    source: Source, index: Mapping[str, Any], find: Find, part: str, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    model = _component(source, index, find, part, device, dtype)
    tokenizer = read_tokenizer(
        source.folder(part.replace("text_encoder", "tokenizer")),
        window=model.config.max_position_embeddings,
        vocab_size=model.config.vocab_size,
    )
    return TextEncoder(tokenizer, model)


def _known(keys: Container[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a config that a constructor takes; others, such as versions and paths, are ignored."""
    return {key: value for key, value in config.items() if key in keys}


def find_in_folder(folder: Path, variant: str | None, module: nn.Module) -> Mapping[str, Stored]:
    """Find the tensors of a component in its folder, under current or older names."""
    files = families.component_files(folder, variant)
    stored = {_current_name(key): each for key, each in read_headers(files).items()}
    names = {name: _current_name(name) for name in module.state_dict()}
    unknown = [each.key for key, each in stored.items() if key not in names.values() and not _UNUSED.search(key)]
    if unknown:
        raise ModelCorrupt(f"{files[0]}: its config has no tensor {unknown[0]}", _DOWNLOAD_AGAIN)
    return {name: _pick(stored, key, files[0]) for name, key in names.items()}


def _current_name(key: str) -> str:
    """Rename a key: transformers 4 has a prefix `text_model.`, and diffusers before 0.17 had other attention names."""
    key = key.removeprefix("text_model.")
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        key = key.replace(old, new)
    return key


# Unused tensors in files: buffers, and the other half of CLIP.
_UNUSED = re.compile(r"position_ids$|^text_projection\.|^logit_scale$|^vision_model\.|^visual_projection\.")


def find_in_file(
    path: Path, stored: Mapping[str, Stored], configs: Path, part: str, module: nn.Module
) -> Mapping[str, Stored]:
    """Find the tensors of a component in a single file in the CompVis/SGM layout."""
    if part.startswith("text"):
        prefix = next((each for each in TEXT_PREFIXES[part] if any(key.startswith(each) for key in stored)), None)
        if prefix is None:
            raise ModelCorrupt(f"{path} has no {part}", "use a file with the complete model")
        return {
            name: _find_text(path, stored, prefix, name.removeprefix("text_model.")) for name in module.state_dict()
        }
    if part == "class_embedder":
        return {name: _pick(stored, families.CLASSES + name, path) for name in module.state_dict()}
    config = families.read_json(configs / part / "config.json")
    prefix, original = (families.VAE, single_file.vae) if part == "vae" else (families.UNET, single_file.unet)
    names = {name: prefix + original(name, config) for name in module.state_dict()}
    unknown = set() if part == "vae" else {key for key in stored if key.startswith(prefix)} - set(names.values())
    if unknown:
        raise ModelCorrupt(
            f"{path}: its family's U-Net has no tensor {min(unknown)}", "check that the file is of this family"
        )
    found = {name: _pick(stored, key, path) for name, key in names.items()}
    return {
        name: replace(each, view=_as_linear) if ".mid.attn_1." in each.key else each for name, each in found.items()
    }


def _find_text(path: Path, stored: Mapping[str, Stored], prefix: str, name: str) -> Stored:
    if prefix.endswith("transformer."):
        full = f"{prefix}text_model.{name}"
        return stored[prefix + name] if prefix + name in stored else _pick(stored, full, path)
    key, third = single_file.open_clip(name)
    found = _pick(stored, prefix + key, path)
    if key == "text_projection":
        return replace(found, view=torch.t)
    return found if third is None else replace(found, view=lambda tensor: tensor.chunk(3)[third])


def _as_linear(tensor: Tensor) -> Tensor:
    """Convert the original VAE's attention, which is stored as 1×1 convolutions."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _pick(stored: Mapping[str, Stored], key: str, where: Path) -> Stored:
    if key not in stored:
        raise ModelCorrupt(f"{where} has no tensor {key}", "download the model again, or use a complete one")
    return stored[key]
