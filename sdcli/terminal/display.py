"""What a person at a terminal sees on stderr: a progress bar while a picture is made, then a small copy of it.

Draws nothing where nobody looks: on what is no terminal, on a dumb one, and from a background job. Nothing in here
can make a command fail.
"""

from __future__ import annotations

import logging
import math
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress


class Step(Protocol):
    """One step of `total` done; `index` counts from 1."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def total(self) -> int: ...  # noqa: D102


OnTraining = Callable[[str, int, int, "float | None"], None]
"""Told (what is being done, how much of it is done, how much there is in all, the loss if there is one)."""
OnBytes = Callable[[str, int], None]
"""Told (file, bytes of it that are done), again and again."""

PREVIEW_COLUMNS, PREVIEW_ROWS = 48, 20
_ROOM_FOR_BAR, _ROOM_FOR_WORDS, _ROOM_FOR_TIME = 76, 60, 20  # columns
_ROOM_FOR_ECHO = 4
"""Columns kept free, so that the `^C` a terminal echoes wraps no line, and the bar can still be erased."""


@contextmanager
def progress(
    steps: int,
    pictures: int = 1,
    *,
    picture: int = 1,
    batch_size: int = 1,
    quiet: bool = False,
    stream: TextIO | None = None,
) -> Iterator[Callable[[Step], None]]:
    """A bar for one run of the loop, which makes `batch_size` of `pictures` from number `picture` on.

    Yields what to call after each step. The bar tells the step, the rate, and the time left for the steps of this and
    all later runs; after the last step, that the picture is being decoded. It holds one line of `stream` (stderr if
    None) while open, and leaves no trace. Nothing is ever drawn where `stream` is no terminal, or `quiet` is set.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield lambda step: None
        return
    last = min(picture + batch_size - 1, pictures)
    later_runs = math.ceil((pictures - last) / batch_size)
    which = f"picture {picture}" if last == picture else f"pictures {picture}-{last}"
    label = f"{which} of {pictures}, " if pictures > 1 else ""
    bar = _bar(stream)
    task = bar.add_task(f"{label}starting", total=steps, rate="", left="")
    first_done: float | None = None

    def on_step(step: Step) -> None:
        nonlocal first_done
        now = time.monotonic()
        if first_done is None:
            first_done = now
        changes: dict[str, Any] = {"description": label + ("decoding" if step.index == step.total else "denoising")}
        if step.index > 1:  # the first step has also waited for the model and the context
            seconds = (now - first_done) / (step.index - 1)
            to_do = step.total - step.index + step.total * later_runs
            changes |= {"rate": format_rate(seconds), "left": f"{format_clock(seconds * to_do)} left" if to_do else ""}
        bar.update(task, completed=step.index, total=step.total, **changes)

    with bar:
        yield on_step


@contextmanager
def job_progress(
    jobs: int, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[float, str], None]]:
    """A bar over the `jobs` of a batch, with the time left for all of them.

    Yields what to call with the number of jobs done (of the one in hand, the part of it) and what is being done.
    It draws where `progress` would, and leaves no trace either.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield lambda done, doing: None
        return
    bar = _bar(stream)
    task = bar.add_task("starting", total=jobs, rate="", left="")
    started: tuple[float, float] | None = None  # when the first picture was under way, and how far

    def show(done: float, doing: str) -> None:
        nonlocal started
        now = time.monotonic()
        changes: dict[str, Any] = {"description": f"job {min(int(done) + 1, jobs)} of {jobs}, {doing}"}
        if started is None and done > 0:
            started = now, done
        elif started is not None and done > started[1]:
            seconds = (now - started[0]) / (done - started[1])
            changes |= {"left": f"{format_clock(seconds * (jobs - done))} left"}
        bar.update(task, completed=done, **changes)

    with bar:
        yield show


@contextmanager
def training(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[OnTraining]:
    """A bar for a run of training, with the loss (smoothed), the rate and the time left to the run's end.

    Yields what to call as things are done. It draws where `progress` would, and leaves no trace either.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield lambda doing, done, total, loss: None
        return
    bar = _bar(stream)
    task = bar.add_task("starting", total=None, rate="", left="")
    phase, first, mean = "", (0.0, 0), 0.0

    def show(doing: str, done: int, total: int, loss: float | None) -> None:
        nonlocal phase, first, mean
        now = time.monotonic()
        if doing != phase:
            phase, first, mean = doing, (now, done), loss or 0.0
        mean += 0.05 * ((loss or 0.0) - mean)
        changes: dict[str, Any] = {"description": doing if loss is None else f"{doing}, loss {mean:.4f}"}
        if done > first[1]:
            seconds = (now - first[0]) / (done - first[1])
            changes |= {"rate": format_rate(seconds), "left": f"{format_clock(seconds * (total - done))} left"}
        bar.update(task, completed=done, total=total, **changes)

    with bar:
        yield show


