"""The standard streams: stdout has results only, whatever libraries print."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, BinaryIO

from sdcli.errors import OutputError
from sdcli.terminal.printable import json_safe, one_line, printable


def prepare() -> None:
    """Prepare the standard streams, whatever state the caller left them in.

    stdout is UTF-8 in every locale, because programs read it; file names that are not UTF-8 are written unchanged. A
    closed descriptor is opened so that using it fails. Otherwise the first opened file would get its number, and output
    would be written into that file.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  stays open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def to_json(value: Any) -> str:
    """Return `value` as one line of JSON. Characters that a terminal would obey, and lone surrogates, are escaped."""
    return json_safe(json.dumps(value, ensure_ascii=False))


def say(line: str = "") -> None:
    """Print one line for a person on stdout, with escapes for what a terminal would obey."""
    print(printable(line))


def say_path(path: str) -> None:
    """Print a path on stdout: unchanged for programs, and with escapes on a terminal."""
    print(printable(path) if sys.stdout.isatty() else path)


@contextmanager
def results() -> Iterator[BinaryIO]:
    """Open the real stdout for results; everything else written to stdout goes to stderr meanwhile.

    File descriptor 1 itself is redirected, so this includes C libraries and child processes.
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
        with suppress(OSError):  # a failed write was already reported
            out.close()
        sys.stdout = python_stdout
        os.dup2(saved, 1)
        os.close(saved)


def write_line(out: BinaryIO, line: str) -> None:
    """Write one line and flush it, so that the reader of a pipe gets it immediately. A terminal gets escapes."""
    line = printable(line) if out.isatty() else line
    write_bytes(out, line.encode("utf-8", "surrogateescape") + b"\n")


def write_bytes(out: BinaryIO, data: bytes) -> None:
    """Write and flush `data`. Raises OutputError if that fails."""
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror}", "check that there is space where stdout is written") from error


def complain(message: str, hint: str | None = None) -> None:
    """Print the two lines of an error on stderr, or only the first without a hint."""
    told = f"{_marked('error:', _RED)} {one_line(message)}"
    _tell(told + (f"\n{_marked('hint:', _CYAN)} {one_line(hint)}" if hint else ""))


def warn(message: str) -> None:
    """Print one line of warning on stderr."""
    _tell(f"{_marked('warning:', _YELLOW)} {one_line(message)}")


def note(message: str) -> None:
    """Print one line on stderr about something that was done implicitly."""
    _tell(f"note: {one_line(message)}")


_RED, _YELLOW, _CYAN = 31, 33, 36


def _marked(word: str, colour: int) -> str:
    """`word` in bold and in a colour, if stderr is a terminal that has colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    return word if plain or not sys.stderr.isatty() else f"\x1b[1;{colour}m{word}\x1b[0m"


def _tell(text: str) -> None:
    with suppress(OSError):  # a closed stderr changes neither the work nor the exit status
        print(text, file=sys.stderr)


def show_traceback(error: BaseException) -> None:
    """Print the traceback of `error` on stderr."""
    _tell(printable("".join(traceback.format_exception(error)).rstrip("\n"), keep="\n"))
