"""Delays SIGINT, so that Ctrl-C finishes what is under way and a second Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

from sdcli.terminal import display, signals


class Interrupts:
    """A context that delays SIGINT until its end: the first is `asked`, a second raises KeyboardInterrupt immediately.

    `several` pictures may be under way, which only the message depends on.
    """

    def __init__(self, *, several: bool) -> None:
        self.asked = False
        what = "pictures" if several else "picture"
        text = f"interrupted: finishing the current {what}; press Ctrl-C again to stop now\n"
        self._told = display.before_a_line() + text.encode()

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        self._delay()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self.asked and error is None:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Do not delay SIGINT in the body."""
        signal.signal(signal.SIGINT, self._before)
        try:
            yield
        finally:
            self._delay()

    def _delay(self) -> None:
        if self._before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signals.interrupt(number, frame)
        self.asked = True
        with suppress(OSError):  # stderr is closed: Ctrl-C has ended the reader of the pipe too
            os.write(2, self._told)  # print could be interrupted
