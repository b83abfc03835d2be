"""Progress bars and picture previews on stderr.

Draws nothing if stderr is not a terminal, on a dumb terminal, and from a background job. Nothing in this module can
make a command fail.
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

from sdcli.terminal.live import Live
from sdcli.terminal.printable import one_line, printable

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


class Step(Protocol):
    """A finished step out of `total`; `index` counts from 1."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def total(self) -> int: ...  # noqa: D102


OnJobs = Callable[..., None]
"""Called with (jobs done, activity, what it is about, jobs that failed); the last two can be omitted."""
OnTraining = Callable[[str, int, int, "float | None"], None]
"""Called with (activity, amount done, total amount, loss or None)."""
OnBytes = Callable[[str, int], None]
"""Called repeatedly with (file, bytes done so far)."""

PREVIEW_COLUMNS, PREVIEW_ROWS = 48, 20
_COLUMNS_FOR_BAR, _COLUMNS_FOR_TEXT, _COLUMNS_FOR_TIME = 76, 60, 20  # columns
_LONGEST_ABOUT = 28
_COLUMNS_FOR_ECHO = 4
"""Columns kept free for the `^C` that a terminal echoes; otherwise it would wrap the line, and the bar would remain."""


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
    """Show a bar for one run of the loop, which makes `batch_size` of `pictures`, starting at number `picture`.

    Yields a function to call after each step. The bar shows the step, the rate, and the time left for this run and all
    later ones, and "decoding" after the last step; a spinner moves where no steps do, as in loading. Above it is the
    preview of a step that has one (see live.py). It is drawn on `stream` (stderr if None) and erased at the end.
    Nothing is drawn if `stream` is not a terminal, or `quiet` is set.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _can_draw(stream):
        yield lambda step: None
        return
    last = min(picture + batch_size - 1, pictures)
    later_runs = math.ceil((pictures - last) / batch_size)
    which = f"picture {picture}" if last == picture else f"pictures {picture}-{last}"
    label = f"{which} of {pictures}, " if pictures > 1 else ""
    live = Live(_console(stream))
    bar = _bar(stream, live)
    task = bar.add_task(f"{label}starting", total=steps, rate="", left="", waiting="starting")
    first_done: float | None = None

    def on_step(step: Step) -> None:
        nonlocal first_done
        now = time.monotonic()
        if first_done is None:
            first_done = now
        decoding = step.index == step.total
        changes: dict[str, Any] = {"description": label + ("decoding" if decoding else "denoising")}
        changes["waiting"] = "decoding" if decoding else ""
        if step.index > 1:  # the first step includes the encoding of the context
            seconds = (now - first_done) / (step.index - 1)
            to_do = step.total - step.index + step.total * later_runs
            changes |= {"rate": format_rate(seconds), "left": f"{format_clock(seconds * to_do)} left" if to_do else ""}
        live.update(getattr(step, "preview", lambda: None))  # the warm process sends none
        bar.update(task, completed=step.index, total=step.total, **changes)

    with bar:
        yield on_step


@contextmanager
def tiles(
    picture: int, pictures: int, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for the tiles of one of `pictures`, with the time left.

    Yields a function to call with the number of finished tiles and of all tiles. It draws under the same conditions as
    `progress`, and is erased at the end.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _can_draw(stream):
        yield lambda done, total: None
        return
    label = f"picture {picture} of {pictures}, " if pictures > 1 else ""
    bar = _bar(stream)
    task = bar.add_task(f"{label}enlarging", total=None, rate="", left="", waiting="enlarging")
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        seconds = (time.monotonic() - started) / done
        left = f"{format_clock(seconds * (total - done))} left" if done < total else ""
        bar.update(task, completed=done, total=total, left=left, waiting="")

    with bar:
        yield show


@contextmanager
def job_progress(jobs: int, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[OnJobs]:
    """Show a bar for the `jobs` of a batch, with the number of those that failed and the time left.

    Yields a function to call with the number of finished jobs (with the fraction of the current job), the activity, the
    model or the words of the current picture, and the number of failed jobs. It draws under the same conditions as
    `progress`, and is erased at the end.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _can_draw(stream):
        yield lambda done, activity, about="", failed=0: None
        return
    bar = _bar(stream)
    task = bar.add_task("starting", total=jobs, rate="", left="", waiting="starting")
    started: tuple[float, float] | None = None  # when the first picture started, and its progress then

    def show(done: float, activity: str, about: str = "", failed: int = 0) -> None:
        nonlocal started
        now = time.monotonic()
        failures = f", {failed} failed" if failed else ""
        short = about if len(about) <= _LONGEST_ABOUT else f"{about[: _LONGEST_ABOUT - 1]}…"
        current = math.ceil(done) if activity == "decoding" else min(int(done) + 1, jobs)  # it is not counted yet
        told = one_line(f"job {current} of {jobs}{failures}, {activity} {short}")
        changes: dict[str, Any] = {"description": told, "waiting": "" if activity == "denoising" else activity}
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
    """Show a bar for a training run, with the smoothed loss, the rate and the time left.

    Yields a function to call with each progress. It draws under the same conditions as `progress`, and is erased at
    the end.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _can_draw(stream):
        yield lambda activity, done, total, loss: None
        return
    bar = _bar(stream)
    task = bar.add_task("starting", total=None, rate="", left="")
    phase, first, mean = "", (0.0, 0), 0.0

    def show(activity: str, done: int, total: int, loss: float | None) -> None:
        nonlocal phase, first, mean
        now = time.monotonic()
        if activity != phase:
            phase, first, mean = activity, (now, done), loss or 0.0
        mean += 0.05 * ((loss or 0.0) - mean)
        told = activity if loss is None else f"{activity}, loss {mean:.4f}"
        changes: dict[str, Any] = {"description": printable(told)}
        if done > first[1]:
            seconds = (now - first[0]) / (done - first[1])
            changes |= {"rate": format_rate(seconds), "left": f"{format_clock(seconds * (total - done))} left"}
        bar.update(task, completed=done, total=total, **changes)

    with bar:
        yield show


@contextmanager
def counting(
    activity: str, total: int, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[int], None]]:
    """Show a bar for `total` things of one kind, under the same conditions as `progress`.

    Yields a function to call with the number of those that are done.
    """
    with training(quiet=quiet, stream=stream) as show:
        yield lambda done: show(activity, done, total, None)


def before_a_line(stream: TextIO | None = None) -> bytes:
    """Return the bytes that erase a bar, for callers that write to the descriptor directly."""
    return b"\r\x1b[2K" if _can_draw(sys.stderr if stream is None else stream) else b""


def erase_bar(stream: TextIO | None = None) -> None:
    """Erase a bar before a line is written to another descriptor of the same terminal; it is drawn again below."""
    stream = sys.stderr if stream is None else stream
    with suppress(OSError, ValueError):
        os.write(stream.fileno(), before_a_line(stream))


def preview(image: Image.Image, *, stream: TextIO | None = None) -> None:
    """Draw a small copy of `image` on `stream` (stderr if None), with graphics or half-block characters.

    Nothing is drawn without the package textual-image, on a terminal with fewer than 256 colours or without UTF-8, with
    NO_COLOR, or if querying the terminal could hang or consume typed keys: stdin and file descriptor 1 must be
    terminals too, and no input may be pending.
    """
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or "utf" not in (stream.encoding or "").lower() or not _can_draw(stream):
        return
    with suppress(Exception):  # a failed preview is not an error: the picture is already on disk
        if os.isatty(1) and not _has_pending_input(0):
            _draw(image, stream)


@contextmanager
def transfer(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Callable[[int], OnBytes]]:
    """Show a bar for bytes that are downloaded or read, under the same conditions as `progress`.

    Yields a function that takes the total number of bytes and returns the progress callback.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _can_draw(stream):
        yield lambda total: lambda name, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(file=stream, highlight=False)
    columns: list[Any] = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    if console.width >= _COLUMNS_FOR_BAR:
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), *columns]
    bar = Progress(*columns, console=console, transient=True, expand=console.width >= _COLUMNS_FOR_BAR)
    done: dict[str, int] = {}

    def start(total: int) -> OnBytes:
        task = bar.add_task("", total=total)

        def on_bytes(name: str, count: int) -> None:
            done[name] = count
            bar.update(task, completed=sum(done.values()), description=printable(name))

        return on_bytes

    with bar:
        yield start


