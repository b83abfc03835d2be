"""Reading files of bounded size, and JSON in them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 2**26
"""Larger than any known tokenizer or index of shards."""


def load_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises OSError if the file cannot be read, and ValueError if it is larger than `max_bytes` or invalid.
    """
    return parse_json(read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes`. Raises OSError and ValueError like `load_json`."""
    if not stat.S_ISREG(path.stat().st_mode):  # a device has no end, and opening a pipe waits for its other end
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return data


def parse_json(data: bytes) -> Any:
    """Return the value of JSON in UTF-8. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
