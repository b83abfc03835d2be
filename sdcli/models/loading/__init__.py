"""A diffusers folder, a hub snapshot or ONE `.safetensors` file → LatentDiffusionModel.

Knows of files, configs and families, nothing of prompts or pictures. Never a network, never a pickle. What a model
is made of is read from its configs; weights are checked by name and shape before the first one is read, and come
into memory one by one in their final type, so that loading needs little more room than the model itself.
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
"""The parts that the model of each pipeline cannot do without."""
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
"""The classes of each part, by the names in model_index.json; those of networks as `module:class`, to be imported."""
TEXT_PREFIXES = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_GET_ANEW = "get the model's folder anew; its parts must come from the same place"
_SUPPORTED = "Stable Diffusion 1.x, 2.x, XL and their distilled models, DiT and LDM on classes are supported"


Find = Callable[[str, nn.Module], Mapping[str, Stored]]
"""From a component's name and its module, still empty, to the stored tensors by their names in that module."""


def load(source: Source, *, name: str, device: torch.device, dtype: torch.dtype) -> LatentDiffusionModel:
    """The model at `source`, in `dtype` on `device`.

    With float16 a VAE whose config says `force_upcast` stays in float32, and a VQModel does with any dtype.

    Raises ModelNotFound, ModelUnsafe for pickles, ModelCorrupt for files that are missing, broken or do not fit
    each other, and ModelError for a model of a kind that is not supported.
    """
    source.check()
    find = finder(source)
    index = read_index(source)
    kept_wide = families.keeps_float32(families.read_json(source.folder("vae") / "config.json"), str(dtype)[6:])
    text_encoders = [each for each in ("text_encoder", "text_encoder_2") if index.get(each, [None])[0]]
    part = partial(_component, source, index, find, device=device, dtype=dtype)
    needed = PIPELINES[index["_class_name"]]
    network_part = "transformer" if "transformer" in needed else "unet"
    family = architectures.find(network_part, {"_class_name": index[network_part][1]})
    architecture = architectures.load(family)
    text = tuple(_text_encoder(source, index, find, each, device, dtype) for each in text_encoders)
    network, vae = part(network_part), part("vae", dtype=torch.float32 if kept_wide else dtype)
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
        raise source.explain(ModelCorrupt(f"{source.base}: {misfit}", _GET_ANEW))
    return model


def finder(source: Source) -> Find:
    """What finds the tensors of a component, in the single file, the folder, or the part's own folder."""
    stored = read_headers([source.path]) if source.is_file else {}

    def find(part: str, module: nn.Module) -> Mapping[str, Stored]:
        if source.is_file and not source.is_elsewhere(part):
            return find_in_file(source.path, stored, source.base, part, module)
        return find_in_folder(source.folder(part), source.variant, module)

    return find


def read_index(source: Source) -> Mapping[str, Any]:
    """model_index.json, which must name a pipeline and component classes that sdcli knows."""
    configs = source.base
    file = configs / INDEX
    index = source.index()
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise ModelError(f"{configs} is a {pipeline}, which sdcli does not run", _SUPPORTED)
    for part in COMPONENTS:
        library_and_class = index.get(part, [None, None])
        if not isinstance(library_and_class, list) or len(library_and_class) != 2:
            raise ModelCorrupt(f"{file} does not say what its {part} is", _GET_ANEW)
        if library_and_class[1] is None and part in PIPELINES[pipeline]:
            raise ModelCorrupt(f"{file} has no {part}", _GET_ANEW)
        if library_and_class[1] is not None and library_and_class[1] not in COMPONENTS[part]:
            where = source.folder(part) if source.is_elsewhere(part) else configs
            raise ModelError(f"{where} has a {library_and_class[1]} as its {part}", _SUPPORTED)
    return index


def build(folder: Path, part: str, class_name: str) -> Any:
    """One component as the config in its `folder` says, on the meta device: names and shapes, and no weights."""
    made = COMPONENTS[part][class_name]
    if isinstance(made, str):
        module, _, name = made.partition(":")
        with lean_imports():
            made = getattr(importlib.import_module(module), name)
    return construct(folder, made)


def construct(folder: Path, made: type[nn.Module]) -> Any:
    """The module of the class `made` that the config in `folder` describes, on the meta device."""
    file = folder / "config.json"
    config = families.read_json(file)
    try:
        with torch.device("meta"):
            if made in _TEXT_ENCODERS.values():
                return made(CLIPTextConfig(**_known(CLIPTextConfig.__annotations__, config)))
            return made(**_known(inspect.signature(made.__init__).parameters, config))
    except Exception as error:  # whatever a wrong value leads the libraries to
        what = " ".join(str(error).split())
        raise ModelCorrupt(f"{file} does not describe a {made.__name__}: {what}", _GET_ANEW) from error


def _component(
    source: Source, index: Mapping[str, Any], find: Find, part: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """One component, built empty and filled."""
    module = build(source.folder(part), part, index[part][1])
    fill(module, find(part, module), device, dtype)
    for name, buffer in module.named_buffers():  # those that no file keeps
        if buffer.is_meta:
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            setattr(owner, last, _BUFFERS[last](owner).to(device))
    return module


def _positions(embedding: PatchEmbed) -> Tensor:
    """Sines and cosines of the patches' places, (1, patches, D): those of the same embedding made anew, off meta."""
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
    """The entries of a config that a constructor takes; files carry others (versions, paths) that mean nothing."""
    return {key: value for key, value in config.items() if key in keys}


def find_in_folder(folder: Path, variant: str | None, module: nn.Module) -> Mapping[str, Stored]:
    """The tensors of a component with a folder of its own, under today's names or older ones."""
    files = families.component_files(folder, variant)
    stored = {_todays_name(key): each for key, each in read_headers(files).items()}
    names = {name: _todays_name(name) for name in module.state_dict()}
    unknown = [each.key for key, each in stored.items() if key not in names.values() and not _NEEDLESS.search(key)]
    if unknown:
        raise ModelCorrupt(f"{files[0]}: its config knows no tensor {unknown[0]}", _GET_ANEW)
    return {name: _pick(stored, key, files[0]) for name, key in names.items()}


def _todays_name(key: str) -> str:
    """transformers 4 wrote a `text_model.` that 5 leaves out; diffusers before 0.17 had other words for attention."""
    key = key.removeprefix("text_model.")
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        key = key.replace(old, new)
    return key


# What files hold beside the weights in use: stored buffers, and the other half of a whole CLIP.
_NEEDLESS = re.compile(r"position_ids$|^text_projection\.|^logit_scale$|^vision_model\.|^visual_projection\.")


def find_in_file(
    path: Path, stored: Mapping[str, Stored], configs: Path, part: str, module: nn.Module
) -> Mapping[str, Stored]:
    """The tensors of one component in ONE file of the CompVis/SGM layout."""
    if part.startswith("text"):
        prefix = next((each for each in TEXT_PREFIXES[part] if any(key.startswith(each) for key in stored)), None)
        if prefix is None:
            raise ModelCorrupt(f"{path} holds no {part}", "use a file that holds the whole model")
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
        raise ModelCorrupt(f"{path}: its family's U-Net knows no tensor {min(unknown)}", "is it of another family?")
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
    """The original VAE's attention is written as 1×1 convolutions."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _pick(stored: Mapping[str, Stored], key: str, where: Path) -> Stored:
    if key not in stored:
        raise ModelCorrupt(f"{where} lacks the tensor {key}", "get the model anew, or one that is whole")
    return stored[key]
