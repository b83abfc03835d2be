"""Creates the vocabulary.json of a model that was trained on the synthetic world, from the words of its captions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sdcli.models.vocabulary import Vocabulary, words_of

Group = Mapping[str, Sequence[str]] | Sequence[str]
"""Meanings with the phrases for each, or only phrases."""

NOUNS = frozenset({"subjects"})
"""Groups of nouns: they have plurals, and the single words of "hot dog" are not listed."""
LABELLED = frozenset({"relations", "other"})
"""Groups whose keys are not words of captions: only their phrases are listed."""
FUNCTION_WORDS = (
    "a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their", "one",
    "some", "is", "are", "be", "being", "has", "have", "there", "it", "who", "which", "and", "of", "in", "on", "at",
    "by", "to", "with", "for", "from", "as", "i", "me", "show", "draw", "please",
)  # fmt: skip
"""Words that a prompt may contain without asking for anything. "without", "no" and "behind" do ask for something."""


def vocabulary_of(
    groups: Mapping[str, Group],
    plural: Callable[[str], str],
    *,
    nouns: Collection[str] = NOUNS,
    labelled: Collection[str] = LABELLED,
) -> Vocabulary:
    """Return the content of vocabulary.json for the words of captions; `plural` returns the plural of a noun.

    For the world of sdcli/training/world.py: `vocabulary_of(captions.vocabulary(), captions.plural)`.
    """
    listed = {name: _listed(group, name in labelled) for name, group in groups.items()}
    phrases = {name: [each for item in group.items() for each in (item[0], *item[1])] for name, group in listed.items()}
    plurals = [plural(each) for name in phrases if name in nouns for each in phrases[name]]
    words = [word for name in phrases if name not in nouns for each in phrases[name] for word in words_of(each)]
    taken = {each for group in phrases.values() for each in group}
    return Vocabulary(
        {name: {phrase: tuple(others) for phrase, others in group.items()} for name, group in listed.items()},
        plurals=_new(plurals, taken),
        other_words=(*FUNCTION_WORDS, *_new(words, {*taken, *plurals, *FUNCTION_WORDS})),
    )


def _listed(group: Group, labelled: bool) -> dict[str, list[str]]:
    """Return phrases and their synonyms, without surrounding punctuation and spaces."""
    if not isinstance(group, Mapping):
        return {phrase: [] for phrase in _clean(group)}
    if labelled:
        return {phrase: [] for ways in group.values() for phrase in _clean(ways)}
    return {name: [each for each in _clean(ways) if each != name] for name, ways in group.items()}


def _clean(phrases: Iterable[str]) -> list[str]:
    stripped = (" ".join(each.strip(" ,").split()) for each in phrases)
    return list(dict.fromkeys(each for each in stripped if each))


def _new(phrases: Iterable[str], taken: Collection[str]) -> tuple[str, ...]:
    return tuple(each for each in dict.fromkeys(phrases) if each not in taken)
