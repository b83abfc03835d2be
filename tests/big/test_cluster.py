"""What many workers cost the process that gives them their tasks, and how much faster two are than one.

The 1,000 workers are simulated: each answers after some seconds with the same small picture, and takes no time of a
processor. The jobs, the maker, the ledger and the files are real. `SDCLI_SECONDS` is how long a picture takes.
"""

import heapq
import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.jobs import making, plan
from sdcli.jobs.job import Job
from sdcli.making.cluster import start as starting
from sdcli.making.cluster.fleet import Place
from sdcli.making.cluster.worker import VERSION, Greeting
from sdcli.making.maker import LocalMaker, Task
from tests.cluster.fleets import Fleet
from tests.cluster.test_ray import ROOT, address  # noqa: F401  a fixture
from tests.conftest import clean_environment

pytestmark = pytest.mark.slow

JOBS, WORKERS = 20_000, 1_000
SECONDS = float(os.environ.get("SDCLI_SECONDS", "10"))


class Clock:
    """Sets the results of futures when their time has come, in one thread."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Future[Any], Any]] = []
        self._changed = threading.Condition()
        self._count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def later(self, seconds: float, future: Future[Any], result: Any) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._waiting, (time.monotonic() + seconds, self._count, future, result))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or self._waiting[0][0] > time.monotonic():
                    rest = self._waiting[0][0] - time.monotonic() if self._waiting else None
                    self._changed.wait(rest)
                _, _, future, result = heapq.heappop(self._waiting)
            future.set_result(result)


class Sleeper:
    """A worker that sleeps; the time that a picture takes varies a little."""

    def __init__(self, place: Place, clock: Clock, picture: Any) -> None:
        self._seconds = SECONDS * (0.9 + 0.2 * (hash(place.node) % 97) / 97)
        self._clock, self._picture = clock, picture

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if method == "greet":
            future.set_result(Greeting(VERSION, "cpu"))
        else:
            recipe = arguments[0].recipes[0]
            self._clock.later(self._seconds, future, [replace(self._picture, recipe=recipe)])
        return future

    def kill(self) -> None:
        pass


def test_a_thousand_workers_take_less_than_half_a_core(tmp_path, monkeypatch, capfd):
    jobs = [Job(seed, {"prompt": "a fox", "seed": seed}) for seed in range(JOBS)]
    defaults = {"model": "kit", "width": 64, "height": 64, "steps": 1, "threads": 1, "dtype": "float32"}
    planned = plan.plan(jobs, defaults)
    first = planned[0]
    assert isinstance(first, plan.Planned)
    (picture,) = LocalMaker().make(Task(first.weights, [first.recipe]))
    clock = Clock()
    fleet = Fleet(WORKERS, lambda place: Sleeper(place, clock, picture))
    monkeypatch.setattr("sdcli.making.cluster.on_ray.RayFleet", lambda _: fleet)
    moments: list[tuple[float, float, float]] = []
    record = making.ledger.record

    def timed(*given: Any) -> None:
        before = time.thread_time()
        record(*given)
        moments.append((time.monotonic(), time.process_time(), time.thread_time() - before))

    monkeypatch.setattr(making.ledger, "record", timed)
    before = resident()
    making.deliver(making.Batch(planned, str(tmp_path / "out"), quiet=True, cluster=starting.Cluster("auto")))
    lines = capfd.readouterr().out.splitlines()
    quarter = len(moments) // 4
    (began, cpu_began, _), (ended, cpu_ended, _) = moments[0], moments[-1]
    costs = [1e6 * sum(cost for _, _, cost in part) / quarter for part in (moments[:quarter], moments[-quarter:])]
    share = (cpu_ended - cpu_began) / (ended - began)
    with capfd.disabled():
        print(
            f"\n{len(lines)} jobs in {ended - began:.0f} s: {100 * share:.0f} % of a core, "
            f"{1e3 * (cpu_ended - cpu_began) / len(moments):.2f} ms a job; the ledger's {costs[0]:.0f} µs a job at "
            f"first and {costs[1]:.0f} µs at last; {before:.0f} MB before it, at most {peak():.0f} MB"
        )
    assert len({json.loads(line)["id"] for line in lines}) == len(list((tmp_path / "out").glob("*.png"))) == JOBS
    assert share < 0.5
    assert costs[1] < 1.5 * costs[0]
    assert peak() < 500


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


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
