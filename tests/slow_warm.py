"""How much of a cold run's time a warm process saves: `python -m tests.slow_warm [PICTURES] [MODEL]`.

Prints, for both, the wall time of the command less that of making the picture (the "seconds" of its line), and the
ratio of the two, which must be at most 1/8.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import clean_environment
from tests.serving.conftest import ROOT, serving


def overhead(pictures: int, model: str, folder: Path, environment: dict[str, str]) -> float:
    """Seconds of a run, on average, that did not go into its picture."""
    total = 0.0
    for seed in range(pictures):
        command = [sys.executable, "-m", "sdcli", "generate", "a fox", "-m", model, "-s", str(seed), "--steps", "4"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--json"], cwd=folder, env=environment, capture_output=True, check=True, timeout=600
        )
        total += time.monotonic() - started - json.loads(done.stdout)["seconds"]
    return total / pictures


def main(pictures: int = 20, model: str = "kit") -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = clean_environment(folder) | {"PYTHONPATH": str(ROOT)}
        with serving(folder, "-m", model) as warm:
            warm_seconds = overhead(pictures, model, folder, environment | {"SDCLI_SOCKET": warm.socket})
        cold_seconds = overhead(pictures, model, folder, environment)
    print(f"{pictures} pictures each, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(
        f"cold {cold_seconds:.2f} s, warm {warm_seconds:.2f} s beside the picture: 1/{cold_seconds / warm_seconds:.1f}"
    )


if __name__ == "__main__":
    main(*(int(each) if each.isdigit() else each for each in sys.argv[1:]))
