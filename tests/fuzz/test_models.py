"""Mutated model folders: whatever is wrong with a file, the exit status is 3 (or 2 for a recipe that does not fit)."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.fuzz import bounded

COUNT = 1000
FAMILIES = ("sd15", "sdxl", "lcm", "dit", "ldm")
WORDS = "a fox", "-W", "64", "-H", "64", "--steps", "2", "--seed", "1", "--quiet"
ALLOWED = (*bounded.UNREADABLE, 6)
"""A picture of a single colour (6) is what finite weights can give."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**5, 10**9, 10**400, 0.5, -0.5, 1e-9, 1e308, float("nan"), float("inf")),
    *("", "x", "a" * 5000, "../../x", "/etc/passwd", "\x1b[31m", "\0", "epsilon", "trailing", "zero"),
    *([], [1], [1, 2, 3], [None, None], ["a", "b"], [[1], [2]], [0] * 10_000, {}, {"a": 1}, {"content": 3}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON, of long lists and mappings only some."""
    found = [path] if path else []
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, each in items[:30]:
        found += places(each, (*path, key))
    return found


def change_json(file: Path, chance: random.Random) -> None:
    content = json.loads(file.read_text())
    change(content, chance)
    file.write_text(json.dumps(content))


def change(content: Any, chance: random.Random) -> None:
    """Change, remove or swap one or two values anywhere in `content`."""
    for _ in range(chance.choice((1, 1, 2))):
        listed = places(content)
        if not listed:
            break
        *parents, last = chance.choice(listed)
        inner = content
        for each in parents:
            inner = inner[each]
        if chance.random() < 0.15:
            del inner[last]
        elif chance.random() < 0.15 and isinstance(inner, dict):
            inner[chance.choice(list(inner))] = inner[last]
        else:
            inner[last] = chance.choice(VALUES)


def change_text(file: Path, chance: random.Random) -> None:
    lines = file.read_text().split("\n")
    for _ in range(chance.choice((1, 3))):
        lines[chance.randrange(len(lines))] = chance.choice(("", "a", "a b c", " ", "x y", "\x1b[2J", "a  b", "é é"))
    file.write_text("\n".join(lines))


def change_bytes(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 5, 50))):
        data[chance.randrange(min(len(data), chance.choice((16, 4000, 10**9))))] = chance.randrange(256)
    file.write_bytes(data)


def cut(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.choice((0, 1, 7, 8, 9, 100, file.stat().st_size // 2))])


def replace(file: Path, chance: random.Random) -> None:
    contents = (b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"<html>", b"\0" * 10**6)
    file.write_bytes(chance.choice(contents))


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


def become_directory(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


def become_link(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.symlink_to(chance.choice((file.name, "/nowhere", "/dev/zero", "/dev/null")))


OTHERS: tuple[Callable[[Path, random.Random], None], ...] = (cut, replace, remove, become_directory, become_link)


def mutate(folder: Path, chance: random.Random) -> str:
    """Change one file of the model; returns what was done."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    weights = [each for each in files if each.suffix == ".safetensors"]
    file = chance.choice(weights if chance.random() < 0.15 else [each for each in files if each not in weights])
    own = {".json": change_json, ".txt": change_text, ".safetensors": change_bytes}[file.suffix]
    done = own if chance.random() < 0.8 else chance.choice(OTHERS)
    try:
        done(file, chance)
    except (ValueError, KeyError, IndexError, TypeError, UnicodeError):  # JSON that is no mapping, a binary text
        done = replace
        done(file, chance)
    return f"{done.__name__} {file.relative_to(folder)}"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    made = {family: tiny.make_folder(family, root / family) for family in ("sd15", "sdxl", "lcm")}
    made |= {"dit": tiny.make_dit(root / "dit"), "ldm": tiny.make_ldm(root / "ldm")}
    for family, folder in made.items():
        words = ("generate", *words_for(family), "-m", folder, "-o", f"{family}.png")
        bounded.warm(root, words, (*words, "--force", "--dry-run"), ("models", "show", folder))
    return made


def words_for(family: str) -> tuple[str, ...]:
    return ("--label", "7", *WORDS[1:]) if family in ("dit", "ldm") else WORDS


@pytest.mark.slow
@bounded.blocks(COUNT)
def test_a_mutated_folder_is_refused_or_sound(originals: dict[str, Path], tmp_path: Path, seeds: range) -> None:
    folder, output = tmp_path / "model", tmp_path / "x.png"

    def attempt(seed: int) -> Iterator[tuple[str, bounded.Run, list[str]]]:
        chance = random.Random(seed)
        family = chance.choice(FAMILIES)
        shutil.copytree(originals[family], folder)
        what = mutate(folder, chance)
        before = bounded.listed(tmp_path)
        make = ("generate", *words_for(family), "-m", str(folder))
        for words in (("models", "show", str(folder)), (*make, "--dry-run"), (*make, "-o", "x.png")):
            done = bounded.run(*words, home=tmp_path)
            found = bounded.faults(done, ALLOWED, tmp_path, before | {"x.png"})
            if output.exists() != (done.status == 0 and "-o" in words):
                found.append("the picture does not fit the exit status")
            yield f"{family}, {what}: {words[0]} {words[-1]}", done, found
        output.unlink(missing_ok=True)
        shutil.rmtree(folder)

    bounded.check(seeds, attempt)
