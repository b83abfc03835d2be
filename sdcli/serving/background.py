"""`sdcli serve --background`: a child process that continues after the command has returned. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from sdcli.errors import ExitStatus, OutputError, ServerUnavailable
from sdcli.terminal import streams

Run = Callable[[Callable[[], None]], int]
"""Serves until it is stopped, and returns the exit status; its argument is to be called when it is ready."""


def start(run: Run, addresses: int, log: str | None) -> int:
    """Call `run` in a child, wait until it has printed its `addresses`, and print them. Returns in both processes.

    stderr is the caller's until then, and `log` afterwards; nothing of the caller's is kept open. Returns the exit
    status of a child that fails, and raises ServerUnavailable if it was killed.
    """
    try:
        kept = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {log}: {error.strerror}", "choose another --log") from error
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writer)
        os.close(kept)
        return _await(child, reader, addresses)
    os.close(reader)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(writer, 1)
    for descriptor in (nothing, writer):
        os.close(descriptor)
    return run(partial(_detach, kept))


def _detach(log: int) -> None:
    """Redirect stderr, and stdout, which was redirected to it."""
    for descriptor in (1, 2):
        os.dup2(log, descriptor)


def _await(child: int, reader: int, addresses: int) -> int:
    with open(reader) as lines:
        try:
            told = [line for _, line in zip(range(addresses), lines, strict=False)]
        except BaseException:  # Ctrl-C
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            raise
    if len(told) == addresses:
        sys.stdout.write("".join(told))
        streams.note(f"sdcli serve is process {child}; stop it with: kill {child}")
        return ExitStatus.OK
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:  # it has printed its error
        return status
    raise ServerUnavailable(
        f"sdcli serve ended before it was ready ({'exit status 0' if status == 0 else f'signal {-status}'})",
        "run it without --background to see more",
    )
