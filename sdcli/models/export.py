"""Writes any model as a diffusers folder that diffusers' own pipelines load.

Weights keep their values and dtype. Tensors are named as in the current diffusers and in transformers 4 and 5, and a
tokenizer is written in files that both read. Knows nothing of prompts or pictures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sdcli.diffusion import architectures
from sdcli.files import folders, palette
from sdcli.files.json_files import load_json
from sdcli.models import families, language_tokenizer, loading, tokenizer, tokenizer_folder, vocabulary
from sdcli.models.loading.weights import Stored, read, tensors
from sdcli.models.source import INDEX, SUFFIXES, Source
from sdcli.terminal.display import OnBytes

_NOT_EXPORTED = ("feature_extractor", "image_encoder", "safety_checker")


def export(source: Source, folder: Path, on_bytes: OnBytes) -> str:
    """Write the model at `source` to the empty `folder`; returns the name of its diffusers pipeline.

    Components are written one at a time, so only the largest must fit into memory. Raises ModelError if the model
    cannot be read, and OSError if the folder cannot be written.
    """
    source.check()
    index = loading.read_index(source)
    parts = loading.check_parts(source, index, [part for part in loading.COMPONENTS if index.get(part, [None])[0]])
    if _is_flow(index):
        copied = [part for part, each in index.items() if isinstance(each, list) and each[0] is not None]
        if any(source.file(part) is not None or not source.folder(part).is_dir() for part in copied):
            return _put_together(source, folder, index, parts, on_bytes)
        return _copied(source, folder, index, on_bytes)
    modules = {part: module for part, (module, _) in parts.items()}
    for part, (module, stored) in parts.items():
        (folder / part).mkdir()
        _copy_json(source.folder(part), folder / part)
        state = {name_of(part, name): tensor for name, tensor in tensors(module, stored)}
        save(state, folder / part)
        on_bytes(part, sum(tensor.nbytes for tensor in state.values()))
        if part.startswith("text"):
            tokens = part.replace("text_encoder", "tokenizer")
            tokenizer.write(source.folder(tokens), folder / tokens)
    (folder / "scheduler").mkdir()
    _copy_json(source.folder("scheduler"), folder / "scheduler")
    classes = palette.find(source.folder("unet"))
    if classes.exists() and classes.parent != source.folder(
        "unet"
    ):  # otherwise they were copied with the U-Net's config
        palette.write(folder, palette.read(classes.parent))
    known = vocabulary.read(source.path)
    if known is not None:
        vocabulary.write(folder, known)
    written = _index(source, index, modules)
    write_json(folder / INDEX, written)
    return str(written["_class_name"])


def _is_flow(index: Mapping[str, Any]) -> bool:
    """Whether the model is one of flow matching, whose folders have been in one layout since they exist."""
    rows = (row for row in architectures.TABLE.values() if row.flow)
    return any(index["_class_name"] in row.pipelines for row in rows)


def _copied(source: Source, folder: Path, index: Mapping[str, Any], on_bytes: OnBytes) -> str:
    """Copy the folders of the parts of a model."""
    parts = [part for part, each in index.items() if isinstance(each, list) and each[0] is not None]
    for part in parts:
        place = source.folder(part)
        files = {each for each in place.iterdir() if each.suffix in (*SUFFIXES, ".model", ".jinja") and each.is_file()}
        weights = set(families.component_files(place, source.variant)) if part in loading.COMPONENTS else set()
        (folder / part).mkdir()
        for file in sorted(weights | {each for each in files if each.suffix != ".safetensors"}):
            shutil.copyfile(file, folder / part / file.name)
            on_bytes(part, file.stat().st_size)
    write_json(folder / INDEX, dict(index))
    return str(index["_class_name"])


def _put_together(
    source: Source, folder: Path, index: Mapping[str, Any], parts: loading.Parts, on_bytes: OnBytes
) -> str:
    """Write a folder for the parts of a model in single files, with the tensors under the names of their modules."""
    written = dict(index)
    for part, (module, stored) in parts.items():
        (folder / part).mkdir()
        write_json(folder / part / "config.json", load_json(source.folder(part) / "config.json"))
        named = (lambda name, part=part: name_of(part, name)) if _is_clip(module) else str
        state = {named(name): tensor for name, tensor in read(each_once(stored))}
        save(state, folder / part)
        on_bytes(part, sum(tensor.nbytes for tensor in state.values()))
        if part.startswith("text"):
            written[part] = ["transformers", type(module).__name__]  # without a head
            write_tokenizer(source, part, module, folder)
    copy_folders(source, folder)
    write_json(folder / INDEX, written)
    return str(index["_class_name"])


def each_once(stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
    """Return the tensors by one name each, the first: an embedding can have two, and is loaded from either."""
    names = {id(each): name for name, each in reversed(list(stored.items()))}
    return {name: each for name, each in stored.items() if names[id(each)] == name}


def copy_folders(source: Source, folder: Path) -> None:
    """Copy the folders of the scheduler and of the image processor, which have no weights."""
    for part in ("scheduler", "processor"):
        if source.folder(part).is_dir():
            shutil.copytree(source.folder(part), folder / part)


def _is_clip(module: Any) -> bool:
    return type(module).__name__.startswith("CLIP")


def write_tokenizer(source: Source, part: str, module: Any, folder: Path) -> None:
    """Write the tokenizer of the text encoder `part` to its place in `folder`."""
    part = part.replace("text_encoder", "tokenizer")
    if _is_clip(module):
        tokenizer.write(source.folder(part), folder / part)
        return
    kind = language_tokenizer.kind_of(module)
    place = tokenizer_folder.find(source, part, kind)
    if place != families.QWEN:
        shutil.copytree(place, folder / part)
        return
    language_tokenizer.read(place, kind, module).save_pretrained(str(folder / part))


def name_of(part: str, name: str) -> str:
    """Add the prefix `text_model.` to a text encoder's tensor names, which transformers 4 needs and 5 accepts."""
    if not part.startswith("text") or name.startswith("text_projection."):
        return name
    return prefixed(name)


