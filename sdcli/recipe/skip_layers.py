"""The syntax of --skip-layer-guidance: `LAYER,LAYER[:SCALE[:START-STOP]]`. Knows nothing of networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sdcli.errors import InvalidRecipe

KEY = "skip_layer_guidance"
FORM = "LAYER,LAYER[:SCALE[:START-STOP]]"
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_PATTERN = re.compile(rf"(\d{{1,4}}(?:,\d{{1,4}})*)(?::{_NUMBER}(?::{_NUMBER}-{_NUMBER})?)?", re.ASCII)
_MOST = 1024


@dataclass(frozen=True)
class SkipLayers:
    """Guidance away from the prediction without some layers, in the steps from `start` to `stop`, both fractions.

    The defaults are those of diffusers.
    """

    layers: tuple[int, ...]
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`. Raises InvalidRecipe."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise InvalidRecipe(f"{KEY} is {text!r}", f"write it as {FORM}, such as 7,8,9 or 7,8,9:2.8:0.01-0.2", KEY)
        layers = tuple(int(each) for each in match[1].split(","))
        numbers = zip(("scale", "start", "stop"), match.groups()[1:], strict=True)
        made = cls(layers, **{key: float(each) for key, each in numbers if each})
        if len(set(layers)) < len(layers) or max(layers) >= _MOST:
            raise InvalidRecipe(f"{KEY} has the layers {match[1]}", "give each layer once, counted from 0", KEY)
        if not 0 <= made.start < made.stop <= 1 or made.scale > 100:
            hint = "give a scale up to 100, and two fractions of the steps, the smaller first: 7,8,9:2.8:0.01-0.2"
            raise InvalidRecipe(f"{KEY} is {text}", hint, KEY)
        return made

    def covers(self, index: int, total: int) -> bool:
        """Whether it is used in the evaluation `index`, which counts from 0, of `total`."""
        return total * self.start < index < total * self.stop

    def check_fits(self, count: int) -> None:
        """Raise InvalidRecipe for a layer that a network with `count` layers does not have."""
        if max(self.layers) >= count:
            hint = f"the model's layers are 0 to {count - 1}"
            raise InvalidRecipe(f"{KEY} has the layer {max(self.layers)}", hint, KEY)
