"""Signals that end a command: exceptions, so that every `finally` runs, and remembered.

While C code runs, above all while libraries are imported, the exception of a handler can become another one. What ended
a command is therefore the signal that came first, whatever the exception is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_seen: list[int] = []


class Terminated(BaseException):
    """SIGTERM or SIGHUP as an exception."""


def exit_at_once() -> None:
    """End by a signal with its exit status, until `watch`: nothing is under way yet."""
    _handle(lambda number, frame: os._exit(128 + number))


def watch() -> None:
    """Raise KeyboardInterrupt or Terminated at a signal from now on, and remember it. Ignored signals stay ignored."""
    _seen.clear()
    _handle(interrupt)


def came() -> int | None:
    """Return the signal that came since `watch`, or None."""
    return _seen[0] if _seen else None


def raise_again() -> None:
    """Raise the exception of the signal that came, if one did: for code that catches every other exception."""
    if _seen:
        raise _exception_of(_seen[0])


def _handle(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None = None) -> NoReturn:
    """Remember the signal and raise its exception; the handler that `watch` sets."""
    _seen.append(number)
    raise _exception_of(number)


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()
