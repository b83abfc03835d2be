import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli.diffusion.denoise import Step
from sdcli.terminal import display

ROOT = str(Path(__file__).parent.parent)
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
SHOW_CURSOR, ERASE_LINE = "\x1b[?25h", "\x1b[2K"


class Terminal:
    """A pseudo-terminal: `stream` writes to it, `screen()` is all it got so far."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.got = b""

    def screen(self) -> str:
        while select.select([self.master], [], [], 0.05)[0]:
            self.got += os.read(self.master, 65536)
        return self.got.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    made = Terminal()
    yield made
    made.close()


def step(index: int, total: int = 4) -> Step:
    return Step(index, total, 0.0, torch.zeros(1))


def clock(monkeypatch, *times: float) -> None:
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=iter(times).__next__))


def frames(stream_text: str) -> list[str]:
    """What stood on the bar's line, one after the other, without colours and the spinner."""
    lines = (re.sub(r"^[-\\|/] ", "", ANSI.sub("", each).strip()) for each in re.split(r"[\r\n]+", stream_text))
    return list(dict.fromkeys(line for line in lines if line))


def test_the_bar_tells_step_rate_and_time_left(terminal, monkeypatch):
    clock(monkeypatch, 100, 102, 104, 106)
    with display.progress(4, stream=terminal.stream) as on_step:
        for index in range(1, 5):
            on_step(step(index))
            time.sleep(0.15)  # a frame
    shown = frames(terminal.screen())
    assert re.fullmatch(r"denoising [━╸╺]+ 1/4", shown[-4])
    assert re.fullmatch(r"denoising [━╸╺]+ 2/4 2\.0 s/step 0:04 left", shown[-3])
    assert re.fullmatch(r"denoising [━╸╺]+ 3/4 2\.0 s/step 0:02 left", shown[-2])
    assert re.fullmatch(r"decoding [━╸╺]+ 4/4 2\.0 s/step", shown[-1])


@pytest.mark.parametrize(
    ("options", "label", "left"),
    [
        ({"pictures": 3, "picture": 1}, "picture 1 of 3, denoising", "0:20"),
        ({"pictures": 3, "picture": 3}, "picture 3 of 3, denoising", "0:04"),
        ({"pictures": 5, "picture": 1, "batch_size": 2}, "pictures 1-2 of 5, denoising", "0:20"),
        ({"pictures": 5, "picture": 5, "batch_size": 2}, "picture 5 of 5, denoising", "0:04"),
        ({}, "denoising", "0:04"),
    ],
)
def test_time_left_is_that_of_all_pictures_to_come(terminal, monkeypatch, options, label, left):
    clock(monkeypatch, 0, 2)
    with display.progress(4, stream=terminal.stream, **options) as on_step:
        on_step(step(1))
        on_step(step(2))
    shown = frames(terminal.screen())[-1]
    assert shown.startswith(label)
    assert shown.endswith(f"2/4 2.0 s/step {left} left")


def test_before_the_first_step_it_says_that_it_starts(terminal):
    with display.progress(4, stream=terminal.stream):
        time.sleep(0.15)
    assert re.fullmatch(r"starting [━╸╺]+ 0/4", frames(terminal.screen())[-1])


