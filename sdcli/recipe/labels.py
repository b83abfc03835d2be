"""The classes of a model by name, synonym or number. Knows nothing of files."""

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
    """The classes of a model: `names[i]` are the names of class i, the usual one first. A class can have no name."""

    names: tuple[tuple[str, ...], ...]

    def find(self, label: str) -> int:
        """Return the class with the name or number `label`; case and spacing are ignored.

        All names of a class, separated by commas, are a name too. Raises InvalidRecipe for an unknown class, with
        similar names in the hint, or an ambiguous one.
        """
        text = label.strip()
        if text.isascii() and text.isdecimal():
            if int(text) >= len(self.names):
                hint = f"its classes are 0 to {len(self.names) - 1}"
                raise InvalidRecipe(f"this model has no class {text}", hint, "label")
            return int(text)
        found = self._index.get(_plain(text), [])
        if len(found) == 1:
            return found[0]
        if found:
            hint = f"give its number: {self._listed(found, ' or ')}"
            raise InvalidRecipe(f"{len(found)} classes have the name {label!r}", hint, "label")
        raise InvalidRecipe(f"this model has no class {label!r}", self._near(_plain(text)), "label")

    def name(self, index: int) -> str:
        """Return the first name that only this class has, or its number."""
        return next((name for name in self.names[index] if len(self._index[_plain(name)]) == 1), str(index))

    @cached_property
    def _index(self) -> Mapping[str, list[int]]:
        """The classes by each of their names in the form of `_plain`."""
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
            return f"similar names are {self._listed(near, ', ')}"
        return f"its classes are 0 to {len(self.names) - 1}; sdcli models labels MODEL lists them"

    def _listed(self, indices: Iterable[int], between: str) -> str:
        return between.join(f"{index} ({self.names[index][0]})" for index in indices)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
