"""The device and the processes of a run; each process computes its part of every batch.

On a busy machine, two processes with one thread are faster than one process with two: a process does not wait for
another thread at each operation, only for the other processes once per step. Several processes need accelerate, and are
started by sdcli, by accelerate's launcher, or by torchrun.
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
    """The processes of a run.

    `process` is the index of this one, from 0; a single process has no `accelerator`.
    """

    device: torch.device
    autocasts: bool = True
    process: int = 0
    processes: int = 1
    accelerator: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the shared files."""
        return self.process == 0

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the models: matrix products in bfloat16, or in float32 if requested."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocasts)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, with one message per step."""
        if self.accelerator is None:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        mean = self.accelerator.reduce(torch.cat([each.flatten() for each in gradients]), reduction="mean")
        parts = mean.split([each.numel() for each in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """Return the mean of a value over the processes; the same in all processes."""
        if self.accelerator is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(tensor, reduction="mean").item())

    def any_of(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; the same in all processes."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def join(device: str = "auto", dtype: str = "bfloat16") -> Team:
    """Return the team of this process: one process, unless a launcher started several.

    Raises UsageError if there is no GPU for `device`, or if accelerate is not installed.
    """
    autocasts = dtype == "bfloat16"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no usable GPU", "omit --device, or use --device cpu")
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
