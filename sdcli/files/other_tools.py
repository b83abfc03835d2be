"""Metadata that sdcli cannot replay: which tool wrote it, and its prompt, seed and size where they stand plainly.

ComfyUI writes the graph of its nodes (`prompt`, in the form of its API), NovelAI a JSON object (`Comment`), and
InvokeAI before 3.0 a command line (`Dream`) and JSON (`sd-metadata`). Opens no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Chunks = Mapping[Any, Any]
"""The text of a picture by its key, as Pillow's `info` has it."""
MAX_NODES = 10_000


def find(info: Chunks, parse: Callable[[str], dict[str, Any] | None]) -> tuple[str, dict[str, str]] | None:
    """Return the tool that wrote the metadata and A1111's names with values; None if no such tool did.

    `parse` reads a JSON object, or returns None.
    """

    def read(key: str) -> dict[str, Any]:
        value = info.get(key)
        return (parse(value) or {}) if isinstance(value, str) else {}

    if info.get("Software") == "NovelAI" or str(info.get("Source")).startswith("NovelAI"):
        return "NovelAI", _of_novelai(info.get("Description"), read("Comment"))
    nodes = read("prompt")
    if any(isinstance(each, dict) and "class_type" in each for each in nodes.values()):
        return "ComfyUI", _of_comfyui(nodes)
    if "nodes" in read("workflow"):
        return "ComfyUI", {}
    if "sd-metadata" in info or "Dream" in info:
        return "InvokeAI before 3.0", {}
    if "fooocus_scheme" in info:
        return "Fooocus", {}
    return None


def _of_novelai(description: Any, comment: Mapping[str, Any]) -> dict[str, str]:
    values = {"Prompt": comment.get("prompt", description), "Negative prompt": comment.get("uc")}
    return _plain(values, comment.get("seed"), comment.get("width"), comment.get("height"))


def _of_comfyui(nodes: Mapping[str, Any]) -> dict[str, str]:
    """Read the graph's only sampler, and the texts and the size that lead to it directly."""
    samplers = [each for each in _inputs(nodes) if "KSampler" in each[0]]
    if len(samplers) != 1:
        return {}
    _, sampler = samplers[0]
    texts = {"Prompt": "positive", "Negative prompt": "negative"}
    values = {key: _linked(nodes, sampler.get(name)).get("text") for key, name in texts.items()}
    latent = _linked(nodes, sampler.get("latent_image"))
    seed = sampler.get("seed", sampler.get("noise_seed"))
    return _plain(values, seed, latent.get("width"), latent.get("height"))


def _inputs(nodes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for each in list(nodes.values())[:MAX_NODES]:
        if isinstance(each, dict) and isinstance(each.get("inputs"), dict):
            yield str(each.get("class_type")), each["inputs"]


def _linked(nodes: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """Return the inputs of the node that a link, `[node, output]`, refers to."""
    name = link[0] if isinstance(link, list) and link and isinstance(link[0], str) else ""
    node = nodes.get(name)
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _plain(texts: Mapping[str, Any], seed: Any, width: Any, height: Any) -> dict[str, str]:
    values = {key: each for key, each in texts.items() if isinstance(each, str)}
    if type(seed) is int:
        values["Seed"] = str(seed)
    if type(width) is int and type(height) is int:
        values["Size"] = f"{width}x{height}"
    return values
