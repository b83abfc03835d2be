"""Loads a diffusers folder, a hub snapshot or a single `.safetensors` file to a LatentDiffusionModel.

Knows nothing of prompts or pictures. Never uses the network or a pickle. The classes of the parts come from the
configs. Weights are checked by name and shape before the first one is read, and are loaded one at a time in their final
dtype, so that loading needs little more memory than the model.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion import architectures
from sdcli.diffusion.model import LatentDiffusionModel, TextEncoder
from sdcli.errors import ModelCorrupt, ModelError
from sdcli.files import palette
from sdcli.models import configs, families, labels, language_tokenizer, tokenizer_folder
from sdcli.models.imports import lean_imports
from sdcli.models.loading.find import Finder
from sdcli.models.loading.weights import Stored, begin, check_shapes, fill
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
_CLIP: Mapping[str, type[nn.Module]] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
_QWEN3 = "transformers.models.qwen3.modeling_qwen3:Qwen3Model"
_GEMMA = "transformers.models.gemma2.modeling_gemma2:Gemma2Model"
_QWEN3_VL = "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLModel"
_QWEN_VL = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLModel"
_TEXT_ENCODERS: Mapping[str, type[nn.Module] | str] = {
    **_CLIP,
    "T5EncoderModel": "transformers.models.t5.modeling_t5:T5EncoderModel",
    # without the head that predicts words
    "Qwen3Model": _QWEN3,
    "Qwen3ForCausalLM": _QWEN3,
    "Gemma2Model": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA,
    "Qwen3VLModel": _QWEN3_VL,
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen2_5_VLModel": _QWEN_VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN_VL,
}
_TEXT_SETTINGS = {*CLIPTextConfig.__annotations__, *inspect.signature(CLIPTextConfig.__init__).parameters}
"""The settings of a text encoder: fields of a dataclass since transformers 5.1, parameters before."""
COMPONENTS: Mapping[str, Mapping[str, type[nn.Module] | str]] = {
    "unet": architectures.networks("unet"),
    "transformer": architectures.networks("transformer"),
    "vae": {
        "AutoencoderKL": AutoencoderKL,
        "AutoencoderTiny": AutoencoderTiny,
        "VQModel": VQModel,
        "AutoencoderDC": "diffusers.models.autoencoders.autoencoder_dc:AutoencoderDC",
        "AutoencoderKLFlux2": "diffusers.models.autoencoders.autoencoder_kl_flux2:AutoencoderKLFlux2",
        "AutoencoderKLQwenImage21": "diffusers.models.autoencoders.autoencoder_kl_qwenimage21:AutoencoderKLQwenImage21",
        "AutoencoderKLQwenImage": "diffusers.models.autoencoders.autoencoder_kl_qwenimage:AutoencoderKLQwenImage",
    },
    "class_embedder": {"Embedding": nn.Embedding},
    "text_encoder": _TEXT_ENCODERS,
    "text_encoder_2": _TEXT_ENCODERS,
    "text_encoder_3": _TEXT_ENCODERS,
}
"""The classes of each part, by the names in model_index.json; most as `module:class`, imported when needed."""
_DOWNLOAD_AGAIN = "download the model's folder again; its parts must belong together"
_SUPPORTED = (
    "Stable Diffusion 1.x, 2.x, XL, 3.x, their distilled versions, FLUX.1, FLUX.2 [klein], Z-Image, Qwen-Image, "
    "Chroma, Krea 2, Lumina-Image 2.0, Sana, PixArt, DiT, and LDM of ImageNet are supported"
)


def load(
    source: Source,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str = "none",
    stage: str | None = None,
    offload: str = "none",
    find: Callable[..., Parts] | None = None,
    fill_part: Callable[..., Any] | None = None,
    refiner: bool = False,
) -> LatentDiffusionModel:
    """Load the model at `source`, in `dtype` on `device`, or for it in main memory if weights are offloaded.

    With a `stage`, only its parts are loaded: the text encoders (`text`), everything else (`picture`), or the `vae`.
    The other parts are checked, and stay on the meta device. `quantize` is the format for the weights of the layers of
    the network and of language models. With float16, a VAE with `force_upcast` in its config stays in float32; a
    VQModel always does. `find` and `fill_part` replace `check_parts` and the reading of files, for weights from
    elsewhere. A `refiner` has the second text encoder of SDXL only.

    Raises ModelNotFound, ModelUnsafe for pickles, ModelCorrupt for files that are missing, invalid or do not fit each
    other, and ModelError for an unsupported kind of model.
    """
    source.check()
    index = read_index(source, refiner=refiner)
    vae_in_float32 = families.keeps_float32(source.config("vae"), str(dtype)[6:])
    scheduler_config, known = source.scheduler_config(), labels.read(source)
    needed = PIPELINES[index["_class_name"]]
    network_part = "transformer" if "transformer" in needed else "unet"
    family = architectures.find(network_part, {"_class_name": index[network_part][1]})
    architectures.check_scheduler(family, scheduler_config)
    _check_classes(source, index, family)
    architecture = architectures.load(family)
    text_encoders = text_parts(index)
    others = (each for each in needed if not (refiner and each == "text_encoder"))
    needed = tuple(dict.fromkeys([*text_encoders, *others]))
    loaded = [each for each in needed if stage in (None, each, "text" if each in text_encoders else "picture")]
    if find is None:
        _begin(source, loaded)
    parts = (find or check_parts)(source, index, needed)
    seeing = index.get("processor", [None, None])[1] == "Qwen2VLProcessor"
    if seeing and any(getattr(parts[each][0], "visual", None) is None for each in text_encoders):
        what = f"{source.file('text_encoder') or source.base} is without vision, which a model that edits images needs"
        raise ModelCorrupt(what, "use a file of the text encoder with its vision, in .safetensors")
    tokenizers = [_tokenizer(source, each, parts[each][0]) for each in text_encoders]
    storage = device if offload == "none" else torch.device("cpu")
    filled = {
        each: (fill_part or _filled)(
            *parts[each],
            storage,
            torch.float32 if each == "vae" and vae_in_float32 else dtype,
            quantize if takes_quantised(each, parts[each][0]) else "none",
        )
        if each in loaded
        else parts[each][0]
        for each in parts
    }
    processor = language_tokenizer.read_image_processor(source.folder("processor")) if seeing else None
    text = tuple(
        TextEncoder(tokens, filled[each], processor) for tokens, each in zip(tokenizers, text_encoders, strict=True)
    )
    network, vae = filled[network_part], filled["vae"]
    facts = architecture.facts(network.config, vae.config, index)
    model = LatentDiffusionModel(
        name=name,
        text_encoders=text,
        network=network,
        architecture=family,
        facts=facts,
        latent_space=architecture.latent_space(vae),
        vae=vae,
        labels=known,
        class_embedder=filled.get("class_embedder"),
        scheduler_config={**scheduler_config, **facts.schedule},
        device=device,
        dtype=dtype,
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
        classes=palette.read(palette.find(source.folder("unet")).parent),
        offload=offload,
    )
    misfit = architecture.misfit(model)
    if misfit is not None:
        raise source.explain(ModelCorrupt(f"{source.base}: {misfit}", _DOWNLOAD_AGAIN))
    return model


def _begin(source: Source, parts: Iterable[str]) -> None:
    """Let the disk read the first weights while their modules are made. What is wrong is found there."""
    for part in parts:
        with suppress(ModelError):
            begin(source.weights(part))


def _check_classes(source: Source, index: Mapping[str, Any], family: str) -> None:
    """Raise ModelError if a part has a class of another family."""
    for part, known in architectures.TABLE[family].components.items():
        found = index.get(part, [None, None])[1]
        if found not in (None, *known):
            what = f"{source.folder(part)} has a {found}, and the {part} of this model must be a {known[0]}"
            raise ModelError(what, "use the part of a model of the same family")


def text_parts(index: Mapping[str, Any]) -> list[str]:
    """Return the text encoders in a model_index.json, in the order of `LatentDiffusionModel.text_encoders`."""
    named = (each for each in COMPONENTS if each.startswith("text_encoder"))
    return [each for each in named if index.get(each, [None, None])[1]]


def read_index(source: Source, *, refiner: bool = False) -> Mapping[str, Any]:
    """Read model_index.json. Raises ModelError unless its pipeline and component classes are supported.

    Only a `refiner` has no first text encoder.
    """
    folder = source.base
    file = folder / INDEX
    index = source.index()
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise ModelError(f"{folder} is a {pipeline}, which is not supported", _SUPPORTED)
    for part in COMPONENTS:
        library_and_class = index.get(part, [None, None])
        if library_and_class[1] is None and part in PIPELINES[pipeline]:
            if index.get("requires_aesthetics_score") and part == "text_encoder":
                if refiner:
                    continue
                raise ModelError(f"{folder} is a refiner of SDXL", "use it with --refiner, after a model of SDXL")
            raise ModelCorrupt(f"{file} has no {part}", _DOWNLOAD_AGAIN)
        if library_and_class[1] is not None and library_and_class[1] not in COMPONENTS[part]:
            where = source.folder(part) if source.is_elsewhere(part) else folder
            raise ModelError(f"{where} has a {library_and_class[1]} as its {part}", _SUPPORTED)
    return index


Parts = Mapping[str, tuple[Any, Mapping[str, Stored]]]
"""Modules on the meta device by part, and their tensors by name."""


def check_parts(source: Source, index: Mapping[str, Any], parts: Iterable[str]) -> Parts:
    """Build `parts` and find their tensors, with the right shapes, before the first weight is read.

    Raises ModelCorrupt and ModelError for whatever is missing or does not fit.
    """
    find = Finder(source)
    made = {}
    for part in parts:
        module = build(source.folder(part), part, index[part][1], find.count(part))
        made[part] = module, find(part, module)
        check_shapes(*made[part])
    return made


def build(folder: Path, part: str, class_name: str, count: float = math.inf) -> Any:
    """Build a component from the config in its `folder` on the meta device, for a file of `count` tensors."""
    made = COMPONENTS[part][class_name]
    if isinstance(made, str):
        module, _, name = made.partition(":")
        with lean_imports():
            made = getattr(importlib.import_module(module), name)
    return construct(folder, made, count)


def construct(folder: Path, made: type[nn.Module], count: float = math.inf) -> Any:
    """Build a module of the class `made` from the config in `folder` on the meta device.

    Raises ModelCorrupt for an invalid config, and before building for one with more layers than `count` tensors.
    """
    file = folder / "config.json"
    config = configs.read(file)
    if configs.layers(config) > count:
        what = f"{file} declares {configs.layers(config):,} layers, and there are only {count:,} tensors"
        raise ModelCorrupt(what, _DOWNLOAD_AGAIN)
    try:
        with torch.device("meta"):
            if made in _CLIP.values():
                return made(CLIPTextConfig(**_known(_TEXT_SETTINGS, config)))
            if hasattr(made, "config_class") and made.__module__.startswith("transformers."):
                return made(made.config_class(**{key: config[key] for key in config if key not in _NOT_OF_THE_NETWORK}))
            return made(**_known(inspect.signature(made.__init__).parameters, config))
    except Exception as error:  # the libraries raise anything for a wrong value
        what = " ".join(str(error).split())
        raise ModelCorrupt(f"{file} is not a config of a {made.__name__}: {what}", _DOWNLOAD_AGAIN) from error


def takes_quantised(part: str, module: Any) -> bool:
    """Whether a part is quantised on loading: the network and language models, which are large, and not CLIP."""
    return part in ("unet", "transformer") or (part.startswith("text_encoder") and type(module) not in _CLIP.values())


def _filled(module: Any, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype, quantize: str) -> Any:
    """Load the weights of a component into its `module`."""
    fill(module, stored, device, dtype, quantize)
    return with_tables(module, device)


def with_tables(module: Any, device: torch.device) -> Any:
    """Compute the tables and buffers of `module` that no file has, and return it."""
    for name, each in list(module.named_modules()):
        rebuilt = _with_tables(each)
        if rebuilt is not None:
            path, _, last = name.rpartition(".")
            setattr(module.get_submodule(path), last, rebuilt.to(device))
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
    scale = embedding.interpolation_scale
    made: Tensor = PatchEmbed(
        height, width, patch, channels, embedding.proj.out_channels, interpolation_scale=scale
    ).pos_embed
    return made


def _modulations(embedding: Any) -> Tensor:
    """Return the table (layers, D) of Chroma's embedding of time, from a new one that is not on the meta device."""
    count, channels = embedding.mod_proj.shape
    made: Tensor = type(embedding)(channels // 2, count).mod_proj
    return made


_BUFFERS: Mapping[str, Callable[[Any], Tensor]] = {
    "position_ids": lambda owner: torch.arange(owner.position_ids.shape[-1]).expand(owner.position_ids.shape),
    "pos_embed": _positions,
    "mod_proj": _modulations,
    "embed_scale": lambda owner: torch.tensor(owner.scalar_embed_scale),  # of Gemma
}


def _with_tables(module: Any) -> nn.Module | None:
    """Return a new module for one that computes tables when it is made, which are in no file; None for others."""
    name = type(module).__name__
    if name == "QwenImage21TemporalTimesteps":
        return type(module)(2 * len(module.freqs))  # type: ignore[no-any-return]
    if name == "QwenImage21Rope":
        return type(module)(module.theta, module.axes_dim)  # type: ignore[no-any-return]
    if name == "QwenEmbedRope":
        return type(module)(module.theta, module.axes_dim, module.scale_rope)  # type: ignore[no-any-return]
    if name == "Lumina2RotaryPosEmbed":
        return type(module)(module.theta, module.axes_dim, module.axes_lens, module.patch_size)  # type: ignore[no-any-return]
    if name.endswith("RotaryEmbedding"):
        config = getattr(module, "config", None)
        return type(module)(2 * len(module.inv_freq) if config is None else config)  # type: ignore[no-any-return]
    return None


_NOT_OF_THE_NETWORK = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def _tokenizer(source: Source, part: str, model: Any) -> Any:
    part = part.replace("text_encoder", "tokenizer")
    folder = source.folder(part)
    if type(model) not in _CLIP.values():
        kind = language_tokenizer.kind_of(model)
        return language_tokenizer.read(tokenizer_folder.find(source, part, kind), kind, model)
    return read_tokenizer(
        folder,
        window=model.config.max_position_embeddings,
        vocab_size=model.config.vocab_size,
    )


def _known(keys: Container[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a config that a constructor takes; others, such as versions and paths, are ignored."""
    return {key: value for key, value in config.items() if key in keys}