def prefixed(name: str) -> str:
    """Add the prefix `text_model.`, without which transformers 4 loads random weights."""
    return f"text_model.{name.removeprefix('text_model.')}"


def save(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the weights of a part to its `folder`, which has its config.json."""
    file = folder / f"{families.STEMS[folder.name.startswith('text')]}.safetensors"
    try:
        save_file({name: each.contiguous() for name, each in state.items()}, file, {"format": "pt"})
    except SafetensorError as error:
        raise folders.os_error(error) or error from error
    shutil.copymode(folder / "config.json", file)  # the library creates it readable only for the owner


def _copy_json(source: Path, target: Path) -> None:
    """Copy a part's JSON files (configs, a U-Net's classes), except the index of its shards."""
    for file in sorted(source.glob("*.json")):
        if ".safetensors.index." not in file.name:
            write_json(target / file.name, _without_path(load_json(file)))


def _without_path(config: Any) -> Any:
    """Remove the recorded path from a config, which can be a path on another machine."""
    return (
        {key: value for key, value in config.items() if key != "_name_or_path"} if isinstance(config, dict) else config
    )


def _index(source: Source, index: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, Any]:
    """Return model_index.json: the pipeline that suits the U-Net, the parts, and no safety checker."""
    is_xl = "text_encoder_2" in modules
    header = {key: value for key, value in index.items() if not isinstance(value, list)}
    parts: dict[str, Any] = {part: index[part] for part in modules}
    parts |= {
        part.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"]
        for part in modules
        if part.startswith("text")
    }
    scheduler = source.scheduler_config().get("_class_name")
    parts["scheduler"] = ["diffusers", scheduler] if scheduler else index["scheduler"]
    header |= {"_diffusers_version": diffusers.__version__}
    if "text_encoder" not in modules:  # a class-conditional model, whose pipeline is unambiguous
        return dict(sorted({**header, **parts}.items()))
    channels = modules["unet"].config["in_channels"], modules["vae"].config["latent_channels"]
    parts |= {part: [None, None] for part in _NOT_EXPORTED if not (is_xl and part == "safety_checker")}
    header |= {"_class_name": _pipeline(str(index["_class_name"]), *channels, is_xl=is_xl)}
    header |= {} if is_xl else {"requires_safety_checker": False}
    return dict(sorted({**header, **parts}.items()))


def _pipeline(named: str, in_channels: int, latent_channels: int, *, is_xl: bool) -> str:
    """Return the pipeline for a U-Net with `in_channels`: `named`, unless only one of the two inpaints.

    diffusers has no pipeline for other concatenated channels; such a model keeps its name, and only sdcli runs it.
    """
    stem = "StableDiffusionXL" if is_xl else "StableDiffusion"
    if in_channels == 2 * latent_channels + 1:
        return f"{stem}InpaintPipeline"
    return f"{stem}Pipeline" if "Inpaint" in named else named


def write_json(path: Path, value: Any) -> None:
    """Write a config. Raises OSError."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
