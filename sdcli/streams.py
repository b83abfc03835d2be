"""Who may write where: stdout carries results only, whatever libraries print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from sdcli.errors import OutputError


@contextmanager
def results() -> Iterator[BinaryIO]:
    """The real stdout, for results alone; while it is open, all else written to stdout lands on stderr.

    File descriptor 1 itself is moved, so that prints of C libraries and child processes go the same way.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    python_stdout = sys.stdout
    out = os.fdopen(os.dup(saved), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield out
    finally:
        with suppress(OSError):  # what could not be written has been said by whoever wrote it
            out.close()
        sys.stdout = python_stdout
        os.dup2(saved, 1)
        os.close(saved)


def write_line(out: BinaryIO, line: str) -> None:
    """Write one line and flush it, so that a reader at the other end of a pipe has it now."""
    write_bytes(out, line.encode("utf-8", "surrogateescape") + b"\n")


def write_bytes(out: BinaryIO, data: bytes) -> None:
    """Write and flush `data`; raises OutputError where there is no room for it."""
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror}", "is there space where stdout goes?") from error


def complain(message: str, hint: str | None = None) -> None:
    """The two lines of an error on stderr, or the first alone where the message holds the way out."""
    print(f"error: {_one_line(message)}" + (f"\nhint: {_one_line(hint)}" if hint else ""), file=sys.stderr)


def warn(message: str) -> None:
    """One line of warning on stderr."""
    print(f"warning: {_one_line(message)}", file=sys.stderr)


def note(message: str) -> None:
    """One line on stderr of something done that was not asked for in so many words."""
    print(f"note: {_one_line(message)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
