"""Dry runs: everything about a run that can be found out without torch.

Reads configs, vocabularies and the headers of weights, and writes nothing. Raises the errors that the run would raise
before its first step, as far as they depend on files and options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.diffusion import hardware, room
from sdcli.files import outputs
from sdcli.models import addons, digest
from sdcli.models.addons import embedding
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Weights
from sdcli.planning import memory, sizes, timings
from sdcli.planning.sizes import Size
from sdcli.recipe import checks
from sdcli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from sdcli.diffusion.model import Tokenizer


@dataclass(frozen=True)
class Parts:
    """Weights on disk: the files of the model and of each add-on, and the size of each part."""

    weights: Weights
    files: Sequence[Path]
    sizes: Mapping[str, Size]
    addons: Sequence[tuple[Addon, Sequence[Path]]] = ()


def plan(
    name: str,
    weights: Weights,
    recipes: Sequence[Recipe],
    output: str | None,
    *,
    force: bool = False,
    save_latents: str | None = None,
) -> dict[str, Any]:
    """Describe a run for JSON: `recipe` (of the first picture), `seeds`, `model` with files and digests, `tokens`
    (None for a label), `paths`, `latents` (their paths, if saved), `memory` in bytes, and `seconds`, None if no similar
    run was measured.

    Raises InvalidRecipe, ModelError and OutputError like the run.
    """
    first = recipes[0]
    parts = find_parts(weights)
    cost = cost_of(parts, first)
    seconds = cost["seconds"]
    return {
        "status": "planned",
        "recipe": first.to_dict(),
        "seeds": [each.seed for each in recipes],
        "model": model_of(name, parts),
        **({"addons": [_described(*each) for each in parts.addons]} if parts.addons else {}),
        "tokens": cost["tokens"],
        "paths": ["-"] if output == "-" else outputs.foresee(output, recipes, force=force),
        **({} if save_latents is None else {"latents": _latent_paths(save_latents, recipes, force)}),
        "memory": cost["memory"],
        "seconds": None if seconds is None else round(seconds * len(recipes), 3),
    }


def _latent_paths(save_latents: str, recipes: Sequence[Recipe], force: bool) -> list[str]:
    return outputs.foresee(save_latents, recipes, force=force, kind=outputs.LATENTS)


def model_of(name: str, parts: Parts) -> dict[str, Any]:
    """Return a model's name, path, digest and weight files, for JSON. Raises ModelError."""
    source = parts.weights.model
    return {
        "name": name,
        "path": str(source.path),
        "parts": {part: str(folder) for part, folder in source.parts},
        "digest": source.sha256,
        "files": _files(parts.files),
    }


def cost_of(parts: Parts, of: Recipe) -> dict[str, Any]:
    """Return `tokens` (None for a label, and for a language model), `memory` and `seconds` (None if unknown).

    Raises InvalidRecipe like the run.
    """
    found = hardware.likely(of.execution.torch_device, of.execution.dtype)
    likely = dict(zip(("device", "dtype"), found, strict=True))
    is_text = of.condition.label is None
    if is_text and _has_clip_alone(parts.weights.model):
        _check_clip_skip(parts.weights.model, of)
    return {
        "tokens": count_tokens(parts.weights, of) if is_text else None,
        "memory": estimate_memory(parts, of, likely),
        "seconds": timings.recall(of, parts.weights),
    }


def find_parts(weights: Weights) -> Parts:
    """Return the files and sizes of the weights. Raises ModelError for files that are missing, truncated or unsafe."""
    source = weights.model
    source.check()
    added = [(each, addons.KINDS[each.kind].files(each.source)) for each in weights.addons]
    beside = {
        f"{each.kind} {each.name}": sum(map(sizes.of_file, files), Size(0))
        for each, files in added
        if not addons.KINDS[each.kind].merged
    }
    alone = [part for part in sizes.PARTS if source.is_elsewhere(part) or not source.is_file]
    listed = [
        file
        for part in alone
        if source.is_elsewhere(part) or source.folder(part).is_dir()
        for file in source.weights(part)
    ]
    files = [source.path, *listed] if source.is_file else listed
    return Parts(weights, files, sizes.of_source(source) | beside, added)


def _described(addon: Addon, files: Sequence[Path]) -> dict[str, Any]:
    return {**addon.describe(), "path": str(addon.source.path), "files": _files(files)}


def _files(files: Sequence[Path]) -> list[dict[str, Any]]:
    return [{"path": str(file), "bytes": file.stat().st_size, "sha256": digest.file_sha256(file)} for file in files]


def _has_clip_alone(source: Source) -> bool:
    return source.denoiser == "unet"


def _check_clip_skip(source: Source, of: Recipe) -> None:
    second = (source.folder("text_encoder_2") / "config.json").exists()
    encoders = ("text_encoder", "text_encoder_2") if second else ("text_encoder",)
    layers = min(source.config(part).get("num_hidden_layers", _LAYERS_OF_CLIP) for part in encoders)
    penultimate = source.config("unet").get("addition_embed_type") == "text_time"
    checks.check_clip_skip(of.condition.clip_skip, layers, penultimate=penultimate)


_LAYERS_OF_CLIP = 12  # transformers' default