@pytest.mark.parametrize(("columns", "text"), [("100", r"starting [━╸╺]+ 0/4"), ("40", r"starting 0/4")])
def test_a_spinner_moves_until_the_first_step_and_while_decoding(terminal, monkeypatch, columns, text):
    monkeypatch.setenv("COLUMNS", columns)
    with display.progress(4, stream=terminal.stream) as on_step:
        time.sleep(0.5)
        shown = re.findall(rf"([-\\|/]) {text}", ANSI.sub("", terminal.screen()))
        on_step(step(2))
        time.sleep(0.15)
        between = terminal.screen()
        on_step(step(4))
        time.sleep(0.15)
    assert len(set(shown)) > 1
    assert not re.search(r"[-\\|/] [^\r]*2/4", ANSI.sub("", between))
    assert re.search(r"[-\\|/] decoding[^\r]* 4/4", ANSI.sub("", terminal.screen()))


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt, ValueError])
def test_no_trace_is_left(terminal, failure):
    try:
        with display.progress(4, stream=terminal.stream) as on_step:
            on_step(step(1))
            if failure:
                raise failure
    except (KeyboardInterrupt, ValueError):
        assert failure
    got = terminal.screen()
    assert got.rindex(ERASE_LINE) > got.rindex("1/4")
    assert SHOW_CURSOR in got
    assert sys.stderr is not None
    assert "rich" not in type(sys.stderr).__module__


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ("80", r"denoising [━╸╺]+ 2/4 2\.0 s/step 0:04 left"),
        ("70", r"denoising 2/4 2\.0 s/step 0:04 left"),
        ("40", r"2/4 0:04 left"),
        ("24", r"2/4 0:04 left"),
        ("10", r"2/4"),
        ("3", r"2/4"),
    ],
)
def test_narrow_terminals(terminal, monkeypatch, columns, pattern):
    monkeypatch.setenv("COLUMNS", columns)
    clock(monkeypatch, 0, 2)
    with display.progress(4, stream=terminal.stream) as on_step:
        on_step(step(1))
        on_step(step(2))
    shown = frames(terminal.screen())[-1]
    assert re.fullmatch(pattern, shown)
    assert len(shown) <= max(int(columns) - len("^C"), 3)


def test_no_color_means_no_color(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with display.progress(4, stream=terminal.stream) as on_step:
        on_step(step(2))
    assert "2/4" in terminal.screen()
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.screen().replace("\x1b[0m", ""))


@pytest.mark.parametrize(
    ("options", "environment"),
    [({"quiet": True}, {}), ({}, {"TERM": "dumb"}), ({}, {"TERM": "unknown"}), ({}, {"TERM": None})],
)
def test_nothing_is_drawn_where_it_is_not_wanted(terminal, monkeypatch, options, environment):
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with display.progress(4, stream=terminal.stream, **options) as on_step:
        on_step(step(4))
    if not options:
        display.preview(Image.new("RGB", (8, 8)), stream=terminal.stream)
    assert terminal.screen() == ""


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_nothing_is_drawn_on_what_is_no_terminal(monkeypatch, forced):
    for name, value in ({"TERM": "xterm-256color"} | forced).items():
        monkeypatch.setenv(name, value)
    stream = StringIO()
    with display.progress(4, stream=stream) as on_step:
        on_step(step(4))
    display.preview(Image.new("RGB", (8, 8)), stream=stream)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, ""),
        (0.02, "50.0 steps/s"),
        (0.99, "1.0 steps/s"),
        (1.0, "1.0 steps/s"),
        (1.94, "1.9 s/step"),
        (41.5, "41.5 s/step"),
    ],
)
def test_rate(seconds, expected):
    assert display.format_rate(seconds) == expected


@given(st.floats(0, 400_000))
def test_clock_reads_back(seconds):
    parts = [int(part) for part in display.format_clock(seconds).split(":")]
    assert sum(part * 60**power for power, part in enumerate(reversed(parts))) == round(seconds)


# The preview asks the terminal behind file descriptors 0 and 1, so it is looked at from outside.

PREVIEW = """
import sys
from PIL import Image
from sdcli.terminal import display
display.preview(Image.linear_gradient("L").convert("RGB"))
sys.stderr.write("end")
"""
IN_BACKGROUND = f"""
import fcntl, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
subprocess.run([sys.executable, "-c", {PREVIEW!r}], process_group=0)
"""