def before_a_line(stream: TextIO | None = None) -> bytes:
    """What clears the line where a bar may stand, for who must write one of his own in its place, past Python."""
    return b"\r\x1b[2K" if _is_watched(sys.stderr if stream is None else stream) else b""


def preview(image: Image.Image, *, stream: TextIO | None = None) -> None:
    """Draw `image` small on `stream` (stderr if None), as finely as the terminal can: graphics, or half cells.

    Nothing is drawn without the package textual-image, on a terminal of fewer than 256 colours or without UTF-8, with
    NO_COLOR, or where asking the terminal what it can would hang or swallow keys: stdin and file descriptor 1 must be
    terminals too, and nothing typed ahead.
    """
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or "utf" not in (stream.encoding or "").lower() or not _is_watched(stream):
        return
    with suppress(Exception):  # a preview is a courtesy: the picture is on disk already
        if os.isatty(1) and not _has_typed_ahead(0):
            _draw(image, stream)


@contextmanager
def transfer(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Callable[[int], OnBytes]]:
    """A bar for bytes that come over a network or are read from a disk, drawn where `progress` would draw.

    Yields what to call first, with the bytes in all; it gives what to call as they come. Leaves no trace.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield lambda total: lambda name, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(file=stream, highlight=False)
    columns: list[Any] = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    if console.width >= _ROOM_FOR_BAR:
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), *columns]
    bar = Progress(*columns, console=console, transient=True, expand=console.width >= _ROOM_FOR_BAR)
    done: dict[str, int] = {}

    def start(total: int) -> OnBytes:
        task = bar.add_task("", total=total)

        def on_bytes(name: str, count: int) -> None:
            done[name] = count
            bar.update(task, completed=sum(done.values()), description=name)

        return on_bytes

    with bar:
        yield start


def format_rate(seconds: float) -> str:
    """Steps per second, or seconds per step where that is the larger number."""
    if seconds <= 0:
        return ""
    return f"{seconds:.1f} s/step" if seconds > 1 else f"{1 / seconds:.1f} steps/s"


def format_clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_size(count: int) -> str:
    """Bytes in the decimal unit that gives a short number."""
    size, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _bar(stream: TextIO) -> Progress:
    """A bar that fits the terminal: on a narrow one, first the bar itself goes, then the words."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

    width = Console(file=stream).width - _ROOM_FOR_ECHO
    console = Console(file=stream, highlight=False, width=width if width > 0 else None)
    columns: list[ProgressColumn] = [MofNCompleteColumn()]
    if width >= _ROOM_FOR_BAR:
        columns.insert(0, BarColumn(bar_width=None))
    if width >= _ROOM_FOR_WORDS:
        columns.insert(0, TextColumn("{task.description}"))
        columns.append(TextColumn("{task.fields[rate]}"))
    if width >= _ROOM_FOR_TIME:
        columns.append(TextColumn("{task.fields[left]}"))
    return Progress(*columns, console=console, transient=True, expand=width >= _ROOM_FOR_BAR)


def _draw(image: Image.Image, stream: TextIO) -> None:
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)  # its guesses about the terminal are no news
    from rich.console import Console
    from textual_image.renderable import HalfcellImage
    from textual_image.renderable import Image as Renderable

    console = Console(file=stream)
    if Renderable is HalfcellImage and console.color_system not in ("256", "truecolor"):
        return
    columns, rows = min(PREVIEW_COLUMNS, console.width), min(PREVIEW_ROWS, console.height - 2)
    console.print(Renderable(image, width="auto", height="auto"), width=columns, height=rows, end="")


def _is_watched(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw a line, and this process is in its foreground."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown") or not stream.isatty():
        return False
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # not the terminal that controls this process, so no job control either
        return True


def _has_typed_ahead(descriptor: int) -> bool:
    """Whether keys wait to be read. Only a terminal that does not wait for a whole line tells; no key is taken."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
