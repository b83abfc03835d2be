"""The classes of a class-conditional model, from its configs. Reads JSON; imports no torch."""

from __future__ import annotations

from sdcli.diffusion import architectures
from sdcli.errors import ModelCorrupt
from sdcli.models import configs, families
from sdcli.models.source import INDEX, Source
from sdcli.recipe.labels import Labels


def read(source: Source) -> Labels | None:
    """Return the classes of the model at `source`, or None if it takes a text.

    The names are `id2label` in model_index.json, `{"279": "Arctic fox, white fox"}`, as in diffusers' DiT pipeline. The
    number of classes is that of the class embedder without its last entry, which means "no class" (Rombach et al.
    2022), or that of a transformer with class embeddings (Peebles & Xie 2023). Raises ModelCorrupt.
    """
    count = _count(source)
    if count is None:
        return None
    index = source.base / INDEX
    listed = families.read_json(index).get("id2label") or {}
    names: list[tuple[str, ...]] = [()] * count
    try:
        for number, name in listed.items():
            if int(number) not in range(count):
                raise IndexError(f"it has class {number}")
            names[int(number)] = tuple(filter(None, map(str.strip, name.split(","))))
    except (AttributeError, ValueError, IndexError) as error:
        raise ModelCorrupt(f"{index}: its id2label does not fit {count} classes: {error}", _DOWNLOAD_AGAIN) from error
    return Labels(tuple(names))


def _count(source: Source) -> int | None:
    embedder, transformer = (source.folder(part) / "config.json" for part in ("class_embedder", "transformer"))
    try:
        if embedder.exists():
            return int(configs.read(embedder)["num_embeddings"]) - 1
        if transformer.exists():
            config = configs.read(transformer)
            takes_labels = architectures.find("transformer", config) == "dit"
            return int(config["num_embeds_ada_norm"]) if takes_labels else None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelCorrupt(
            f"the configs of {source.path} do not contain the number of classes", _DOWNLOAD_AGAIN
        ) from error
    return None


_DOWNLOAD_AGAIN = "download the model's folder again"
