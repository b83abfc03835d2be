import json
import os
import signal
from dataclasses import dataclass, field

import pytest
import torch

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.training import checkpoint


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no")


def test_what_was_saved_is_loaded(tmp_path):
    file = tmp_path / "new" / "run.pt"
    checkpoint.save(file, {"step": 3, "weights": torch.arange(4)})
    state = checkpoint.load(file)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(4))
    assert [f.name for f in file.parent.iterdir()] == ["run.pt"]


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path):
    file = tmp_path / "run.pt"
    checkpoint.save(file, {"step": 1})
    with pytest.raises(RuntimeError):
        checkpoint.save(file, {"step": Unpicklable()})
    assert checkpoint.load(file) == {"step": 1}


def test_a_missing_and_a_torn_checkpoint_are_named(tmp_path):
    with pytest.raises(ModelNotFound):
        checkpoint.load(tmp_path / "run.pt")
    checkpoint.save(tmp_path / "run.pt", {"weights": torch.zeros(1000)})
    (tmp_path / "torn.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:2000])
    with pytest.raises(ModelCorrupt, match=r"torn\.pt"):
        checkpoint.load(tmp_path / "torn.pt")


def test_the_log_is_lines_of_json(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.append_log(tmp_path / "log.jsonl", {"step": step})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
    ]
    assert capsys.readouterr().out == '{"step": 1}\n{"step": 2}\n'


@dataclass
class Settings:
    steps: int = 7
    save_every: int = 3


@dataclass
class CountingRun:
    """A run whose loss is its step, and that remembers when it was saved."""

    settings: Settings = field(default_factory=Settings)
    step: int = 0
    seconds: float = 0.0
    saved: list = field(default_factory=list)
    stop_at: int | None = None

    def train_step(self):
        self.step += 1
        if self.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(self.step)

    def save(self, folder):
        self.saved.append(self.step)

    def report(self):
        return {"samples": 10 * self.step}


def test_the_loop_saves_now_and_then_and_at_the_end(tmp_path):
    run = CountingRun()
    entries = list(checkpoint.train(run, tmp_path))
    assert run.saved == [3, 6, 7]
    assert [(e["step"], e["loss"], e["samples"]) for e in entries] == [(3, 2.0, 30), (6, 5.0, 60), (7, 7.0, 70)]


def test_a_stop_signal_ends_the_run_at_a_checkpoint(tmp_path):
    run = CountingRun(stop_at=4)
    before = signal.getsignal(signal.SIGTERM)
    list(checkpoint.train(run, tmp_path))
    assert run.saved == [3, 4]
    assert signal.getsignal(signal.SIGTERM) is before
