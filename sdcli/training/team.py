"""Where a run computes: on one processor or GPU, or in several processes, each with its own part of every batch.

On a busy machine two processes of one thread are faster than one of two: a process does not wait for another thread at
every operation, only for the other processes once a step. Several processes need accelerate, and are started by its
launcher, or by torchrun.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.errors import UsageError


@dataclass(frozen=True)
class Team:
    """The processes of a run. `process` counts from 0; `accelerator` is None where there is but one."""

    device: torch.device
    autocasts: bool = True
    process: int = 0
    processes: int = 1
    accelerator: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what all share."""
        return self.process == 0

    def autocast(self) -> torch.autocast:
        """The context in which models compute: matrix products in bfloat16, unless float32 was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocasts)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes: one message a step."""
        if self.accelerator is None:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        mean = self.accelerator.reduce(torch.cat([each.flatten() for each in gradients]), reduction="mean")
        parts = mean.split([each.numel() for each in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of the processes' values; all get the same."""
        if self.accelerator is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(tensor, reduction="mean").item())

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes; all get the same answer."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Go on when all are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def join(device: str = "auto", dtype: str = "bfloat16") -> Team:
    """The team of this process: alone, unless a launcher started several. Raises UsageError where that cannot be."""
    autocasts = dtype == "bfloat16"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no GPU that torch can use is here", "leave --device away, or say --device cpu")
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(torch.device("cpu" if use_cpu else "cuda"), autocasts)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        hint = "install it with: pip install 'sdcli[train]'"
        raise UsageError("training in several processes needs accelerate, which is not installed", hint) from error
    accelerator = Accelerator(cpu=use_cpu)
    return Team(accelerator.device, autocasts, accelerator.process_index, accelerator.num_processes, accelerator)
