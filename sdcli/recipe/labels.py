"""The classes that a model draws, by name, synonym or number. Knows nothing of files."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sdcli.errors import InvalidRecipe

CLOSE = 5


@dataclass(frozen=True)
class Labels:
    """The classes of a model: `names[i]` are all names of class i, its usual one first. A class may have none."""

    names: tuple[tuple[str, ...], ...]

    def find(self, label: str) -> int:
        """The class that `label` is a name of, in any case and with any spacing, or whose number it is.

        All names of a class at once, between commas, are a name of it too. Raises InvalidRecipe where there is no such
        class, with the names that come close, or more than one.
        """
        text = label.strip()
        if text.isascii() and text.isdecimal():
            if int(text) >= len(self.names):
                hint = f"its classes are 0 … {len(self.names) - 1}"
                raise InvalidRecipe(f"this model has no class {text}", hint, "label")
            return int(text)
        found = self._index.get(_plain(text), [])
        if len(found) == 1:
            return found[0]
        if found:
            hint = f"say which by its number: {self._listed(found, ' or ')}"
            raise InvalidRecipe(f"{len(found)} classes are called {label!r}", hint, "label")
        raise InvalidRecipe(f"this model has no class {label!r}", self._near(_plain(text)), "label")

    def name(self, index: int) -> str:
        """The first of a class's names that is its own alone, or else its number."""
        return next((name for name in self.names[index] if len(self._index[_plain(name)]) == 1), str(index))

    @cached_property
    def _index(self) -> Mapping[str, list[int]]:
        """The classes by each of their names, as `_plain` writes it."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for index, names in enumerate(self.names):
            for name in dict.fromkeys(map(_plain, [*names, ", ".join(names)] if names else [])):
                found[name].append(index)
        return dict(found)

    def _near(self, text: str) -> str:
        words = set(text.split())
        singles = {_plain(name): index for index, names in enumerate(self.names) for name in reversed(names)}
        holding = [index for name, index in singles.items() if words and words <= set(name.split())]
        similar = [singles[name] for name in difflib.get_close_matches(text, singles, n=CLOSE)]
        near = list(dict.fromkeys([*sorted(holding), *similar]))[:CLOSE]
        if near:
            return f"close to it are {self._listed(near, ', ')}"
        return f"its classes are 0 … {len(self.names) - 1}; sdcli models labels MODEL lists them"

    def _listed(self, indices: Iterable[int], between: str) -> str:
        return between.join(f"{index} ({self.names[index][0]})" for index in indices)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
