"""The syntax of --part: `PART=PATH`. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable

from sdcli.errors import InvalidRecipe
from sdcli.terminal.spelling import nearest

PARTS = (
    *("class_embedder", "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3", "processor", "transformer", "unet", "vae"),
)
"""The parts of a model that can come from other places, by the names of diffusers' folders."""
FORM = "PART=PATH"


def parse(text: str) -> tuple[str, str]:
    """Return the part and the path in `text`. Raises InvalidRecipe."""
    part, _, path = text.partition("=")
    if part not in PARTS or not path or "\0" in path:
        near = nearest(part, PARTS)
        hint = f"did you mean --part {near}=…?" if near and path else f"the parts are {', '.join(PARTS)}"
        raise InvalidRecipe(f"--part {text!r} is not {FORM}", hint, "part")
    return part, path


def canonical(text: str) -> str:
    """Return `text`. Raises InvalidRecipe unless it is in the syntax."""
    return "=".join(parse(text))


def check_once(texts: Iterable[str]) -> None:
    """Raise InvalidRecipe if a part is given twice."""
    seen = set()
    for part, _ in map(parse, texts):
        if part in seen:
            raise InvalidRecipe(f"--part gives {part} twice", "give it once", "part")
        seen.add(part)
