"""The words that a model knows: `vocabulary.json` in its folder. Reads and writes JSON only.

A model trained on few words draws something arbitrary for any other. With this file in its folder, sdcli can name the
words of a prompt that the model has never seen:

    {
      "groups": {"animals": {"cat": ["kitten"], "polar bear": ["ice bear"]}, "colours": ["red", "light blue"]},
      "plurals": ["cats", "kittens", "polar bears", "ice bears"],
      "other_words": ["a", "in", "the"]
    }

`groups` is what `sdcli models show` lists: for each group, phrases with their synonyms, or a list of phrases that have
none. `plurals` are known too and may be suggested; `other_words` (articles, prepositions, the words of longer phrases)
are known and never suggested. A phrase of several words is known as a whole, and its words by themselves are not.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt
from sdcli.files.json_files import load_json

FILE = "vocabulary.json"
MAX_BYTES = 2**20
MAX_PHRASES = 20_000
MAX_LENGTH = 100
"""Characters of one phrase."""

_KEYS = ("groups", "plurals", "other_words")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[\u2600-\u27bf\U0001f300-\U0001faff]")
"""A word, or a symbol such as an emoji."""
_POSSESSIVE = ("'s", "’s")
_SHORT = 5
_CLOSE, _CLOSE_IF_SHORT = 0.7, 0.8
"""The least similarity of a misspelling, by difflib: most words of a few letters differ from others in one or two."""
_LONGER = 2
"""The most letters that a misspelling lacks or has too many."""
_BEGINNING, _ENDING = 5, 4
"""The fewest letters at the beginning ("astronomer", "astronaut") or at the end ("goldfish", "fish") that count."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file holds; every group is a mapping from phrases to their synonyms. Raises ValueError if it cannot be.

    Words are compared without regard to case; a hyphen is as good as a space.
    """

    groups: Mapping[str, Mapping[str, tuple[str, ...]]]
    plurals: tuple[str, ...] = ()
    other_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        phrases = (*self._listed, *self.plurals, *self.other_words)
        if not self._listed:
            raise ValueError("it lists no words")
        if len(phrases) > MAX_PHRASES:
            raise ValueError(f"it lists {len(phrases):,} phrases; at most {MAX_PHRASES:,} are allowed")
        for each in phrases:
            if not words_of(each) or len(each) > MAX_LENGTH:
                raise ValueError(f"{each[:MAX_LENGTH]!r} is not a phrase of 1 to {MAX_LENGTH} characters")

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of `text` that are not part of a known phrase, as they are written, each once and in order."""
        found: dict[str, str] = {}
        written, index = words_of(text), 0
        words = [_key(each) for each in written]
        while index < len(words):
            longest = range(min(self._longest, len(words) - index), 0, -1)
            known = next((size for size in longest if tuple(words[index : index + size]) in self._known), 0)
            if not known:
                found.setdefault(words[index], written[index])
            index += known or 1
        return tuple(found.values())

    def nearest(self, word: str) -> str | None:
        """Return the known phrase that `word` is most likely a misspelling or a relative of; None if none is close.

        It has the same first letter, unless `word` is a compound that ends with it.
        """
        return _nearest(_key(word), self._suggestions)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {"groups": self.groups, "plurals": self.plurals, "other_words": self.other_words}

    @cached_property
    def _listed(self) -> tuple[str, ...]:
        return tuple(
            each for group in self.groups.values() for phrase, others in group.items() for each in (phrase, *others)
        )

    @cached_property
    def _suggestions(self) -> tuple[str, ...]:
        never = frozenset(self.other_words)
        return tuple(each for each in dict.fromkeys((*self._listed, *self.plurals)) if each not in never)

    @cached_property
    def _known(self) -> frozenset[tuple[str, ...]]:
        phrases = (*self._listed, *self.plurals, *self.other_words)
        return frozenset(tuple(_key(word) for word in words_of(phrase)) for phrase in phrases)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._known))


def words_of(text: str) -> list[str]:
    """The words of a text, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def read(folder: Path) -> Vocabulary | None:
    """The vocabulary of the model in `folder`, None where it has no FILE or is a single file.

    Raises ModelCorrupt for a file that is not as described above.
    """
    file = folder / FILE
    try:
        return _vocabulary(load_json(file, MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _wrong(file, f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _wrong(file, str(error)) from error


def write(folder: Path, vocabulary: Vocabulary) -> None:
    """Write FILE into `folder`. Raises OSError."""
    text = json.dumps(vocabulary.to_dict(), ensure_ascii=False, indent=2)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def _vocabulary(content: Any) -> Vocabulary:
    if not isinstance(content, dict) or not isinstance(content.get("groups"), dict):
        raise ValueError('it is not a JSON object with an object of "groups"')
    extra = next((key for key in content if key not in _KEYS), None)
    if extra is not None:
        raise ValueError(f"unknown key {extra!r}; the keys are {', '.join(_KEYS)}")
    groups = {name: _group(name, each) for name, each in content["groups"].items()}
    others = {key: _phrases(f'"{key}"', content.get(key, [])) for key in _KEYS[1:]}
    return Vocabulary(groups, **others)


def _group(name: str, content: Any) -> Mapping[str, tuple[str, ...]]:
    if isinstance(content, dict):
        return {phrase: _phrases(f"the synonyms of {phrase!r}", others) for phrase, others in content.items()}
    return dict.fromkeys(_phrases(f"the group {name!r}", content), ())


def _phrases(what: str, content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
        raise ValueError(f"{what} must be a list of strings")
    return tuple(content)


def _key(word: str) -> str:
    key = word.casefold()
    return key[:-2] if key.endswith(_POSSESSIVE) else key


@lru_cache(maxsize=4096)
def _nearest(word: str, phrases: tuple[str, ...]) -> str | None:
    alike = _by_letters(phrases, 1).get(word[:1], ())
    as_long = [each for each in alike if abs(len(each) - len(word)) <= _LONGER]
    near = difflib.get_close_matches(word, as_long, n=1, cutoff=_CLOSE_IF_SHORT if len(word) <= _SHORT else _CLOSE)
    if near:
        return near[0]
    begins = word[: max(_BEGINNING, math.ceil(0.6 * len(word)))]
    near = [each for each in alike if each.casefold().startswith(begins)]
    if near and len(word) >= _BEGINNING:
        return min(near, key=len)
    ends = _by_letters(phrases, -_ENDING).get(word[-_ENDING:], ())
    return max((each for each in ends if word.endswith(each.casefold())), key=len, default=None)


@lru_cache(maxsize=8)
def _by_letters(phrases: tuple[str, ...], count: int) -> Mapping[str, Sequence[str]]:
    """Return the phrases by their first letters, or by their last ones for a negative `count`."""
    found: dict[str, list[str]] = {}
    for each in phrases:
        key = each.casefold()
        found.setdefault(key[:count] if count > 0 else key[count:], []).append(each)
    return found


def _wrong(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file}: {what}", f"correct the file, or remove it: without {FILE} no prompt is checked")
