"""Which worker gets which task, and what happens when workers end: with workers whose answers the test gives."""

import time
from collections.abc import Callable

import pytest

from sdcli.errors import InputError, ModelNotFound, OutOfMemory, SdcliError, ServerUnavailable, UsageError
from sdcli.making.cluster import maker as making
from sdcli.making.cluster.fleet import WorkerDied
from sdcli.making.cluster.start import start
from sdcli.making.cluster.worker import VERSION, Failure, Greeting
from sdcli.making.maker import Task, group_of
from sdcli.making.warm import to_wire
from sdcli.models import registry
from sdcli.models.weights import Weights
from tests import tiny
from tests.cluster.fleets import Fleet, Manual


def task(model: str = "kit", **options) -> Task:
    entry = registry.find("kit")
    flat = {"prompt": "a fox", "model": model, "steps": 4, "seed": 7, "threads": 1}
    return Task(Weights(registry.locate(entry)), [tiny.recipe_for(entry, flat).replace(**options)])


def group(model: str):
    return group_of(task(model).weights, task(model).recipes[0])


def until(condition: Callable[[], object]) -> None:
    """Wait for the maker's thread."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it does not happen")


@pytest.fixture
def cluster():
    """`cluster(2)` is a maker with two workers, and their fleet."""
    makers = []

    def begin(count: int, make=lambda place: Manual(), **options):
        fleet = Fleet(count, make)
        makers.append(start(fleet, [], threads=1, device="auto", **options))
        return makers[-1], fleet

    yield begin
    for each in makers:
        each.close()


def running(fleet: Fleet) -> list[list[str]]:
    """The models of the tasks that each worker has, in order."""
    return [[each.recipes[0].model for each, _ in worker.running] for worker in fleet.started]


def finish(worker: Manual, answer=()) -> None:
    worker.running[-1][1].set_result(list(answer))


def test_each_worker_has_one_task_and_the_next_one_waits(cluster):
    maker, fleet = cluster(2)
    futures = [maker.submit(task()) for _ in range(3)]
    until(lambda: running(fleet) == [["kit"], ["kit"]])
    assert maker.capacity == 2
    finish(fleet.started[1], ["pictures"])
    until(lambda: running(fleet) == [["kit"], ["kit", "kit"]])
    assert futures[1].result() == ["pictures"]
    assert not futures[2].done()


def test_workers_keep_their_model_while_it_has_tasks(cluster):
    maker, fleet = cluster(2)
    left = {group("a"): 4, group("b"): 2}
    submitted = 0
    while any(left.values()):
        chosen = maker.choose({key: count for key, count in left.items() if count})
        left[chosen] -= 1
        model = "a" if chosen == group("a") else "b"
        maker.submit(task(model))
        submitted += 1
        until(lambda: sum(map(len, running(fleet))) == submitted)  # noqa: B023
        if submitted >= 2:
            finish(fleet.started[submitted % 2])
            until(lambda: sum(slot.idle for slot in maker._slots) == 1)
    assert running(fleet) == [["a", "a", "a"], ["b", "b", "a"]]  # a model is left only when its tasks are used up


def test_a_waiting_task_goes_to_the_worker_of_its_model(cluster):
    maker, fleet = cluster(2)
    maker.submit(task("a"))
    maker.submit(task("b"))
    until(lambda: running(fleet) == [["a"], ["b"]])
    maker.submit(task("b"))
    maker.submit(task("a"))
    finish(fleet.started[0])
    until(lambda: running(fleet) == [["a", "a"], ["b"]])


def test_a_task_whose_worker_ends_is_done_by_another_one(cluster):
    maker, fleet = cluster(2)
    future = maker.submit(task())
    until(lambda: running(fleet) == [["kit"], []])
    fleet.started[0].running[0][1].set_exception(WorkerDied("killed"))
    until(lambda: running(fleet) == [["kit"], ["kit"], []])
    finish(fleet.started[1], ["pictures"])
    assert future.result(5) == ["pictures"]
    assert maker.capacity == 2


@pytest.mark.parametrize(("reason", "kind"), [("killed", SdcliError), ("Ray's Memory monitor", OutOfMemory)])
def test_a_task_that_ends_every_worker_fails(cluster, reason, kind):
    maker, fleet = cluster(1)
    future = maker.submit(task())
    for attempt in range(making.MOST_ATTEMPTS):
        until(lambda: len(fleet.started) > attempt and fleet.started[attempt].running)  # noqa: B023
        fleet.started[attempt].running[0][1].set_exception(WorkerDied(reason))
    error = future.exception(5)
    assert type(error) is kind
    assert reason in str(error)
    until(lambda: not maker._slots)  # before its warning, which is not of another test


def test_a_place_is_given_up_where_workers_only_end_and_without_places_nothing_goes(cluster, capsys):
    maker, fleet = cluster(1)
    futures = [maker.submit(task(seed=seed)) for seed in (1, 2)]
    for attempt in range(making.MOST_DEATHS):
        until(lambda: len(fleet.started) > attempt and fleet.started[attempt].running)  # noqa: B023
        fleet.started[attempt].running[0][1].set_exception(WorkerDied("killed"))
    assert isinstance(futures[1].exception(5), ServerUnavailable)
    assert isinstance(maker.submit(task()).exception(5), ServerUnavailable)
    assert "a worker on machine0 ended 5 times in a row and is not replaced" in capsys.readouterr().err


def test_deaths_count_in_a_row(cluster):
    maker, fleet = cluster(1)
    for number in range(making.MOST_DEATHS + 2):
        future = maker.submit(task())
        until(lambda: len(fleet.started) == number + 1 and fleet.started[number].running)  # noqa: B023
        fleet.started[number].running[0][1].set_exception(WorkerDied("killed"))
        until(lambda: len(fleet.started) == number + 2 and fleet.started[number + 1].running)  # noqa: B023
        finish(fleet.started[number + 1], ["pictures"])
        assert future.result(5)
        fleet.started[number + 1].running.clear()


def test_an_exception_of_the_worker_is_that_of_the_future(cluster):
    maker, fleet = cluster(1)
    future = maker.submit(task())
    until(lambda: fleet.started[0].running)
    recorded = to_wire(InputError("it is damaged", "get it again"))["error"]
    fleet.started[0].running[0][1].set_result(Failure(recorded, "Traceback of the worker"))
    error = future.exception(5)
    assert (type(error), error.message, error.hint) == (InputError, "it is damaged", "get it again")
    assert error.__notes__ == ["Traceback of the worker"]


def test_a_file_that_is_gone_fails_its_task_alone(cluster, tmp_path):
    maker, fleet = cluster(1)
    image = {"image": str(tmp_path / "gone.png"), "strength": 0.5}
    gone, fine = maker.submit(task(**image)), maker.submit(task())
    assert isinstance(gone.exception(5), InputError)
    until(lambda: fleet.started[0].running)
    finish(fleet.started[0], ["pictures"])
    assert fine.result(5) == ["pictures"]


def test_files_travel_as_bytes(cluster, tmp_path):
    maker, fleet = cluster(1)
    (tmp_path / "a.png").write_bytes(b"content")
    maker.submit(task(image=str(tmp_path / "a.png"), strength=0.5))
    until(lambda: fleet.started[0].running)
    assert fleet.started[0].running[0][0].files == {str(tmp_path / "a.png"): b"content"}


def test_threads_are_those_of_this_process(cluster, monkeypatch):
    maker, fleet = cluster(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    maker.submit(task(threads=0))
    until(lambda: fleet.started[0].running)
    assert fleet.started[0].running[0][0].recipes[0].execution.threads == 3


def test_an_error_of_the_cluster_fails_what_waits(cluster, monkeypatch):
    maker, fleet = cluster(1)
    futures = [maker.submit(task()) for _ in range(2)]
    until(lambda: fleet.started[0].running)

    def fail(place):
        raise RuntimeError("it is down")

    monkeypatch.setattr(fleet, "start", fail)
    fleet.started[0].running[0][1].set_exception(WorkerDied("killed"))
    for future in [*futures, maker.submit(task())]:
        error = future.exception(5)
        assert isinstance(error, ServerUnavailable)
    assert "it is down" in str(futures[0].exception())


def test_closed_all_workers_are_ended(cluster):
    maker, fleet = cluster(2)
    maker.submit(task())
    maker.close()
    assert all(each.killed for each in fleet.started)
    assert fleet.closed


class Late(Manual):
    """A worker that greets when the test has it greet."""

    def call(self, method, *arguments):
        future = super().call(method, *arguments)
        if method != "greet":
            return future
        self.greeting = type(future)()
        return self.greeting


def test_a_worker_that_starts_late_takes_part_and_a_wrong_one_does_not(cluster, capsys):
    workers = [Manual(), Late(), Late()]
    maker, fleet = cluster(3, lambda place: workers[int(place.node[-1])], seconds=0.05)
    for _ in range(3):
        maker.submit(task())
    until(lambda: running(fleet) == [["kit"], [], []])
    workers[1].greeting.set_result(Greeting(VERSION, "cpu"))
    until(lambda: running(fleet) == [["kit"], ["kit"], []])
    workers[2].greeting.set_result(Greeting(("0.0.1", 1), "cpu"))
    until(lambda: maker.capacity == 2)
    assert "a worker on machine2 cannot be used: it has sdcli 0.0.1" in capsys.readouterr().err


def test_a_cluster_that_cannot_be_used_is_an_error_before_anything_starts(cluster, capsys):
    with pytest.raises(ServerUnavailable, match=r"machine0 has sdcli 0\.0\.1, and this is sdcli"):
        cluster(1, lambda place: Manual(Greeting(("0.0.1", 1), "cpu")))
    with pytest.raises(UsageError, match="the cluster has no processors"):
        cluster(0)
    with pytest.raises(ServerUnavailable, match=r"none started within 0\.01 seconds"):
        cluster(1, lambda place: Late(), seconds=0.01)


def test_a_worker_that_lacks_a_model_is_named_with_it(cluster):
    from sdcli.making.cluster import wanted

    (model,) = wanted.of(task().weights, "kit")
    with pytest.raises(ModelNotFound, match=f"machine0 lacks the model 'kit' .sha256 {model.sha256[:12]}") as caught:
        cluster(1, lambda place: Manual(Greeting(VERSION, "cpu", (model,))))
    assert "--ship-models" in caught.value.hint


def test_workers_with_other_arithmetic_are_a_warning(cluster, capsys):
    greetings = iter([Greeting(VERSION, "cpu AVX2, torch 2"), Greeting(VERSION, "cuda H100, torch 2")])
    cluster(2, lambda place: Manual(next(greetings)))
    assert "pixels can depend on the worker" in capsys.readouterr().err
