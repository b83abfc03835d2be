"""Who may write where: stdout carries results only, whatever libraries print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, BinaryIO

from sdcli.errors import OutputError


def prepare() -> None:
    """Make the standard streams what the rest of sdcli takes them for, whatever the caller has made of them.

    stdout is UTF-8 in every locale, for its readers are programs; bytes of a file's name that are not go out as they
    came in. A descriptor that is closed is opened so that it fails where it is used: else the first file to be opened
    would take its number, and what is said would land in that file. Of stderr alone nobody need hear.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  for as long as the process lives
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def to_json(value: Any) -> str:
    """`value` on one line of JSON. Bytes of a file's name that are not UTF-8 are escaped as lone surrogates."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()


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
    _tell(f"error: {_one_line(message)}" + (f"\nhint: {_one_line(hint)}" if hint else ""))


def warn(message: str) -> None:
    """One line of warning on stderr."""
    _tell(f"warning: {_one_line(message)}")


def note(message: str) -> None:
    """One line on stderr of something done that was not asked for in so many words."""
    _tell(f"note: {_one_line(message)}")


def _tell(text: str) -> None:
    with suppress(OSError):  # where nobody can be told, the work and the exit status are the same
        print(text, file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
