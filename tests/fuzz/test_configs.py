"""Mutated config files and files of models: used where they are sound, refused (2), or of a model that is not (3)."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from tests.fuzz import bounded
from tests.fuzz.test_metadata import mutate_text
from tests.fuzz.test_models import VALUES, places

COUNT = 300
CONFIG: dict[str, Any] = {
    "defaults": {"model": "kit", "output": "out/", "lora_dir": "loras", "embedding_dir": "words", "steps": 4,
                 "scheduler": "euler", "sigmas": "karras", "guidance_scale": 3.5, "width": 64, "height": 64},
    "models": {
        "mine": {"folder": "model", "description": "x", "license": "MIT", "kind": "model",
                 "parts": {"vae": "vae"}, "defaults": {"steps": 3, "negative_prompt": "blurry", "eta": 0.0}},
        "kit": {"defaults": {"steps": 2}},
        "far": {"repo": "owner/name", "variant": "fp16", "trigger": "word", "file": "x.safetensors", "kind": "lora"},
    },
}  # fmt: skip
DEEP = (
    b"x = " + b"[" * 10**5, b"x = " + b'{a=' * 10**5, b"[" + b"a." * 10**5 + b"a]", b"a." * 10**5 + b"a = 1",
    b"[x]\n" * 10**5, b"\xff\xfe", b"\0" * 10**6, b"x = " + b"9" * 10**6, b'x = "' + b"a" * 2 * 10**6,
    b"\n" * 10**6 + b"x = 1", b"x = [\n" + b"1,\n" * 2 * 10**5 + b"]", b'x = """' + b"\n" * 10**6, b"[[a]]\n" * 10**5,
)  # fmt: skip
"""Deep and long ones."""


def to_toml(value: Any, chance: random.Random) -> str:
    """TOML of values as they are, with what TOML has no form for left out."""

    def form(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: form(inner) for key, inner in each.items() if inner is not None}
        if isinstance(each, list):
            return [form(inner) for inner in each if inner is not None]
        return each

    return tomlkit.dumps(form(value))


def mutate(content: dict[str, Any], chance: random.Random) -> bytes:
    if chance.random() < 0.15:
        return chance.choice(DEEP)
    copied = json.loads(json.dumps(content))
    for _ in range(chance.choice((0, 1, 1, 2))):
        *parents, last = chance.choice(places(copied) or [("x",)])
        inner = copied
        for each in parents:
            inner = inner[each]
        if chance.random() < 0.3:
            last = chance.choice(("x", "\x1b[31m", "[bold red]", "prompt", "steps", "a.b", "\u202e", "~"))
        inner[last] = chance.choice(VALUES)
    text = to_toml(copied, chance)
    return (mutate_text(text, chance) if chance.random() < 0.3 else text).encode(errors="surrogateescape")


@pytest.fixture(scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("warm")
    plain = ("a fox", "--dry-run", "--seed", "1")
    bounded.warm(home, ("config", "show"), ("models", "list"), ("generate", *plain), ("models", "show", "kit"))


@pytest.mark.slow
@pytest.mark.usefixtures("_warm")
@bounded.blocks(COUNT)
def test_mutated_configs(tmp_path: Path, seeds: range) -> None:
    folder = tmp_path / ".config" / "sdcli"
    folder.mkdir(parents=True)

    def attempt(seed: int) -> Iterator[tuple[str, bounded.Run, list[str]]]:
        chance = random.Random(seed)
        name = chance.choice(("config.toml", "models.toml"))
        data = mutate(CONFIG if name == "config.toml" else CONFIG["models"], chance)
        (folder / name).write_bytes(data)
        before = bounded.listed(tmp_path)
        for words in (
            ("config", "show"),
            ("config", "show", "-m", "mine", "--json"),
            ("models", "list"),
            ("models", "show", "mine"),
            ("generate", "a fox", "--dry-run", "--seed", "1"),
            ("generate", "a fox", "-m", "mine", "--dry-run"),
            ("models", "rm", "nosuch"),
        ):
            done = bounded.run(*words, home=tmp_path)
            found = bounded.faults(done, bounded.CORRUPT, tmp_path, before)
            yield f"{' '.join(words)} with {name} {data[:300]!r}", done, found
        (folder / name).unlink()

    bounded.check(seeds, attempt)
