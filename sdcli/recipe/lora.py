"""The syntax of --lora, `NAME[:scale[,te=scale]]`, and of `<lora:name:scale>` in prompts. Knows nothing of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe
from sdcli.recipe.numbers import plain

MAX_SCALE = 10.0
FORM = "NAME[:scale[,te=scale]]"

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_WORDS = re.compile(rf"(?P<name>.+?)(?::(?P<scale>{_NUMBER})(?:,te=(?P<text>{_NUMBER}))?)?", re.DOTALL | re.ASCII)
_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")


@dataclass(frozen=True)
class Lora:
    """A LoRA by its name or file, and the scales of its changes of the network and of the text encoders."""

    name: str
    scale: float = 1.0
    text_scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the syntax of --lora. A number at the end is not part of the name. Raises InvalidRecipe."""
        match = _WORDS.fullmatch(text)
        if match is None:
            raise InvalidRecipe(f"lora is {text!r}", f"write it as {FORM}", "lora")
        scale = 1.0 if match["scale"] is None else float(match["scale"])
        return cls(match["name"], scale, scale if match["text"] is None else float(match["text"]))._checked(text)

    @classmethod
    def of_tag(cls, content: str) -> Self:
        """Parse what is between `<lora:` and `>`: `name:te:unet`, or `name:te=…:unet=…`, as Automatic1111 does.

        One scale is that of both. Raises InvalidRecipe.
        """
        name, *others = content.split(":")
        tag = f"<lora:{content}>"
        named = dict(each.split("=", 1) for each in others if "=" in each)
        placed = [each for each in others if "=" not in each]
        unknown = sorted(named.keys() - {"te", "unet"})
        if not name.strip() or len(placed) > 2 or unknown:
            raise InvalidRecipe(f"{tag} in the prompt is invalid", "write it as <lora:name:0.8>", "prompt")
        try:
            text = float(named.get("te", placed[0] if placed else 1))
            scale = float(named.get("unet", placed[1] if len(placed) > 1 else text))
        except ValueError:
            raise InvalidRecipe(
                f"{tag} in the prompt has no valid scale", "write it as <lora:name:0.8>", "prompt"
            ) from None
        return cls(name.strip(), scale, text)._checked(tag)

    def _checked(self, text: str) -> Self:
        for each in (self.scale, self.text_scale):
            if not -MAX_SCALE <= each <= MAX_SCALE:
                hint = f"it must be between -{MAX_SCALE:g} and {MAX_SCALE:g}; most LoRAs are made for 1"
                raise InvalidRecipe(f"lora {text}: the scale is {each:g}", hint, "lora")
        return self

    @property
    def tag(self) -> str:
        """The tag in a prompt of Automatic1111, with the name of the file."""
        scales = [self.text_scale] if self.scale == self.text_scale else [self.text_scale, self.scale]
        return f"<lora:{':'.join([file_stem(self.name), *map(plain, scales)])}>"

    def __str__(self) -> str:
        """The canonical text, which `parse` reads."""
        if self.scale != self.text_scale:
            return f"{self.name}:{plain(self.scale)},te={plain(self.text_scale)}"
        bare = _WORDS.fullmatch(self.name)
        if self.scale == 1 and bare is not None and bare["scale"] is None:
            return self.name
        return f"{self.name}:{plain(self.scale)}"


def file_stem(name: str) -> str:
    """Return the name of a LoRA in Automatic1111: that of its file."""
    return name.rpartition("/")[2].removesuffix(".safetensors")


def canonical(text: str) -> str:
    """Return the canonical form of `text`. Raises InvalidRecipe."""
    return str(Lora.parse(text))


def extract(prompt: str) -> tuple[str, list[Lora]]:
    """Return `prompt` without its `<lora:…>` tags, and the LoRAs that they name. Raises InvalidRecipe."""
    found = [Lora.of_tag(each) for each in _TAG.findall(prompt)]
    return (_TAG.sub("", prompt).strip(), found) if found else (prompt, [])
