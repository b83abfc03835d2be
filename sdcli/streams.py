"""Who may write where: stdout carries results only, whatever libraries print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def results() -> Iterator[BinaryIO]:
    """The real stdout, for results alone; while it is open, all else written to stdout lands on stderr.

    File descriptor 1 itself is moved, so that prints of C libraries and child processes go the same way.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    python_stdout = sys.stdout
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        with os.fdopen(os.dup(saved), "wb") as out:
            yield out
    finally:
        sys.stdout = python_stdout
        os.dup2(saved, 1)
        os.close(saved)


def write_line(out: BinaryIO, line: str) -> None:
    """Write one line and flush it, so that a reader at the other end of a pipe has it now."""
    out.write(line.encode("utf-8", "surrogateescape") + b"\n")
    out.flush()


def complain(message: str, hint: str) -> None:
    """The two lines of an error on stderr."""
    print(f"error: {_one_line(message)}\nhint: {_one_line(hint)}", file=sys.stderr)


def warn(message: str) -> None:
    """One line of warning on stderr."""
    print(f"warning: {_one_line(message)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
