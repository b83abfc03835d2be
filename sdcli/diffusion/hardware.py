"""The device and dtype that `auto` selects, and a guess of them without torch."""

from __future__ import annotations

import platform
from pathlib import Path

from sdcli.errors import InvalidRecipe

_NVIDIA = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu")


def by_preference(*, cuda: bool, mps: bool) -> tuple[str, ...]:
    """Return the devices of a machine that has these besides its CPU; `auto` selects the first."""
    present = {"cuda": cuda, "mps": mps, "cpu": True}
    return tuple(device for device, found in present.items() if found)


def dtype_for(device: str, *, bfloat16: bool) -> str:
    """Return the dtype that `auto` selects on a device with or without hardware support of bfloat16.

    bfloat16 is preferred: it halves the memory and keeps float32's range.
    """
    if device == "mps":
        return "float16"
    if bfloat16:
        return "bfloat16"
    return "float16" if device == "cuda" else "float32"


def likely(device: str, dtype: str) -> tuple[str, str]:
    """Replace `auto` by what it most likely selects, from information of the operating system.

    Raises InvalidRecipe for a device that this machine cannot have.
    """
    nvidia = any(Path(node).exists() for node in _NVIDIA)
    system = platform.system()
    mac = system == "Darwin"
    if (device == "mps" and not mac) or (device == "cuda" and not nvidia and system == "Linux"):
        raise InvalidRecipe(f"there is no {device} device here", "choose --device auto", "device")
    if device == "auto":
        device = by_preference(cuda=nvidia, mps=mac and platform.machine() == "arm64")[0]
    if dtype == "auto":
        dtype = dtype_for(device, bfloat16=device == "cuda" or _cpu_has_bfloat16())
    return device, dtype


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_tile"} & set(flags))
