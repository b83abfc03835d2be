"""`sdcli batch --cluster` as a shell sees it: real workers in threads of this process, in place of Ray's."""

import signal
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sdcli.errors import InvalidPicture
from sdcli.files import images
from sdcli.jobs import making
from sdcli.making.cluster import on_ray
from tests.cluster.fleets import Fleet, Threaded
from tests.test_batch import batch, lines_of, pictures, sdcli  # noqa: F401  fixtures


@pytest.fixture
def cluster(batch, monkeypatch, tmp_path):  # noqa: F811
    """`cluster(jobs, *options)` makes jobs with two workers, `cluster.fleet`, which end at the calls `cluster.dies`."""

    def run(jobs, *options):
        run.fleet = Fleet(2, lambda place: Threaded(run.dies, elsewhere=run.elsewhere))
        monkeypatch.setattr(on_ray, "RayFleet", lambda address: run.fleet)
        return batch(jobs, "--cluster", "auto", "--threads", "1", *options)

    run.dies, run.elsewhere = [], False
    return run


JOBS = [{"id": name, "prompt": f"a {name}", "seed": index} for index, name in enumerate(("fox", "owl", "cat", "dog"))]


def test_pictures_are_those_of_a_batch_on_this_machine(cluster, batch, tmp_path):  # noqa: F811
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    jobs = [*JOBS, {"id": "red", "prompt": "a fox", "seed": 9, "image": "red.png", "strength": 1.0}]
    here = batch(jobs, "--threads", "1", "-n", "1")
    expected = pictures(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "here")
    done = cluster(jobs)
    assert done.status == here.status == 0
    assert pictures(tmp_path / "out") == expected
    assert [line["id"] for line in sorted(lines_of(done), key=lambda line: line["line"])] == [j["id"] for j in jobs]
    same = ("sha256", "pixels_sha256", "memory", "warnings", "options", "path")
    told = [{line["id"]: [line[key] for key in same] for line in lines_of(each)} for each in (done, here)]
    assert told[0] == told[1]
    assert cluster.fleet.asked == [(1, "auto")]
    assert cluster.fleet.closed


def test_run_again_nothing_is_made_and_no_cluster_is_needed(cluster):
    cluster(JOBS)
    again = cluster(JOBS)
    assert [line["status"] for line in lines_of(again)] == ["cached"] * 4
    assert cluster.fleet.started == []


def test_killed_workers_cost_repetitions_and_not_jobs(cluster, tmp_path):
    cluster.dies = [1, 4, 5]
    done = cluster([{**job, "num_images": 2} for job in JOBS])
    assert done.status == 0, done.stderr
    assert len({line["id"] for line in lines_of(done)}) == len(lines_of(done)) == len(pictures(tmp_path / "out")) == 8
    made = [task.recipes[0].seed for worker in cluster.fleet.started for task in worker.made]
    assert len(made) == 8 + 3
    assert len(cluster.fleet.started) == 2 + 3


def test_a_job_that_fails_fails_alone(cluster, monkeypatch, tmp_path):
    to_image = images.to_image
    calls = iter(range(9))

    def fail(pixels):
        if next(calls) == 1:
            raise InvalidPicture("it is black", "try another seed")
        return to_image(pixels)

    monkeypatch.setattr(images, "to_image", fail)
    done = cluster(JOBS)
    assert done.status == 7
    failed = [line for line in lines_of(done) if line["status"] == "failed"]
    assert len(failed) == 1
    assert "it is black (try another seed)" in failed[0]["error"]
    assert len(pictures(tmp_path / "out")) == 3


def test_a_call_for_several_that_fails_is_repeated_for_each(cluster, monkeypatch, tmp_path):
    to_image = images.to_image
    calls = iter(range(99))

    def fail(pixels):
        if next(calls) == 0:
            raise InvalidPicture("it is black", "try another seed")
        return to_image(pixels)

    monkeypatch.setattr(images, "to_image", fail)
    done = cluster([{"prompt": "a fox", "seed": seed} for seed in range(3)], "--batch-size", "3")
    assert done.status == 0
    assert len(pictures(tmp_path / "out")) == 3
    sizes = [len(task.recipes) for worker in cluster.fleet.started for task in worker.made]
    assert sorted(sizes) == [1, 1, 1, 3]


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_once_current_pictures_are_finished_twice_they_are_not(cluster, monkeypatch, tmp_path, times):
    submit = making._submit
    numbers = iter(range(9))

    def interrupting(*given):
        future = submit(*given)
        if next(numbers) == 1:  # both workers have a task
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return future

    monkeypatch.setattr(making, "_submit", interrupting)
    done = cluster(JOBS)
    assert done.status == 130
    assert len(lines_of(done)) == len(pictures(tmp_path / "out")) == (2 if times == 1 else 0)
    assert "interrupted: finishing the current pictures; press Ctrl-C again to stop now" in done.stderr
    assert ("2 of 4 pictures were made" in done.stderr) == (times == 1)
    assert cluster.fleet.closed
    assert all(worker.killed for worker in cluster.fleet.started)


