import json
import os
import signal
import time
from dataclasses import dataclass, field

import pytest
import torch

from sdcli.training import loop
from sdcli.training.loop import Stop, Watcher
from sdcli.training.team import Team


@dataclass
class Settings:
    steps: int = 7
    save_every: int = 3
    log_every: int = 2
    sheet_every: int = 4


@dataclass
class CountingRun:
    """A run whose loss is its step, and that records its calls."""

    settings: Settings = field(default_factory=Settings)
    team: Team = field(default_factory=lambda: Team(torch.device("cpu")))
    step: int = 0
    prepared: int = 0
    kept: list = field(default_factory=list)
    sheets: list = field(default_factory=list)
    signal_at: int | None = None

    def prepare(self):
        for done in range(3):
            yield done, 3
            self.prepared += 1

    def train_step(self):
        self.step += 1
        if self.step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(self.step)

    def keep(self, folder):
        self.kept.append(self.step)

    def state(self):
        return {"steps": self.step}

    def load_state(self, state):
        assert state["steps"] == self.step

    def report(self):
        return {"samples": 10 * self.step}

    def sheet(self, path):
        self.sheets.append(path.name)


def entries_in(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry["samples"]) for entry in entries]


EXPECTED = [(2, 1.5, 20), (4, 3.5, 40), (6, 5.5, 60), (7, 7.0, 70)]


def test_the_loop_logs_saves_and_writes_sheets_at_intervals_and_at_the_end(tmp_path):
    run, seen, steps = CountingRun(), [], []
    watcher = Watcher(on_entry=seen.append, on_step=lambda step, loss: steps.append(step))
    assert loop.train(run, tmp_path, Stop(), watcher)
    assert run.kept == [0, 3, 6, 7]
    assert run.sheets == ["000004.png", "000007.png"]
    assert entries_in(tmp_path) == EXPECTED
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == seen
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    assert loop.last_step(tmp_path) == 7


@pytest.mark.parametrize("stops", [[3], [5], [1, 2, 4]])
def test_a_run_in_slices_has_the_log_of_an_uninterrupted_one(tmp_path, stops):
    for stop in stops:
        with loop.stop_requests() as asked:
            assert not loop.train(CountingRun(signal_at=stop), tmp_path, asked, Watcher())
        assert asked.received == [signal.SIGTERM]
        assert loop.last_step(tmp_path) == stop
    assert loop.train(CountingRun(), tmp_path, Stop(), Watcher())
    assert entries_in(tmp_path) == EXPECTED


def test_signal_handlers_are_restored_after_the_run():
    before = signal.getsignal(signal.SIGTERM)
    with loop.stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_past_deadline_stops_at_once_and_keeps_prepared_data(tmp_path):
    run = CountingRun()
    assert not loop.train(run, tmp_path, Stop(deadline=time.monotonic()), Watcher())
    assert (run.step, run.kept, run.prepared) == (0, [0], 0)
    assert loop.last_step(tmp_path) == 0


def test_later_and_incomplete_log_lines_are_removed(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    loop.cut_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_noise_depends_only_on_seed_and_step():
    one, again, other, further = (
        loop.step_noise(seed, step, (2, 3)) for seed, step in ((1, 1), (1, 1), (1, 2), (2, 1))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, further)
