"""Mutated files of jobs, as JSONL, tables and prompts: planned, with faults named (7), or refused (2, 4)."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import bounded
from tests.fuzz.test_metadata import mutate_text
from tests.fuzz.test_models import change

COUNT = 1000
JOB = {
    "prompt": "a {red|blue} fox, (snow:1.2)", "negative_prompt": "blurry", "seed": 7, "steps": 4, "width": 64,
    "height": 64, "guidance_scale": 3.5, "scheduler": "euler", "sigmas": "karras", "eta": 0.0, "clip_skip": 1,
    "num_images": 2, "id": "fox", "output": "a/{seed}.png", "device": "cpu", "dtype": "float32", "hires": "2",
}  # fmt: skip
OPTIONAL = ("image", "mask_image", "init_latents", "segmentation_map", "control", "lora", "embedding", "label", "model")
PATHS = ("x", "-", "/dev/null", "../x", "kit", ["x=y:1"], 3)
LINES = (
    *(b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"{" + b" " * 10**6, b"{a|" * 9),
    *(b"\xef\xbb\xbf", b"\0", b"\x1b[31m"),
)
"""Lines that are no job, among them deep and long ones."""
ALLOWED = (*bounded.UNREADABLE, 7)


def jsonl(chance: random.Random) -> bytes:
    lines = []
    for _ in range(chance.choice((1, 1, 3))):
        job = {key: JOB[key] for key in JOB if chance.random() < 0.4 or key in ("prompt", "width", "height", "steps")}
        job |= {key: chance.choice(PATHS) for key in OPTIONAL if chance.random() < 0.05}
        change(job, chance)
        text = json.dumps(job)
        lines.append((mutate_text(text, chance) if chance.random() < 0.3 else text).encode(errors="surrogateescape"))
    if chance.random() < 0.1:
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(LINES))
    return b"\n".join(lines)


def table(chance: random.Random) -> bytes:
    keys = [*chance.sample(sorted(JOB), 3), "prompt"]
    separator = chance.choice((",", ";", "\t"))
    rows = [separator.join(keys), *(separator.join(str(JOB[key]) for key in keys) for _ in range(2))]
    return mutate_text(chance.choice(("\n", "\r\n", "\r")).join(rows), chance).encode(errors="surrogateescape")


def prompts(chance: random.Random) -> bytes:
    text = "a {red|blue|{a|b}} fox\n# an owl\n2$$ {2$$a|b|c} [a:b:0.5] (cat:1.1)"
    return mutate_text(text, chance).encode(errors="surrogateescape")


@pytest.fixture(scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("warm")
    (home / "jobs.jsonl").write_text(json.dumps({**JOB, "steps": 4}))
    bounded.warm(home, ("batch", "jobs.jsonl", "-o", "out", "--dry-run"))


@pytest.mark.slow
@pytest.mark.usefixtures("_warm")
@bounded.blocks(COUNT)
def test_mutated_jobs(tmp_path: Path, seeds: range) -> None:
    def attempt(seed: int) -> Iterator[tuple[str, bounded.Run, list[str]]]:
        chance = random.Random(seed)
        make, suffix = chance.choice(((jsonl, ".jsonl"), (jsonl, ".jsonl"), (table, ".csv"), (prompts, ".txt")))
        file = tmp_path / f"jobs{chance.choice((suffix, ''))}"
        data = make(chance)
        file.write_bytes(data)
        before = bounded.listed(tmp_path)
        options = ["-o", "out", "--dry-run"]
        options += ["--json"] if chance.random() < 0.3 else []
        options += ["--strict"] if chance.random() < 0.1 else []
        options += ["--matrix", mutate_text("seed=1..3", chance).replace("\0", "")] if chance.random() < 0.1 else []
        given = chance.random() < 0.3
        words = ("batch", "-" if given else str(file), *options)
        done = bounded.run(*words, home=tmp_path, stdin=data if given else b"")
        yield f"{' '.join(words)} of {data[:300]!r}", done, bounded.faults(done, ALLOWED, tmp_path, before)
        file.unlink()

    bounded.check(seeds, attempt)
