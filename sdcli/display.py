"""What a person at a terminal sees on stderr: a progress bar while a picture is made, then a small copy of it.

Draws nothing where nobody looks: on what is no terminal, on a dumb one, and from a background job. Nothing in here
can make a command fail.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress

    from sdcli.denoise import Step

PREVIEW_COLUMNS, PREVIEW_ROWS = 48, 20
_ROOM_FOR_BAR, _ROOM_FOR_RATE = 72, 48


@contextmanager
def status(text: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[None]:
    """Show `text` beside a spinner while open, where the bar of `progress` would be drawn, and leave no trace."""
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield
        return
    from rich.console import Console

    with Console(file=stream, highlight=False).status(text):
        yield


@contextmanager
def progress(
    steps: int, pictures: int = 1, *, picture: int = 1, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[Step], None]]:
    """A bar for one run of the loop, which makes number `picture` of `pictures`; yields what to call at each step.

    It tells the step, the rate, and the time left for the steps of this and all later pictures; after the last step,
    that the picture is being decoded. It holds one line of `stream` (stderr if None) while open, and leaves no trace.
    Nothing is ever drawn where `stream` is no terminal, or `quiet` is set.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_watched(stream):
        yield lambda step: None
        return
    bar = _bar(stream)
    which = f"picture {picture}/{pictures} " if pictures > 1 else ""
    task = bar.add_task(f"{which}encoding", total=steps, rate="", left="")
    times = [time.monotonic()]

    def on_step(step: Step) -> None:
        done = step.index
        times.append(time.monotonic())
        # The first step also waits for the context, and warms up: it counts only while there is no other.
        since, counted = (times[0], 1) if done == 1 else (times[1], done - 1)
        seconds = (times[-1] - since) / counted
        to_do = step.total - done + step.total * (pictures - picture)
        phase = "decoding" if done == step.total else "denoising"
        bar.update(
            task,
            completed=done,
            total=step.total,
            description=f"{which}{phase}",
            rate=format_rate(seconds),
            left=f"{format_clock(seconds * to_do)} left" if to_do else "",
        )

    with bar:
        yield on_step


def preview(image: Image.Image, *, stream: TextIO | None = None) -> None:
    """Draw `image` small on `stream` (stderr if None), as finely as the terminal can: graphics, or half cells.

    Nothing is drawn without the package textual-image, on a terminal of fewer than 256 colours, with NO_COLOR, or
    where the terminal cannot be asked what it can, because stdin or file descriptor 1 is another thing.
    """
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or not _is_watched(stream):
        return
    with suppress(Exception):  # a preview is a courtesy: the picture is on disk already
        if (
            sys.__stdin__ is not None
            and sys.__stdin__.isatty()
            and sys.__stdout__ is not None
            and sys.__stdout__.isatty()
        ):
            _draw(image, stream)


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


def _bar(stream: TextIO) -> Progress:
    """A bar that fits the terminal's width: on a narrow one, first the bar itself goes, then the rate."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=stream, highlight=False)
    columns = [TextColumn("{task.description}"), MofNCompleteColumn()]
    if console.width >= _ROOM_FOR_BAR:
        columns.insert(1, BarColumn(bar_width=None))
    if console.width >= _ROOM_FOR_RATE:
        columns.append(TextColumn("{task.fields[rate]}"))
    columns.append(TextColumn("{task.fields[left]}"))
    return Progress(*columns, console=console, transient=True, expand=console.width >= _ROOM_FOR_BAR)


def _draw(image: Image.Image, stream: TextIO) -> None:
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)  # its guesses about the terminal are no news
    from rich.console import Console
    from textual_image.renderable import HalfcellImage
    from textual_image.renderable import Image as Renderable

    console = Console(file=stream)
    if Renderable is HalfcellImage and console.color_system not in ("256", "truecolor"):
        return
    columns, rows = min(PREVIEW_COLUMNS, console.width), min(PREVIEW_ROWS, console.height - 2)
    options = console.options.update(width=columns, height=rows)
    console.print(*console.render(Renderable(image, width="auto", height="auto"), options), sep="", end="")


def _is_watched(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw a line, and this process is in its foreground."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown") or not stream.isatty():
        return False
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # not the terminal that controls this process, so no job control either
        return True
