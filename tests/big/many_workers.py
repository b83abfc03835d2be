"""A batch on 1,000 simulated workers: what it costs the process that gives them their tasks.

Each worker answers after some seconds with the same small picture, and takes no time of a processor. The jobs, the
maker, the ledger and the files are real. Run as `python -m tests.big.many_workers PNG OUT`, where PNG is the picture;
it prints what was measured on stderr, as JSON. `SDCLI_SECONDS` is how long a picture takes.
"""

import heapq
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli.jobs import making, plan
from sdcli.jobs.job import Job
from sdcli.making.cluster import on_ray
from sdcli.making.cluster.fleet import Place
from sdcli.making.cluster.start import Cluster
from sdcli.making.cluster.worker import VERSION, Greeting
from sdcli.making.picture import Picture
from tests.cluster.fleets import Fleet

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


def main(png: Path, out: Path) -> None:
    jobs = [Job(seed, {"prompt": "a fox", "seed": seed}) for seed in range(JOBS)]
    defaults = {"model": "kit", "width": 64, "height": 64, "steps": 1, "threads": 1, "dtype": "float32"}
    planned = plan.plan(jobs, defaults)
    first = planned[0]
    assert isinstance(first, plan.Planned)
    clock, picture = Clock(), Picture(png.read_bytes(), "0" * 64, first.recipe, SECONDS)
    fleet = Fleet(WORKERS, lambda place: Sleeper(place, clock, picture))
    moments: list[tuple[float, float, float]] = []
    record = making.ledger.record

    def timed(*given: Any) -> None:
        before = time.thread_time()
        record(*given)
        moments.append((time.monotonic(), time.process_time(), time.thread_time() - before))

    making.ledger.record = timed
    on_ray.RayFleet = lambda address: fleet  # type: ignore[assignment, misc]
    making.deliver(making.Batch(planned, str(out), quiet=True, cluster=Cluster("auto")))
    quarter = len(moments) // 4
    (began, cpu_began, _), (ended, cpu_ended, _) = moments[0], moments[-1]
    measured = {
        "jobs": len(moments),
        "seconds": round(ended - began, 1),
        "share_of_a_core": round((cpu_ended - cpu_began) / (ended - began), 3),
        "ms_per_job": round(1e3 * (cpu_ended - cpu_began) / len(moments), 3),
        "ledger_us_at_first": round(1e6 * sum(each[2] for each in moments[:quarter]) / quarter),
        "ledger_us_at_last": round(1e6 * sum(each[2] for each in moments[-quarter:]) / quarter),
        "most_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "torch": "torch" in sys.modules,
    }
    print(json.dumps(measured), file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
