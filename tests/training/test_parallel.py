from ast import literal_eval
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from sdcli.training import parallel


def work(process: int, folder: str) -> None:
    """What each of two processes does: a gradient of its own, and a flag that only the second one sets."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=2)
    layers = [nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(1, 1)]
    for layer in layers[:2]:  # the last one has no gradient
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + 2.0 * process)
    parallel.average_gradients(p for layer in layers for p in layer.parameters())
    means = {p.grad.unique().item() for layer in layers[:2] for p in layer.parameters()}
    answers = (parallel.any_of(process == 1), parallel.any_of(False))
    Path(folder, f"{process}").write_text(repr((parallel.place(), means, answers)))
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for process in range(2):
        assert literal_eval((tmp_path / str(process)).read_text()) == ((process, 2), {2.0}, (True, False))


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel.join()
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    parallel.average_gradients(layer.parameters())
    assert parallel.place() == (0, 1)
    assert layer.weight.grad.eq(1).all()
    assert [parallel.any_of(flag) for flag in (True, False)] == [True, False]
