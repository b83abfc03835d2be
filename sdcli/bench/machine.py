"""The machine that is measured: its name, its libraries, and the memory that is used. Imports torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sdcli.diffusion.model import LatentDiffusionModel


def describe(device: str) -> dict[str, Any]:
    """Return the processor, the GPU if it is used, the system and the versions of libraries, for JSON."""
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


class Memory:
    """The peak memory since it was made: of the device, or of the process where the device is the CPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        self._before = 0 if self._on_gpu else self._peak()

    def _peak(self) -> int:
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        with suppress(OSError):
            found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
            if found:
                return int(found[1]) * 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if platform.system() == "Darwin" else most * 1024

    def found(self, model: LatentDiffusionModel) -> dict[str, int]:
        """Return bytes: the weights, the peak above what was there before loading, and that."""
        parts = [model.network, model.vae, *(each.model for each in model.text_encoders)]
        weights = sum(each.nbytes for part in parts for each in part.parameters())
        return {"weights": weights, "peak": self._peak() - self._before, "before": self._before}
