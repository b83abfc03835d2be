"""What many workers cost the process that gives them their tasks, and how much faster two are than one.

Run it by itself on a machine that does nothing else: `pytest -m slow tests/big/test_cluster.py -s`.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.cluster.test_ray import ROOT, address  # noqa: F401  a fixture
from tests.conftest import clean_environment

pytestmark = pytest.mark.slow


def test_a_thousand_workers_take_less_than_half_a_core(command, tmp_path):
    """See tests/big/many_workers.py for what is simulated."""
    made = command("generate", "a fox", "-W", "64", "-H", "64", "--steps", "1", "-o", "fox.png")
    assert made.status == 0, made.stderr
    words = [sys.executable, "-m", "tests.big.many_workers", str(tmp_path / "fox.png"), str(tmp_path / "out")]
    environment = clean_environment(tmp_path) | {
        name: os.environ[name] for name in os.environ if name == "SDCLI_SECONDS"
    }
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured = json.loads(done.stderr.splitlines()[-1])
    print(f"\n{measured}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == len(list((tmp_path / "out").glob("*.png"))) == 20_000
    assert not measured["torch"]
    assert measured["share_of_a_core"] < 0.5
    assert measured["ledger_us_at_last"] < 1.5 * measured["ledger_us_at_first"]
    assert measured["most_mb"] < 500


def test_two_workers_of_one_core_are_nearly_twice_as_fast_as_one_process(address, tmp_path):  # noqa: F811
    """In turns, three times; times include starting. Meaningful on a machine with two idle cores."""
    (tmp_path / "jobs").write_text("".join(f'{{"prompt": "a fox", "seed": {seed}}}\n' for seed in range(40)))
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for turn in range(3):
        for name, options in (("one", []), ("two", ["--cluster", address])):
            words = ["batch", "jobs", "-o", f"{name}{turn}", "--threads", "1", *options]
            begun = time.monotonic()
            subprocess.run([sys.executable, "-m", "sdcli", *words], cwd=tmp_path, env=environment, check=True)
            seconds[name].append(time.monotonic() - begun)
    factors = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
    print(f"\n{seconds}: {', '.join(f'{factor:.2f}' for factor in factors)} times; load {os.getloadavg()[0]:.1f}")
    assert max(factors) >= 1.8