def preview(code: str = PREVIEW, *, env=None, reply: bytes = b"", typed: bytes = b"", **redirected) -> str:
    """What appears on a terminal of 80×24 cells that answers `reply` to its first question."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")
    os.write(master, typed)
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        **({"stdin": slave, "stdout": slave, "stderr": slave} | redirected),
        env=kept | {"PYTHONPATH": ROOT, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | (env or {}),
        start_new_session=True,
    )
    os.close(slave)
    got = b""
    try:
        while not got.endswith(b"end"):
            if not select.select([master], [], [], 60)[0]:
                break
            got += os.read(master, 65536)
            if reply and b"\x1b[c" in got:
                os.write(master, reply)
                reply = b""
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return got.decode(errors="replace")


def test_preview_in_half_cells():
    got = preview()
    rows = [row for row in ANSI.sub("", got).splitlines() if "▀" in row]
    assert len(rows) == display.PREVIEW_ROWS
    assert {row.count("▀") for row in rows} == {40}  # as square as cells twice as high as wide allow
    assert "38;5;" in got


def test_preview_in_pixels_where_the_terminal_knows_sixels():
    got = preview(reply=b"\x1b[?62;4c")
    assert re.search(r"\x1bP[0-9;]*q", got)
    assert "▀" not in got


@pytest.mark.parametrize(
    "options",
    [
        {"env": {"TERM": "dumb"}},
        {"env": {"TERM": "xterm"}},
        {"env": {"NO_COLOR": "1"}},
        {"env": {"PYTHONIOENCODING": "ascii"}},
        {"stdin": subprocess.DEVNULL},
        {"stdout": subprocess.DEVNULL},
        {"code": "import sys; sys.modules['textual_image'] = None\n" + PREVIEW},
        {"code": IN_BACKGROUND},
    ],
    ids=["dumb", "few colours", "no colour", "ascii", "stdin", "stdout", "no package", "background"],
)
def test_no_preview(options):
    got = preview(**options)
    assert re.sub(r"\x1b\[[0-9;]*c|\x1b\[[0-9;]*t|\x1b_G.*?\x1b\\", "", got) == "end"


def test_keys_typed_ahead_are_left_alone():
    code = (
        PREVIEW.replace("display.preview", "import os\ndisplay.preview")
        + "sys.stderr.write(repr(os.read(0, 99)) + 'end')"
    )
    got = preview(code.replace('sys.stderr.write("end")', "pass"), typed=b"ls -l\n")
    assert "b'ls -l\\n'end" in got
    assert "▀" not in got


def test_a_batch_s_bar_tells_the_job_and_the_time_left_for_all(terminal, monkeypatch):
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with display.job_progress(4, stream=terminal.stream) as show:
        show(0, "loading kit")
        time.sleep(0.15)
        assert "job 1 of 4, loading kit" in terminal.screen()
        show(0.5, "denoising")
        now += 30
        show(1.5, "decoding")
        time.sleep(0.15)
        assert re.search(r"job 2 of 4, decoding.*1/4.*1:15 left", ANSI.sub("", terminal.screen()))
        show(2, "decoding", "a fox and a very long prompt of it", 1)
        time.sleep(0.15)
        assert "job 2 of 4, 1 failed, decoding a fox and a very long promp…" in ANSI.sub("", terminal.screen())
    assert terminal.screen().endswith(ERASE_LINE)


def test_a_batch_s_bar_is_drawn_for_nobody_but_people(terminal):
    for options in ({"stream": StringIO()}, {"stream": terminal.stream, "quiet": True}):
        with display.job_progress(2, **options) as show:
            show(1, "denoising")
    assert terminal.screen() == ""


def test_a_transfer_tells_the_file_the_bytes_and_the_sum_of_them(terminal):
    with display.transfer(stream=terminal.stream) as start:
        on_bytes = start(4_000_000)
        for name, count in (("a/[b].json", 500_000), ("a/[b].json", 1_000_000), ("unet", 1_000_000)):
            on_bytes(name, count)
            time.sleep(0.15)  # a frame
    shown = frames(terminal.screen())
    assert re.match(r"a/\[b\]\.json [━╸╺]+ 0\.5/4\.0 MB", shown[-3])
    assert re.match(r"a/\[b\]\.json [━╸╺]+ 1\.0/4\.0 MB", shown[-2])
    assert re.match(r"unet [━╸╺]+ 2\.0/4\.0 MB", shown[-1])


def test_a_transfer_draws_nothing_where_nobody_looks(terminal):
    for options in ({"stream": StringIO()}, {"stream": terminal.stream, "quiet": True}):
        with display.transfer(**options) as start:
            start(10)("file", 5)
    assert terminal.screen() == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (3_438_000_000, "3.4 GB")]
)
def test_sizes_are_in_decimal_units(count, text):
    assert display.format_size(count) == text
