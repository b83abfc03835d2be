"""What `sdcli models show` says of a model: its entry, and facts from its configs. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli.errors import ModelError
from sdcli.models import configs, families, ip_adapter_file, lora_file, registry
from sdcli.models.addons import controlnet, embedding, ip_adapter, lora, upscaler
from sdcli.models.hub import lock
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run, resolve


def describe(entry: registry.ModelEntry) -> dict[str, Any]:
    """Return the entry and, if the model is on this machine, facts from its configs."""
    described: dict[str, Any] = {
        "name": entry.name,
        "description": entry.description,
        "license": entry.license,
        "origin": entry.origin,
        "kind": entry.kind,
        "source": entry.repo or entry.folder or entry.url,
        "present": registry.is_present(entry),
    }
    if described["present"]:
        source = registry.locate(entry)
        pin = pin_of(entry)
        if pin is not None:
            described |= {"revision": pin.revision, "asked_revision": pin.asked, "bytes": pin.size}
        described |= {"path": str(source.path), **_of_files(entry, source)}
    own = {key: each.value for key, each in entry.user_defaults.items()}
    if described["kind"] != registry.MODEL:
        defaults = {**entry.defaults, **entry.needs, **own}
        extra = {"trigger": entry.trigger, "defaults": defaults}
        return described | {key: value for key, value in extra.items() if value}
    if entry.parts:
        described["parts"] = dict(entry.parts)
    suited = described.pop("suited", {})
    described["defaults"] = {**resolve.DEFAULTS, **suited, **entry.defaults, **entry.needs, **own}
    for key in ("components", "vocabulary"):  # which are long
        if key in described:
            described[key] = described.pop(key)
    return described


def _of_files(entry: registry.ModelEntry, source: Source) -> dict[str, Any]:
    """Return the facts that the files of an entry tell."""
    if entry.kind == registry.LORA:
        found = lora_file.read(lora.locate(entry.name).path)
        return {"made_for": found.made_for or "unknown", "layers": len(found.groups)}
    if entry.kind == registry.EMBEDDING:
        shapes = embedding.vectors(embedding.locate(entry.name)).values()
        return {"vectors": next(iter(shapes))[0], "features": [width for _, width in shapes]}
    if entry.kind == registry.VAE:
        config = configs.read(source.path / "config.json")
        return {"class": config.get("_class_name"), "latent_channels": config.get("latent_channels")}
    if entry.kind == registry.IP_ADAPTER:
        made = ip_adapter_file.read(ip_adapter.locate(entry.name).path)
        return {"made_for": made.made_for, "image_features": made.image_features, "patches": made.patches}
    if entry.kind == registry.UPSCALER:
        return {"tensors": len(families.read_header(upscaler.locate(entry.name).path).tensors)}
    if source.is_controlnet:
        return {"kind": registry.CONTROLNET, **controlnet.takes(source)}
    facts = registry.read_facts(source)
    return {
        "suited": facts.defaults,
        **({"family": source.detected} if source.is_file else {}),
        "native_size": facts.native_size,
        "size_multiple": facts.size_multiple,
        "takes": "text" if facts.labels is None else "label",
        **({} if facts.labels is None else {"labels": len(facts.labels.names)}),
        **({"references": f"{facts.least_references} to {facts.most_references}"} if facts.most_references else {}),
        "in_channels": facts.in_channels,
        **({"classes": len(facts.classes)} if facts.classes else {}),
        "prediction_type": facts.scheduler_config.get("prediction_type", "epsilon"),
        "negative_prompt": not (facts.guidance_distilled or facts.unguided) and facts.labels is None,
        "controlnets": facts.takes_controlnets,
        **({"most_tokens": facts.prompts.most_tokens} if facts.prompts.most_tokens else {}),
        "components": _components(source),
        **({"vocabulary": facts.vocabulary.to_dict()} if facts.vocabulary else {}),
    }


def _components(source: Source) -> dict[str, dict[str, Any]]:
    """Return the class and the number of parameters of each part of a model; nothing if its weights are incomplete."""
    index = source.index_if_any()
    try:
        counts = {part: size.numbers for part, size in dry_run.find_parts(Weights(source)).sizes.items()}
    except ModelError:
        return {}
    classes = {part: index[part][1] if isinstance(index.get(part), list) else None for part in counts}
    return {part: {"class": classes[part], "parameters": count} for part, count in counts.items()}


def part_lines(components: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Describe the parts of a model, one line each."""
    return {
        part: ", ".join(filter(None, [each["class"], f"{_rounded(each['parameters'])} parameters"]))
        for part, each in components.items()
    }


def _rounded(count: int) -> str:
    scale, name = next(((scale, name) for scale, name in _SCALES if count >= scale), (1, ""))
    return f"{count / scale:.3g} {name}".strip()


_SCALES = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))


def pin_of(entry: ModelEntry) -> lock.Pin | None:
    """What was pulled for an entry, if it was."""
    return lock.read().get(entry.repo) if entry.repo else None