def format_rate(seconds: float) -> str:
    """Format as steps per second, or seconds per step if that is the larger number."""
    if seconds <= 0:
        return ""
    return f"{seconds:.1f} s/step" if seconds > 1 else f"{1 / seconds:.1f} steps/s"


def format_clock(seconds: float) -> str:
    """Format seconds as `m:ss`, or `h:mm:ss` from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_size(count: int) -> str:
    """Format bytes in a decimal unit."""
    size, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    width = Console(file=stream).width - _COLUMNS_FOR_ECHO
    return Console(file=stream, highlight=False, width=width if width > 0 else None)


def _bar(stream: TextIO, above: Live | None = None) -> Progress:
    """A bar that fits the terminal: on a narrow one the bar itself is omitted first, then the text."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    class Bar(Progress):
        def get_renderables(self) -> Iterator[Any]:
            if above is not None:
                yield above
            yield from super().get_renderables()

    console = _console(stream)
    width = console.width
    columns: list[ProgressColumn] = [MofNCompleteColumn()]
    if width >= _COLUMNS_FOR_BAR:
        columns.insert(0, BarColumn(bar_width=None))
    if width >= _COLUMNS_FOR_TEXT:
        columns.insert(0, TextColumn("{task.description}", markup=False))
        columns.append(TextColumn("{task.fields[rate]}", markup=False))
    if width >= _COLUMNS_FOR_TIME:
        columns.insert(0, _spinner(with_text=width < _COLUMNS_FOR_TEXT))
        columns.append(TextColumn("{task.fields[left]}", markup=False))
    return Bar(*columns, console=console, transient=True, expand=width >= _COLUMNS_FOR_BAR)


def _spinner(*, with_text: bool) -> ProgressColumn:
    """A column that moves while a task has the field `waiting`, the activity, which is its text where there is room."""
    from rich.progress import SpinnerColumn
    from rich.text import Text

    class Spinner(SpinnerColumn):
        def render(self, task: Any) -> Any:
            waiting = task.fields.get("waiting", "")
            turning = self.spinner.render(task.get_time()) if waiting else ""
            return Text.assemble(turning, f" {waiting}" if waiting and with_text else "")  # type: ignore[arg-type]

    return Spinner("line")


def _draw(image: Image.Image, stream: TextIO) -> None:
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)  # hides its messages about the terminal
    from rich.console import Console
    from textual_image.renderable import HalfcellImage
    from textual_image.renderable import Image as Renderable

    console = Console(file=stream)
    if Renderable is HalfcellImage and console.color_system not in ("256", "truecolor"):
        return
    columns, rows = min(PREVIEW_COLUMNS, console.width), min(PREVIEW_ROWS, console.height - 2)
    console.print(Renderable(image, width="auto", height="auto"), width=columns, height=rows, end="")


def _can_draw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw a line, and this process is in the foreground."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown") or not stream.isatty():
        return False
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # not the controlling terminal, so there is no job control
        return True


def _has_pending_input(descriptor: int) -> bool:
    """Whether input is pending. Switches the terminal to cbreak mode for a moment; consumes no input."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