def count_tokens(weights: Weights, of: Recipe) -> dict[str, Any] | None:
    """Count the tokens of the prompts in the first text encoder's vocabulary, and the chunks that they take.

    None for a language model, whose tokenizer is not read here.
    """
    from sdcli.diffusion.context.chunks import chunks

    if not _has_clip_alone(weights.model):
        return None
    tokenizer = embedding.with_words(_tokenizer(weights.model), 0, weights.of_kind(embedding.KIND))
    condition = of.condition
    divided = [
        chunks(tokenizer, text, condition.prompt_weights) for text in (condition.prompt, condition.negative_prompt)
    ]
    prompt, negative_prompt = (sum(map(len, each)) for each in divided)
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "chunk_size": tokenizer.max_length - 2,
        "chunks": max(map(len, divided)),
    }


@lru_cache(maxsize=2)
def _tokenizer(source: Source) -> Tokenizer:
    from sdcli.models.tokenizer import read_tokenizer

    config = source.config("text_encoder")
    return read_tokenizer(
        source.folder("tokenizer"),
        window=config.get("max_position_embeddings", 77),
        vocab_size=config.get("vocab_size", 49408),
    )


def estimate_memory(parts: Parts, of: Recipe, likely: Mapping[str, str]) -> dict[str, Any]:
    """Estimate the memory on the device in bytes in the likely dtype: `weights`, `activations` and their `peak`, as the
    plan for it (`staged`, `offload`, `tiling`) has them. torch itself is not included.
    """
    taken = memory.sizes_of(parts.weights, parts.sizes, of, likely["dtype"])
    found, host = room.room(likely["device"]), room.of_host()
    planned = memory.plan(taken, of, likely["device"], room=found, host=host)
    decoding = taken.decoding.get(planned.tiling, min(taken.decoding.values()))
    activations = max(decoding, taken.denoising)
    return {
        **likely,
        "weights": taken.weights,
        "activations": activations,
        "peak": planned.peak,
        "room": found,
        "plan": planned.to_dict(),
    }


def with_any_seed(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan without the seeds that were drawn for it: the run draws others. Names have `{seed}` instead."""
    fields = {key: _with_field(plan[key], plan["seeds"]) for key in ("paths", "latents") if key in plan}
    return {**plan, "recipe": {**plan["recipe"], "seed": None}, "seeds": None, **fields}


def _with_field(paths: Sequence[str], seeds: Sequence[int]) -> list[str]:
    return list(dict.fromkeys(path.replace(str(seed), "{seed}") for path, seed in zip(paths, seeds, strict=True)))


def lines(recorded: Mapping[str, Any]) -> Iterable[str]:
    """Format a plan as `key: value` lines."""
    pairs = {
        "model": f"{recorded['model']['name']} ({recorded['model']['path']})",
        "digest": recorded["model"]["digest"],
        "files": f"{len(recorded['model']['files'])}, {gib(sum(file['bytes'] for file in recorded['model']['files']))}",
        **{
            key: _recorded(value)
            for key, value in recorded["recipe"].items()
            if key not in ("model", "seed") and value != ""
        },
        **{
            f"{each['kind']} {each['name']}": f"{each['path']}, sha256 {each['sha256']}"
            for each in recorded.get("addons", ())
        },
        **_tokens(recorded["tokens"]),
        "seeds": "random" if recorded["seeds"] is None else ", ".join(map(str, recorded["seeds"])),
        "paths": ", ".join(recorded["paths"]),
        **({"latents": ", ".join(recorded["latents"])} if "latents" in recorded else {}),
        "memory": memory_in_words(recorded["memory"]),
        "seconds": "unknown: no similar picture was measured"
        if recorded["seconds"] is None
        else seconds_in_words(recorded["seconds"]),
    }
    margin = max(map(len, pairs)) + 2
    return (f"{key + ':':<{margin}}{' '.join(str(value).split())}" for key, value in pairs.items())


def _recorded(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def seconds_in_words(seconds: float) -> str:
    """Format an estimate of seconds: one decimal place below 10, none above."""
    return f"about {seconds:.{1 if seconds < 10 else 0}f}, plus loading the model"


def memory_in_words(estimate: Mapping[str, Any]) -> str:
    """Format an estimate of memory, and the plan to fit into it."""
    planned = estimate["plan"]
    steps = [
        *(["the text encoders are dropped before the network is loaded"] if planned["staged"] else []),
        *_OFFLOADED.get(planned["offload"], ()),
        *_DECODED.get(planned["tiling"], ()),
    ]
    return (
        f"about {gib(estimate['peak'])} on {estimate['device']} in {estimate['dtype']}: weights "
        f"{gib(estimate['weights'])}, activations {gib(estimate['activations'])}; plus PyTorch itself"
        + "".join(f"; {each}" for each in steps)
    )


_OFFLOADED = {
    "model": ("parts are on the device while they are used",),
    "group": ("layers are on the device while they are used",),
}
_DECODED = {"slices": ("pictures are decoded one at a time",), "tiles": ("pictures are decoded in tiles",)}


def _tokens(tokens: Mapping[str, int] | None) -> dict[str, str]:
    if tokens is None:
        return {}
    recorded = f"{tokens['prompt']}, negative {tokens['negative_prompt']}; {tokens['chunks']} × {tokens['chunk_size']}"
    return {"tokens": recorded}


def gib(count: int) -> str:
    """Format bytes with a binary unit."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
