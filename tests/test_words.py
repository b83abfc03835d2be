"""Words that sdcli does not use, checked in help, documentation, messages, docstrings, comments and names.

Write like the docs of git, pip, httpx or diffusers: see "Language" in docs/contributing.md.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RETIRED = {
    r"anew": "again, re-download",
    r"(leav\w+|left) (\w+ ){0,3}away": "omit, remove",
    r"mend(s|ed|ing)?": "fix",
    r"heed\w*": "use",
    r"lest": "so that ... not",
    r"remarks?": "warning",
    r"(carry|carries|carried|carrying) (it |them )?out|carry_out\w*": "run",
    r"(hand|hands|handed|handing) over|hand_over\w*|handover": "save, pass",
    r"what (is|was|are|were) said|(is|was|are|were) said|unsaid": "recorded, given, set",
    r"says? (nothing|so|something|otherwise)": "sets, gives, contains",
    r"that it be|needs but|(is|was) but": "if needed, only",
    r"(?<!there )(?<!0 )(is|was|are|were) none(?! of)": "there is no, without",
    r"of no use": "has no effect, unused",
    r"without a word|no word|a word on|deserves? a word": "warning, message",
    r"(is|was) at home": "native size",
    r"whence|thence|thereof|wherein|whereof|henceforth|hitherto|whosoever|thereupon|whoever": "if, the caller",
    r"for ever|broke off|come near|comes? close to|goes on|went on": "always, interrupted, similar, continues",
    r"in hand": "current",
    r"(be|is|was|are|were) (put|taken) away|puts? away|turned away|turns? away": "unload, refuse",
    r"nobody|somebody": "no one, another process",
    r"stands? (for|in|below|beside)|stood": "is, means, replaces",
    r"cut short": "truncated",
    r"once for all|as it were|so to speak": "plain words",
    r"unasked|unhonou?red": "plain words",
    r"(is|are) there already|exists already": "already exists",
    r"beside": "next to, with",
    r"tells? of|speaks? of": "describes, has",
}
NAMES = r"anew|carry_out|hand_over|remarks?|said|mend|heed|leave_away"
"""Retired in names of functions, classes, arguments and variables."""
PATTERNS = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): instead for pattern, instead in RETIRED.items()}
RETIRED_NAMES = re.compile(rf"(?:^|_)(?:{NAMES})(?:$|_)")
NOT_YET = ("docs/pictures.py",)
"""What is still to be reworded."""
DATA = ("sdcli/training/captions.py",)
"""Phrases as users type them."""

DOCUMENTS = ("README.md", "CHANGELOG.md", "models.toml", "docs/*.md", "sdcli/kit/MADE.md", "sdcli/**/*.py")
FILES = [
    path
    for pattern in DOCUMENTS
    for path in sorted(ROOT.glob(pattern))
    if not str(path.relative_to(ROOT)).startswith((*NOT_YET, *DATA))
]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of prose with their numbers: all of a document; strings, docstrings and comments of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str | bytes):
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            for offset, line in enumerate(text.split("\n")):
                yield node.lineno + offset, line


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Names that a module defines, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_retired_words_are_not_used(path: Path):
    found = [
        f"{path.name}:{number}: {match[0]!r}, use {instead}: {line.strip()[:100]}"
        for number, line in prose(path)
        for pattern, instead in PATTERNS.items()
        if (match := pattern.search(line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix == ".py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_retired_names_are_not_used(path: Path):
    found = [f"{path.name}:{number}: {name}" for number, name in names(path) if RETIRED_NAMES.search(name)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_retired"),
    [
        ("get the file anew", True),
        ("leave it away", True),
        ("there is none", False),
        ("the mender left", False),
        ("a recommendation", False),
        ("mend the file", True),
        ("already exists", False),
    ],
)
def test_the_list_finds_words_and_not_parts_of_words(text: str, is_retired: bool):
    assert any(pattern.search(text) for pattern in PATTERNS) == is_retired
