"""Tests of what a GPU does, against the CPU: they skip where torch sees neither CUDA nor MPS.

SDCLI_TEST_DEVICE=cpu rehearses them where there is none; `python -m tests.device.report` runs them with a small bench.
"""
