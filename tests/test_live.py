"""The picture above a progress bar: its colours, its size, and its share of the time."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from sdcli.terminal import live
from sdcli.terminal.live import Live


def console(**options) -> Console:
    given = {"color_system": "truecolor", "width": 60, "height": 30, "force_terminal": True, **options}
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), **given)


@pytest.fixture(autouse=True)
def _colours(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def picture(size: tuple[int, int] = (4, 4)) -> Image.Image:
    made = Image.new("RGB", size, (0, 0, 255))
    made.paste((255, 0, 0), (0, 0, size[0], size[1] // 2))
    return made


def drawn(shown: Live, on: Console) -> list[list]:
    return on.render_lines(shown, pad=False)


def test_a_character_has_two_pixels():
    on = console()
    shown = Live(on)
    shown.update(picture)
    lines = drawn(shown, on)
    assert [len(line) for line in lines] == [4, 4]
    first, last = lines[0][0].style, lines[1][0].style
    assert [each.triplet for each in (first.color, first.bgcolor)] == [(255, 0, 0)] * 2
    assert [each.triplet for each in (last.color, last.bgcolor)] == [(0, 0, 255)] * 2


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 100), (48, 12)), ((100, 400), (10, 20)), ((8, 3), (8, 1)), ((1, 1), (1, 1))]
)
def test_it_fits_the_terminal_and_is_never_enlarged(size, expected):
    on = console()
    shown = Live(on)
    shown.update(lambda: picture(size))
    lines = drawn(shown, on)
    assert (len(lines[0]), len(lines)) == expected


@pytest.mark.parametrize("options", [{"color_system": "standard"}, {"color_system": None}, {"height": 4}])
def test_a_terminal_that_cannot_show_it_is_left_alone(options):
    on = console(**options)
    shown = Live(on)
    shown.update(lambda: pytest.fail("computed for nothing"))
    assert drawn(shown, on) == []


def test_what_fails_or_is_unknown_leaves_the_last_picture():
    on = console()
    shown = Live(on)
    shown._started -= 1000
    shown.update(picture)
    before = drawn(shown, on)
    shown.update(lambda: None)
    shown.update(lambda: 1 / 0)
    assert drawn(shown, on) == before


def test_pictures_take_their_share_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = Live(console())
    drawn_at = []

    def slow() -> Image.Image:
        drawn_at.append(now[0])
        now[0] += 0.1
        return picture()

    while now[0] < 20:
        now[0] += 0.5
        shown.update(slow)
    assert 0.01 < 0.1 * len(drawn_at) / now[0] <= 0.03