def test_without_workers_the_batch_ends(cluster, tmp_path):
    cluster.dies = list(range(1, 99))
    done = cluster(JOBS[:1])
    assert done.status == 7
    assert "5 workers ended while they made this picture: it was killed" in lines_of(done)[0]["error"]


def test_models_that_workers_lack_are_an_error_before_anything_starts_or_are_shipped(cluster, tmp_path, monkeypatch):
    cluster.elsewhere = True
    lacking = cluster(JOBS[:2])
    assert lacking.status == 3
    assert "error: machine0 lacks the model" in lacking.stderr
    assert "--ship-models" in lacking.stderr
    assert lacking.stdout == b""
    assert all(worker.killed and not worker.made for worker in cluster.fleet.started)
    shipped = cluster(JOBS[:2], "--ship-models")
    assert shipped.status == 0, shipped.stderr
    assert "note: copying the model" in shipped.stderr
    assert len(pictures(tmp_path / "out")) == 2


def test_ray_is_needed_for_a_cluster_alone(batch, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    done = batch(JOBS, "--cluster", "auto")
    assert done.status == 2
    assert "error: --cluster needs the package ray\nhint: pip install 'sdcli[ray]'\n" in done.stderr


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--ship-models"], 2, "error: --ship-models is given without --cluster"),
        (["--cluster", ""], 2, "error: --cluster is empty"),
        (["--cluster", "ray://there:10001"], 2, "error: --cluster ray://there:10001 is not HOST:PORT"),
        (["--cluster", "there"], 2, "error: --cluster there is not HOST:PORT"),
        (["--cluster", "127.0.0.1:1"], 10, "error: no Ray cluster answers at 127.0.0.1:1: Connection refused"),
    ],
)
def test_clusters_that_are_none(batch, monkeypatch, options, status, words):  # noqa: F811
    monkeypatch.setattr(on_ray, "_import_ray", lambda: NoCluster)
    done = batch(JOBS, *options)
    assert done.status == status
    assert words in done.stderr
    assert done.stdout == b""


class NoCluster:
    """Ray where no cluster runs."""

    is_initialized = staticmethod(lambda: False)

    @staticmethod
    def init(**given):
        raise ConnectionError("Could not find any running Ray instance.")


def test_a_machine_without_a_cluster(batch, monkeypatch):  # noqa: F811
    monkeypatch.setattr(on_ray, "_import_ray", lambda: NoCluster)
    done = batch(JOBS, "--cluster", "auto")
    assert done.status == 10
    assert "error: there is no Ray cluster on this machine\nhint: start one with: ray start --head" in done.stderr


def test_a_cluster_that_has_ended_is_told_at_once(batch, monkeypatch):  # noqa: F811
    utils = SimpleNamespace(read_ray_address=lambda: "127.0.0.1:1")
    ended = SimpleNamespace(is_initialized=lambda: False, _private=SimpleNamespace(utils=utils))
    monkeypatch.setattr(on_ray, "_import_ray", lambda: ended)
    done = batch(JOBS, "--cluster", "auto")
    assert done.status == 10
    assert "error: no Ray cluster answers at 127.0.0.1:1: Connection refused" in done.stderr


def node(**resources) -> dict:
    return {"NodeID": "1", "NodeManagerHostname": "machine", "Resources": resources}


@pytest.mark.parametrize(
    ("resources", "threads", "device", "expected"),
    [
        ({"CPU": 8.0}, 0, "auto", [(8, False)]),
        ({"CPU": 8.0}, 3, "auto", [(3, False)] * 2),
        ({"CPU": 2.0}, 8, "cpu", [(2, False)]),
        ({"CPU": 16.0, "GPU": 2.0}, 0, "auto", [(1, True)] * 2),
        ({"CPU": 16.0, "GPU": 2.0}, 4, "cuda", [(4, True)] * 2),
        ({"CPU": 1.0, "GPU": 2.0}, 1, "cuda", [(0, True)] * 2),
        ({"CPU": 16.0, "GPU": 2.0}, 8, "cpu", [(8, False)] * 2),
        ({"CPU": 16.0}, 8, "cuda", []),
        ({}, 0, "auto", []),
    ],
)
def test_a_machine_has_a_worker_for_each_gpu_or_for_so_many_processors(resources, threads, device, expected):
    found = list(on_ray._places_of(node(**resources), threads, device))
    assert [(place.cpus, place.gpu) for place in found] == expected
    assert len(set(found)) == len(found)
