"""The device under test."""

import os

import torch


def _device() -> str | None:
    asked = os.environ.get("SDCLI_TEST_DEVICE")
    if asked:
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


DEVICE = _device()
"""Where these tests run, None where nothing but the CPU is here."""
