"""How much memory a device has for this process, as the operating system and the driver tell it. Imports no torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""The files of a container's limit, of its use and its details, and the key of the cache that can be freed."""


def room(device: str) -> int | None:
    """Return the bytes that this process can have on `device`, with those that it has now; None if that is unknown."""
    return _of_nvidia() if device == "cuda" else of_host()


def of_host() -> int | None:
    """Return the bytes of main memory that are available, with those that this process has now.

    In a container, its limit counts. Pages of mapped files are available, because they can be read again.
    """
    meminfo = _numbers(Path("/proc/meminfo"), unit=1024)
    available = meminfo.get("MemAvailable")
    if available is None:
        with suppress(OSError, ValueError, AttributeError):  # not Linux: all of it
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return None
    left = [available, *filter(None, [_of_container(Path("/sys/fs/cgroup"))])]
    return min(left) + _numbers(Path("/proc/self/status"), unit=1024).get("RssAnon", 0)


def _of_container(root: Path) -> int | None:
    """Return what is left to the limit of a container, or None without one."""
    for limit, used, details, freeable in _CGROUPS:
        with suppress(OSError, ValueError):
            most = int((root / limit).read_text())  # the text `max` without a limit
            taken = int((root / used).read_text()) - _numbers(root / details).get(freeable, 0)
            return max(0, most - taken)
    return None


def _numbers(file: Path, unit: int = 1) -> Mapping[str, int]:
    """Return the numbers of a file with lines such as `MemTotal: 24000 kB`, by their names."""
    with suppress(OSError):
        pairs = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
        return {pair[0].rstrip(":"): unit * int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}
    return {}


class _Memory(ctypes.Structure):
    """The type `nvmlMemory_t` of NVIDIA's management library."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _of_nvidia() -> int | None:
    """Return the free bytes of the first NVIDIA GPU that is visible, from the driver's library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not visible.isdigit():
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, memory = ctypes.c_void_p(), _Memory()
    failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(handle))
    failed = failed or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return None if failed else memory.free
