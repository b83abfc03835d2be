"""A cluster of Ray itself, on this machine."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdcli.making.cluster.fleet import WorkerDied
from sdcli.making.cluster.on_ray import RayFleet
from sdcli.making.cluster.shipping import Piece
from sdcli.making.cluster.wanted import Wanted
from sdcli.models.source import Source
from tests.conftest import clean_environment

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of Ray with two processors, which has started for these tests."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    folder, port = Path(f"/tmp/sdcli-ray-{os.getpid()}"), free_port()  # sockets need a short path
    environment = clean_environment(tmp_path_factory.mktemp("home")) | {"PYTHONPATH": str(ROOT)}
    words = f"start --head --block --num-cpus=2 --port={port} --temp-dir={folder} --node-ip-address=127.0.0.1"
    more = "--include-dashboard=false --disable-usage-stats --object-store-memory=100000000"
    process = subprocess.Popen(
        [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words.split(), *more.split()],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            if process.poll() is not None or any(folder.glob("session_latest/sockets/raylet")):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_workers_answer_raise_and_end(address, capfd):
    """Without pictures, which takes a process that has imported torch."""
    before = signal.getsignal(signal.SIGTERM)
    fleet = RayFleet(address)
    assert signal.getsignal(signal.SIGTERM) == before
    places = fleet.places(1, "auto")
    assert [(place.cpus, place.gpu) for place in places] == [(1, False)] * 2
    worker = fleet.start(places[0])
    asked = Wanted("model", "x", Source(Path("/nowhere")), "0" * 64)
    with pytest.raises(ValueError, match="outside"):
        worker.call("receive", asked, Piece("../x", 0, b"", last=True)).result(60)
    ended = worker.call("receive", asked, Piece("x", 0, bytes(10_000_000), last=False))
    assert ended.result(60) is None
    worker.kill()
    assert isinstance(worker.call("receive", asked, Piece("x", 0, b"", last=True)).exception(60), WorkerDied)
    fleet.close()
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.mark.slow
def test_forty_jobs_with_workers_killed_three_times_are_forty_pictures(address, command, sd15, tmp_path):
    (tmp_path / "jobs").write_text(
        "".join(json.dumps({"id": str(seed), "prompt": "a fox", "seed": seed}) + "\n" for seed in range(40))
    )
    options = ["batch", "jobs", "-m", str(sd15), "--steps", "2", "--dtype", "float32", "--threads", "1"]
    here = command(*options, "-o", "here")
    assert here.status == 0, here.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "sdcli", *options, "-o", "out", "--cluster", address],
        cwd=tmp_path, env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines, kills = [], 0
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(json.loads(line))
        if len(lines) in (5, 15, 25):
            kills += kill_a_worker()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert kills == 3
    assert told.count("ended; its task is repeated") <= 3
    assert all(line.startswith("note: a worker on ") for line in told.splitlines())
    assert sorted(int(line["id"]) for line in lines) == list(range(40))
    made, expected = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).glob("*.png")}
        for name in ("out", "here")
    )
    assert len(made) == 40
    assert made == expected


def kill_a_worker() -> int:
    """Kill one of the cluster's workers that makes a picture now, and return how many were."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::Worker.make"):
                os.kill(int(entry.name), signal.SIGKILL)
                return 1
        except OSError:
            continue
    return 0
