"""Training in several processes, each with its own part of every batch: run the command under `torchrun`.

On a busy machine a process of one thread does not wait for a second thread at every operation, only for the other
processes once a step. Without torchrun there is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join() -> None:
    """Meet the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")


def place() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any of the processes; all get the same answer."""
    if not dist.is_initialized():
        return flag
    answer = torch.tensor(int(flag))
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer.item())
